"""Statistics of scores: interquartile mean, and intervals over samples and over seeds.

Over samples (such as whole games): percentile bootstrap (Efron 1979; Agarwal et al. 2021, section 4). Over seeds, which
are few: Student's t.

Symbols: s student scores, t teacher scores, r the score of chance, n samples. The contract: pure functions of
numpy arrays of any shape (every entry counts once), randomness only from the ``numpy.random.Generator`` that is passed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

BLOCK = 2**22  # draws made at once: bounds the memory to 32 MiB whatever the number of scores
FEWEST = 3  # scores for an interval: resamples of one or two say nothing about their spread
ROUGH = 10  # with fewer scores a percentile interval is too narrow to be trusted


class Interval(NamedTuple):
    """Ends of a confidence interval, in the unit of what it is an interval of."""

    low: float
    high: float


def iqm(scores: ArrayLike) -> float:
    """Interquartile mean: the mean of what is left without the lowest and the highest quarter.

    Of n scores, floor(n / 4) are dropped at either end (as in rliable), so that a few outliers do not decide.

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
    student, teacher = _flat(student_scores, "student scores"), _flat(teacher_scores, "teacher scores")
    if not teacher.mean() > random:
        raise ValueError(f"the teacher's mean {teacher.mean():g} is not above chance, {random:g}: nothing to divide by")
    above = _resampled_means(student, n_resamples, generator) - random
    span = _resampled_means(teacher, n_resamples, generator) - random
    ratios = np.where(above < 0, -np.inf, np.inf)
    np.divide(above, span, out=ratios, where=span > 0)
    interval = _percentiles(ratios, confidence)
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
    flat = [_flat(group, "scores") for group in groups]
    if not flat:
        raise ValueError("at least one group of scores is needed")
    means = np.mean([_resampled_means(group, n_resamples, generator) for group in flat], axis=0)
    interval = _percentiles(means, confidence)
    return interval if min(len(group) for group in flat) >= FEWEST else None


def t_interval(values: ArrayLike, *, confidence: float = 0.95) -> Interval | None:
    """Student's interval of the mean, for few values such as one per seed.

    Args:
        values: any shape, at least one entry, finite. They count as independent draws from a normal distribution.
        confidence: probability in (0, 1).

    Returns:
        In the unit of the values; None for one value, which says nothing about the spread.

    Raises:
        ValueError: no values, not all finite, or a confidence out of range.

    Example:
        >>> low, high = t_interval([1.0, 2.0, 3.0])
        >>> round(low, 3), round(high, 3)
        (-0.484, 4.484)
    """
    flat = _flat(values, "values")
    _check_confidence(confidence)
    if len(flat) < 2:
        return None
    reach = _t_quantile(confidence, len(flat) - 1) * flat.std(ddof=1) / math.sqrt(len(flat))
    return Interval(float(flat.mean() - reach), float(flat.mean() + reach))


def _t_quantile(confidence: float, degrees: int) -> float:
    """The t with P(|T| <= t) = ``confidence``, by bisection of the angle atan(t / sqrt(degrees))."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):  # to the last bit
        angle = (low + high) / 2
        low, high = (angle, high) if _t_probability(angle, degrees) < confidence else (low, angle)
    return math.tan(low) * math.sqrt(degrees)


def _t_probability(angle: float, degrees: int) -> float:
    """P(|T| <= sqrt(degrees) tan(angle)) of Student's T: a finite sum (Abramowitz & Stegun 26.7.3 and 26.7.4)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    term = cosine if degrees % 2 else 1.0
    total = 0.0
    for k in range(2 + degrees % 2, degrees + 1, 2):
        total += term
        term *= (k - 1) / k * cosine**2
    return 2 / math.pi * (angle + sine * total) if degrees % 2 else sine * total


def _flat(values: ArrayLike, name: str) -> NDArray[np.float64]:
    flat = np.asarray(values, dtype=np.float64).ravel()
    if flat.size == 0:
        raise ValueError(f"{name} must be finite numbers, and there are none")
    if not np.isfinite(flat).all():
        raise ValueError(f"{name} must be finite, got {flat[~np.isfinite(flat)][0]}")
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
    _check_confidence(confidence)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail], method="inverted_cdf")
    return Interval(float(low), float(high))


def _check_confidence(confidence: float) -> None:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence is a probability between 0 and 1, got {confidence}")
