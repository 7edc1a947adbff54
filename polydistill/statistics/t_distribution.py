"""Student's t interval of the mean, for few values such as one per seed."""

from __future__ import annotations

import math

from numpy.typing import ArrayLike

from polydistill.statistics.values import Interval, check_confidence, flat_values


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
    flat = flat_values(values, "values")
    check_confidence(confidence)
    if len(flat) < 2:
        return None
    reach = t_quantile(confidence, len(flat) - 1) * flat.std(ddof=1) / math.sqrt(len(flat))
    return Interval(float(flat.mean() - reach), float(flat.mean() + reach))


def t_quantile(confidence: float, degrees: int) -> float:
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
