"""How many seeds a wanted effect needs, and the smallest effect that some seeds can see (paired t test, two-sided).

Symbols: n pairs, d_z = effect / deviation; the test statistic is a non-central t: n - 1 degrees of freedom, shifted by
sqrt(n) d_z. Effects and deviations are in the unit of the scores; the deviation is that of the differences in pairs.
"""

from __future__ import annotations

import math

from polydistill.statistics._scipy import scipy_module

MOST = 1_000_000  # seeds; an effect that needs more is none


def power_of_pairs(effect: float, deviation: float, n: int, alpha: float = 0.05) -> float:
    """The chance that n pairs give p <= alpha where the true mean difference is ``effect``.

    Args:
        effect: of either sign.
        deviation: standard deviation of the differences, > 0.
        n: pairs, >= 2.
        alpha: of the test, in (0, 1).

    Returns:
        In [alpha, 1].

    Raises:
        ValueError: an argument is out of range.
        MissingExtra: scipy is not installed.

    Example:
        >>> round(power_of_pairs(0.5, 1.0, 34), 3)
        0.808
    """
    _check(deviation, alpha)
    if n < 2:
        raise ValueError(f"n must be at least 2 pairs, got {n}")
    stats = scipy_module("stats")
    shift = math.sqrt(n) * abs(effect) / deviation
    critical = stats.t.isf(alpha / 2, n - 1)
    # the far tail as the near one of the opposite effect: nct.cdf of the far one is NaN from a shift of 10 on
    return min(1.0, float(stats.nct.sf(critical, n - 1, shift) + stats.nct.sf(critical, n - 1, -shift)))


def seeds_needed(effect: float, deviation: float, power: float = 0.8, alpha: float = 0.05) -> int | None:
    """The fewest seeds with which :func:`power_of_pairs` reaches ``power``.

    Args:
        effect: the mean difference to be seen, of either sign.
        deviation: standard deviation of the differences, > 0.
        power: wanted chance to see it, in (alpha, 1).
        alpha: of the test, in (0, 1).

    Returns:
        At least 2; None where ``MOST`` = 1,000,000 are too few, as for an effect of 0.

    Raises:
        ValueError: an argument is out of range.
        MissingExtra: scipy is not installed.

    Example:
        >>> seeds_needed(0.5, 1.0)
        34
    """
    _check(deviation, alpha, power)
    few, enough = 1, 2
    while power_of_pairs(effect, deviation, enough, alpha) < power:
        if enough == MOST:
            return None
        few, enough = enough, min(2 * enough, MOST)
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if power_of_pairs(effect, deviation, middle, alpha) >= power else (middle, enough)
    return enough


def smallest_effect(deviation: float, n: int, power: float = 0.8, alpha: float = 0.05) -> float:
    """The mean difference that n pairs see with probability ``power``.

    Args:
        deviation: standard deviation of the differences, > 0.
        n: pairs, >= 2.
        power: in (alpha, 1).
        alpha: of the test, in (0, 1).

    Returns:
        In the unit of the deviation, > 0.

    Raises:
        ValueError: an argument is out of range.
        MissingExtra: scipy is not installed.

    Example:
        >>> round(smallest_effect(1.0, 34), 3)
        0.495
    """
    _check(deviation, alpha, power)
    highest = 1.0
    while power_of_pairs(highest, 1.0, n, alpha) < power:
        highest *= 2
    root = scipy_module("optimize").brentq(lambda effect: power_of_pairs(effect, 1.0, n, alpha) - power, 0.0, highest)
    return float(root) * deviation


def _check(deviation: float, alpha: float, power: float | None = None) -> None:
    if not 0 < deviation < math.inf:
        raise ValueError(f"deviation must be a finite number above 0, got {deviation}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is a probability between 0 and 1, got {alpha}")
    if power is not None and not alpha < power < 1:
        raise ValueError(f"power must be between alpha, {alpha}, and 1, got {power}")
