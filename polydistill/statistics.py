"""Statistics of scores: interquartile mean and bootstrap intervals (Efron 1979; Agarwal et al. 2021, section 4).

Symbols: s student scores, t teacher scores, r the score of random play, n games. The contract: pure functions of
numpy arrays of any shape (every entry counts once), randomness only from the ``numpy.random.Generator`` that is passed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

BLOCK = 2**22  # draws made at once: bounds the memory to 32 MiB whatever the number of scores
FEWEST = 3  # scores that have an interval: resamples of one or two know nothing of their spread
ROUGH = 10  # below so many a percentile interval is too narrow to be trusted


class Interval(NamedTuple):
    """Ends of a confidence interval, in the unit of what it is an interval of."""

    low: float
    high: float


def iqm(scores: ArrayLike) -> float:
    """Interquartile mean: the mean of what is left without the lowest and the highest quarter.

    Of n scores, floor(n / 4) are dropped at either end (as in rliable), so that few outliers do not decide.

    Args:
        scores: any shape, at least one entry, finite.

    Returns:
        In the unit of the scores.

    Raises:
        ValueError: no scores, or not all finite.

    Example:
        >>> iqm([0.0, 1.0, 3.0, 1000.0])
        2.0
    """
    ordered = np.sort(_flat(scores, "scores"))
    dropped = len(ordered) // 4
    return float(ordered[dropped : len(ordered) - dropped].mean())


def bootstrap_interval(
    scores: ArrayLike, *, generator: np.random.Generator, confidence: float = 0.95, n_resamples: int = 10_000
) -> Interval | None:
    """Percentile bootstrap interval of the mean.

    Args:
        scores: any shape, at least one entry, finite.
        generator: source of the resamples.
        confidence: probability in (0, 1).
        n_resamples: means drawn, >= 1.

    Returns:
        In the unit of the scores; None for fewer than ``FEWEST`` = 3 scores. Below ``ROUGH`` = 10 it is too narrow.

    Raises:
        ValueError: no scores, not all finite, or an option out of range.

    Example:
        >>> bootstrap_interval([2.0, 2.0, 2.0], generator=np.random.default_rng(0))
        Interval(low=2.0, high=2.0)
    """
    flat = _flat(scores, "scores")
    interval = _percentiles(_resampled_means(flat, n_resamples, generator), confidence)
    return interval if len(flat) >= FEWEST else None


def bootstrap_normalized_interval(
    student_scores: ArrayLike,
    teacher_scores: ArrayLike,
    random: float,
    *,
    generator: np.random.Generator,
    confidence: float = 0.95,
    n_resamples: int = 10_000,
) -> Interval | None:
    r"""Percentile bootstrap interval of the teacher-normalised score, over the games of both.

    .. math:: (\bar s - r) / (\bar t - r)

    Student and teacher played different games, so each is resampled by itself. A resample in which the teacher is no
    better than random play bounds nothing: it counts as infinitely good, or bad where the student is worse than random.
    So an end may be infinite where the teacher's own interval reaches down to random play.

    Args:
        student_scores: any shape, at least one entry, in points of the game.
        teacher_scores: likewise; the numbers of games may differ.
        random: score of random play in the same game, in points.
        generator: source of the resamples.
        confidence: probability in (0, 1).
        n_resamples: ratios drawn, >= 1.

    Returns:
        Without unit: 0 is random play, 1 the teacher. None where either has fewer than ``FEWEST`` = 3 scores.

    Raises:
        ValueError: no scores, not all finite, a teacher whose mean is not above ``random``, or an option out of range.

    Example:
        >>> bootstrap_normalized_interval([-6.0] * 3, [14.0] * 3, -21.0, generator=np.random.default_rng(0))
        Interval(low=0.42857142857142855, high=0.42857142857142855)
    """
    student, teacher = _flat(student_scores, "student scores"), _flat(teacher_scores, "teacher scores")
    if not teacher.mean() > random:
        raise ValueError(
            f"the teacher's mean {teacher.mean():g} is not above random play, {random:g}: nothing to divide by"
        )
    above = _resampled_means(student, n_resamples, generator) - random
    span = _resampled_means(teacher, n_resamples, generator) - random
    ratios = np.where(above < 0, -np.inf, np.inf)
    np.divide(above, span, out=ratios, where=span > 0)
    interval = _percentiles(ratios, confidence)
    return interval if min(len(student), len(teacher)) >= FEWEST else None


def _flat(values: ArrayLike, name: str) -> NDArray[np.float64]:
    flat = np.asarray(values, dtype=np.float64).ravel()
    if flat.size == 0 or not np.isfinite(flat).all():
        raise ValueError(f"{name} must be finite and at least one, got {flat.size}")
    return flat


def _resampled_means(
    scores: NDArray[np.float64], n_resamples: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """``(n_resamples,)`` means of as many draws with replacement as there are scores."""
    if n_resamples < 1:
        raise ValueError(f"n_resamples must be at least 1, got {n_resamples}")
    means = np.empty(n_resamples)
    rows = max(BLOCK // len(scores), 1)
    for start in range(0, n_resamples, rows):
        part = means[start : start + rows]
        part[:] = scores[generator.integers(len(scores), size=(len(part), len(scores)))].mean(axis=1)
    return means


def _percentiles(values: NDArray[np.float64], confidence: float) -> Interval:
    """The middle ``confidence`` of the values; both ends are values that were drawn, so they may be infinite."""
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence is a probability between 0 and 1, got {confidence}")
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail], method="inverted_cdf")
    return Interval(float(low), float(high))
