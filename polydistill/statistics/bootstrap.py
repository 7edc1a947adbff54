"""Percentile bootstrap intervals of means, over samples such as whole games.

Efron 1979; Agarwal et al. 2021, section 4. Of few values, such as one per seed, these intervals are too narrow:
docs/statistics.md says how much.

Symbols: s student scores, t teacher scores, r the score of chance, n samples. The contract: pure functions of
numpy arrays of any shape (every entry counts once), randomness only from the ``numpy.random.Generator`` that is passed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polydistill.statistics.values import Interval, check_confidence, flat_values

BLOCK = 2**22  # draws made at once: bounds the memory to 32 MiB whatever the number of scores
FEWEST = 3  # scores for an interval: resamples of one or two say nothing about their spread
ROUGH = 10  # with fewer scores a percentile interval is too narrow to be trusted


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
    flat = flat_values(scores, "scores")
    interval = percentiles(_resampled_means(flat, n_resamples, generator), confidence)
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
    r"""Percentile bootstrap interval of the teacher-normalised score, over the samples of both.

    .. math:: (\bar s - r) / (\bar t - r)

    Student and teacher have different samples, so each is resampled by itself. A resample in which the teacher is no
    better than chance bounds nothing: its ratio counts as infinity, or minus infinity where the student is worse than
    chance. So an end may be infinite where the teacher's own interval reaches down to chance.

    Args:
        student_scores: any shape, at least one entry.
        teacher_scores: likewise, in the same unit; the numbers of samples may differ.
        random: score of chance (of an agent: of random play), in the same unit.
        generator: source of the resamples.
        confidence: probability in (0, 1).
        n_resamples: ratios drawn, >= 1.

    Returns:
        Without unit: 0 is chance, 1 the teacher. None where either has fewer than ``FEWEST`` = 3 scores.

    Raises:
        ValueError: no scores, not all finite, a teacher whose mean is not above ``random``, or an option out of range.

    Example:
        >>> bootstrap_normalized_interval([-6.0] * 3, [14.0] * 3, -21.0, generator=np.random.default_rng(0))
        Interval(low=0.42857142857142855, high=0.42857142857142855)
    """
    student, teacher = flat_values(student_scores, "student scores"), flat_values(teacher_scores, "teacher scores")
    if not teacher.mean() > random:
        raise ValueError(f"the teacher's mean {teacher.mean():g} is not above chance, {random:g}: nothing to divide by")
    above = _resampled_means(student, n_resamples, generator) - random
    span = _resampled_means(teacher, n_resamples, generator) - random
    ratios = np.where(above < 0, -np.inf, np.inf)
    np.divide(above, span, out=ratios, where=span > 0)
    interval = percentiles(ratios, confidence)
    return interval if min(len(student), len(teacher)) >= FEWEST else None


def pooled_interval(
    groups: Sequence[ArrayLike],
    *,
    generator: np.random.Generator,
    confidence: float = 0.95,
    n_resamples: int = 10_000,
) -> Interval | None:
    """Percentile bootstrap interval of the mean of the groups' means, over the entries within each group.

    It is the interval over the samples of several seeds: each seed's samples are resampled among themselves, so it says
    nothing about other seeds. :func:`t_interval` of the groups' means does.

    Args:
        groups: one array per seed, each of any shape with at least one entry, finite; the numbers may differ.
        generator: source of the resamples.
        confidence: probability in (0, 1).
        n_resamples: means drawn, >= 1.

    Returns:
        In the unit of the scores; None where a group has fewer than ``FEWEST`` = 3 entries.

    Raises:
        ValueError: no groups, a group without scores, not all finite, or an option out of range.

    Example:
        >>> pooled_interval([[1.0] * 3, [2.0] * 3], generator=np.random.default_rng(0))
        Interval(low=1.5, high=1.5)
    """
    flat = [flat_values(group, "scores") for group in groups]
    if not flat:
        raise ValueError("at least one group of scores is needed")
    means = np.mean([_resampled_means(group, n_resamples, generator) for group in flat], axis=0)
    interval = percentiles(means, confidence)
    return interval if min(len(group) for group in flat) >= FEWEST else None


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


def percentiles(values: NDArray[np.float64], confidence: float) -> Interval:
    """The middle ``confidence`` of the values; both ends are values that were drawn, so they may be infinite."""
    check_confidence(confidence)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail], method="inverted_cdf")
    return Interval(float(low), float(high))
