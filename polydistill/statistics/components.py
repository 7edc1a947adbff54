"""Where the spread of students comes from: from their teachers, or from the students of one teacher.

One-way analysis of variance with random effects, by its mean squares (Searle, Casella & McCulloch 1992, chapter 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from polydistill.statistics.values import flat_values


class VarianceComponents(NamedTuple):
    """Variances, in the square of the scores' unit: their sum is that of one student of a new teacher."""

    teachers: float  # between the means of teachers' students; 0 where the estimate is below
    students: float  # between students of one teacher


def variance_components(groups: Sequence[ArrayLike]) -> VarianceComponents:
    """The variance between teachers, and between students of one teacher.

    With one more student of each teacher, as the arm "BAN again" beside BAN, the two can be told apart. What a seed
    shares besides the teacher, such as the order of the data, counts as the teacher's.

    Args:
        groups: one array per teacher, >= 2: the scores of its students, finite. The numbers may differ, and one
            teacher at least needs two students.

    Raises:
        ValueError: fewer than two teachers, no teacher with two students, a teacher without, or not all finite.

    Example:
        >>> variance_components([[1.0, 3.0], [5.0, 7.0]])
        VarianceComponents(teachers=7.0, students=2.0)
    """
    scores = [flat_values(group, "scores") for group in groups]
    counts = np.array([len(group) for group in scores])
    total, teachers = int(counts.sum()), len(counts)
    if teachers < 2 or total == teachers:
        raise ValueError("at least two teachers are needed, one of them with two students")
    means = np.array([group.mean() for group in scores])
    mean = float(counts @ means) / total
    within = float(sum(((group - group.mean()) ** 2).sum() for group in scores)) / (total - teachers)
    between = float(counts @ (means - mean) ** 2) / (teachers - 1)
    students_each = (total - float(counts @ counts) / total) / (teachers - 1)  # their number where all have as many
    return VarianceComponents(max(0.0, (between - within) / students_each), within)
