"""The weights of a loss's terms, read as intended weights times factors that were forgotten.

At T = 4, weights of 0.1 and 0.9/16 are hardly intended: they are 0.1 and 0.9 without T^2. Weights are plausible if they
were asked for, add up to 1, or are both 1; of all readings with plausible weights the one with the fewest slips counts.

Symbols: a, b weights found, per row; R rows, C classes, T temperature.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

TOLERANCE = 0.005
TWICE = "is divided by the batch twice: {} times too small"  # not expected in one term alone


class Scale(NamedTuple):
    """The numbers that a loss may be divided by.

    Attributes:
        rows: R if the loss is one number, which should be divided by R; 1 if it has a value per row.
        first: first dimension of scores that have more than two; else R.
        all_rows: number of rows, with those that do not count.
        classes: C.
    """

    rows: int
    first: int
    all_rows: int
    classes: int


class Reading(NamedTuple):
    """Weights that may be intended, and the slips that explain the rest.

    Attributes:
        weights: of the label term and of the soft term.
        of_both, of_label, of_soft: the slips of the loss, and those of one term.
        asked: they are the weights that were asked for.
    """

    weights: tuple[float, float]
    of_both: tuple[str, ...]
    of_label: tuple[str, ...]
    of_soft: tuple[str, ...]
    asked: bool

    @property
    def slips(self) -> int:
        """How many."""
        return len(self.of_both) + len(self.of_label) + len(self.of_soft)


def read(
    found: tuple[float, float],
    asked: tuple[float, float],
    explicit: bool,
    scale: Scale,
    temperature: float,
) -> list[Reading]:
    """The readings of two weights with the fewest slips; none where no weights are plausible.

    Args:
        found: a and b, of the mean over the rows, T^2 being part of the soft term; 0 where a term is missing.
        asked: the objective's weights.
        explicit: they were given, so that no others are plausible.
        scale: of the loss.
        temperature: T, whose square belongs to the soft term; 1: no factor does.
    """
    plausible = [
        (reading.slips, tier, reading._replace(asked=tier == 0))
        for reading in _all_readings(found, scale, temperature)
        for tier in range(1 if explicit else 3)
        if _is_plausible(reading.weights, asked, tier)
    ]
    best = min((each[:2] for each in plausible), default=None)
    return [reading for *rank, reading in plausible if tuple(rank) == best]


def _near(x: float, y: float) -> bool:
    return math.isclose(x, y, rel_tol=TOLERANCE)


def _is_plausible(weights: tuple[float, float], asked: tuple[float, float], number: int) -> bool:
    """Whether they are those asked for (0), add up to 1 (1), or are both 1 (2); a missing term is not compared."""
    if number == 1:
        return _adds_up(weights)
    wanted = asked if number == 0 else (1.0, 1.0)
    return all(x == 0.0 or _near(x, y) for x, y in zip(weights, wanted, strict=True))


def _adds_up(weights: tuple[float, float]) -> bool:
    """Neither is near 0, they add up to 1, and they are round."""
    return min(weights) > 0.005 and _near(sum(weights), 1.0) and abs(weights[0] * 100 - round(weights[0] * 100)) < 0.02


def _all_readings(found: tuple[float, float], scale: Scale, temperature: float) -> Iterator[Reading]:
    reductions = list(_reductions(scale))
    for of_label, of_soft in itertools.product(reductions, reductions):
        if of_label != of_soft and TWICE.format(scale.rows) in (of_label[0], of_soft[0]):
            continue
        for (label_slip, label_factor), (soft_slip, soft_factor) in _temperings(temperature):
            if (found[0] == 0.0 and (of_label != of_soft or label_slip)) or (found[1] == 0.0 and of_label != of_soft):
                continue
            weights = (abs(found[0]) / of_label[1] / label_factor, abs(found[1]) / of_soft[1] / soft_factor)
            both = of_label == of_soft
            yield Reading(
                weights,
                _texts(of_label[0] if both else ""),
                _texts("" if both else of_label[0], label_slip),
                _texts("" if both else of_soft[0], soft_slip),
                False,
            )


def _texts(*slips: str) -> tuple[str, ...]:
    return tuple(slip for slip in slips if slip)


def _reductions(scale: Scale) -> Iterator[tuple[str, float]]:
    """Each slip and how many times too large it makes a term."""
    yield "", 1.0
    classes = scale.classes
    yield f"is averaged over the classes too: {classes} times too small", 1.0 / classes
    rows = scale.rows
    if rows == 1:
        return
    yield f"is summed over the batch: {rows} times too large", float(rows)
    yield TWICE.format(rows), 1.0 / rows
    if scale.first != rows:
        times = rows / scale.first
        yield f"is divided by the first dimension only, not by all {rows} rows: {times:g} times too large", times
    if scale.all_rows != rows:
        times = rows / scale.all_rows
        yield (
            f"is divided by all {scale.all_rows} rows, those that do not count too: {1 / times:.3g} times too small",
            times,
        )


def _temperings(temperature: float) -> Iterator[tuple[tuple[str, float], tuple[str, float]]]:
    """Slips of T^2 in both terms that somebody makes together."""
    T, square, none = temperature, temperature**2, ("", 1.0)
    yield none, none
    if T == 1.0:
        return
    lacks = (f"lacks T^2 = {square:g}", 1.0 / square)
    too_many = f"has a T^2 = {square:g} too many"
    yield none, lacks
    yield none, (too_many, square)
    yield none, (f"is multiplied by T = {T:g}, not by T^2 = {square:g}", 1.0 / T)
    yield (f"is multiplied by T^2 = {square:g}, which belongs to the soft term alone", square), none
    yield (f"is multiplied by T^2 = {square:g}, which belongs to the soft term", square), lacks
