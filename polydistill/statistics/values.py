"""What every statistic takes and gives: finite numbers of any shape, intervals; and the interquartile mean."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


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
    ordered = np.sort(flat_values(scores, "scores"))
    dropped = len(ordered) // 4
    return float(ordered[dropped : len(ordered) - dropped].mean())


def flat_values(values: ArrayLike, name: str) -> NDArray[np.float64]:
    """All entries in one row, in float64; a ValueError names them unless there is one at least and all are finite."""
    flat = np.asarray(values, dtype=np.float64).ravel()
    if flat.size == 0:
        raise ValueError(f"{name} must be finite numbers, and there are none")
    if not np.isfinite(flat).all():
        raise ValueError(f"{name} must be finite, got {flat[~np.isfinite(flat)][0]}")
    return flat


def check_confidence(confidence: float) -> None:
    """Refuse what is no probability between 0 and 1."""
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence is a probability between 0 and 1, got {confidence}")
