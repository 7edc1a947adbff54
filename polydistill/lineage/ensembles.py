"""Which generations of a lineage are measured as an ensemble, and what such an ensemble is called."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def growing_ensembles(students: int) -> list[tuple[int, ...]]:
    """Students 1 to k for each k of at least 2, in this order.

    Args:
        students: how many there are.

    Example:
        >>> growing_ensembles(3), growing_ensembles(1)
        ([(1, 2), (1, 2, 3)], [])
    """
    return [tuple(range(1, last + 1)) for last in range(2, students + 1)]


def name_members(members: Sequence[int]) -> str:
    """The numbers of its members, in words; two in a row stay two numbers.

    Example:
        >>> name_members([1, 2]), name_members([1, 2, 3, 4, 6])
        ('1, 2', '1 to 4, 6')
    """
    ordered = sorted(members)
    runs = [[ordered[0]]]
    for before, member in pairwise(ordered):
        if member == before + 1:
            runs[-1].append(member)
        else:
            runs.append([member])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
