"""The difference of two classifiers over new seeds and new images at once.

An interval over seeds is about this test set. Another set of as many images would give another difference even to the
same networks, so both are resampled here, each by itself (Owen 2007: the pigeonhole bootstrap). Its percentiles are too
near for few seeds, so they are moved away from the mean by as much as Student's t says (Hesterberg 2015).
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polydistill.statistics.bootstrap import BLOCK, FEWEST, percentiles
from polydistill.statistics.t_distribution import t_quantile
from polydistill.statistics.values import Interval


def two_way_interval(
    first_correct: ArrayLike,
    second_correct: ArrayLike,
    *,
    generator: np.random.Generator,
    confidence: float = 0.95,
    n_resamples: int = 2_000,
) -> Interval | None:
    r"""Bootstrap interval of the difference in accuracy, over seeds and images.

    Both ends of the percentile interval are moved to this multiple of their distance from the mean, for n seeds:

    .. math:: \sqrt{n / (n - 1)} \; t_{n - 1} / z

    It is 1.58 for 5 seeds, 1.10 for 20. Where the images decide, the interval is wider than it need be.

    Args:
        first_correct: ``(seeds, images)`` bool: whether the first arm's network of that seed is right on that image.
        second_correct: likewise for the second arm, with the same seeds and images in the same order.
        generator: source of the resamples.
        confidence: probability in (0, 1).
        n_resamples: >= 1; each draws seeds and images with replacement, as many as there are.

    Returns:
        A fraction of images, the first less the second; None for fewer than ``FEWEST`` = 3 seeds or images.

    Raises:
        ValueError: the arrays are not bool, not 2-D, empty or of different shapes, or an option is out of range.

    Example:
        >>> right = np.ones((3, 4), dtype=bool)
        >>> two_way_interval(right, ~right, generator=np.random.default_rng(0))
        Interval(low=1.0, high=1.0)
    """
    first, second = np.asarray(first_correct), np.asarray(second_correct)
    if first.dtype != np.bool_ or second.dtype != np.bool_:
        raise ValueError(f"correctness must be bool, got {first.dtype} and {second.dtype}")
    if first.ndim != 2 or first.shape != second.shape or first.size == 0:
        raise ValueError(f"correctness must be (seeds, images) of both arms, got {first.shape} and {second.shape}")
    if n_resamples < 1:
        raise ValueError(f"n_resamples must be at least 1, got {n_resamples}")
    differences = first.astype(np.float32) - second.astype(np.float32)
    low, high = percentiles(_resampled_means(differences, n_resamples, generator), confidence)
    if min(first.shape) < FEWEST:
        return None
    mean, wider = float(differences.mean(dtype=np.float64)), _expansion(len(first), confidence)
    return Interval(mean + wider * (low - mean), mean + wider * (high - mean))


def _expansion(n: int, confidence: float) -> float:
    """How much wider Student's interval of n values is than that of as many resamples of them."""
    return math.sqrt(n / (n - 1)) * t_quantile(confidence, n - 1) / NormalDist().inv_cdf((1 + confidence) / 2)


def _resampled_means(
    differences: NDArray[np.float32], n_resamples: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """``(n_resamples,)`` means over drawn rows and drawn columns; sums of small integers, so float32 is exact."""
    seeds, images = differences.shape
    means = np.empty(n_resamples)
    rows = max(BLOCK // images, 1)
    for start in range(0, n_resamples, rows):
        part = means[start : start + rows]
        drawn = generator.integers(seeds, size=(len(part), seeds))
        cells = drawn + seeds * np.arange(len(part))[:, None]  # one count for all resamples
        times = np.bincount(cells.ravel(), minlength=cells.size).reshape(drawn.shape).astype(np.float32)
        columns = generator.integers(images, size=(len(part), images))
        part[:] = np.take_along_axis(times @ differences, columns, axis=1).sum(axis=1, dtype=np.float64)
    return means / differences.size
