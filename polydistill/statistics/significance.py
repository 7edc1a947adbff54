"""Whether differences within pairs are more than chance, and whether they are small enough not to matter.

Symbols: n pairs, d their differences. The tests are two-sided. The contract: pure functions of numpy arrays, randomness
only from the ``numpy.random.Generator`` that is passed; scipy does what it has.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polydistill.statistics._scipy import scipy_module
from polydistill.statistics.values import flat_values

FLIPS = 9_999  # random flips of signs; up to 13 pairs have no more in all, and each is tried once
ROUNDING = 1e-12  # of the largest value: a smaller spread is what rounding makes of equal values


def t_p(differences: ArrayLike) -> float | None:
    """p of Student's t test that the mean difference is 0 (of pairs: ``scipy.stats.ttest_rel``).

    Args:
        differences: any shape, at least one entry, finite. They count as independent draws from a normal distribution.

    Returns:
        In [0, 1]; None for one difference, and where all are equal: their spread says nothing.

    Raises:
        ValueError: no differences, or not all finite.
        MissingExtra: scipy is not installed.

    Example:
        >>> round(t_p([1.0, 2.0, 3.0]), 4)
        0.0742
    """
    flat = flat_values(differences, "differences")
    if not varies(flat):
        return None
    return float(scipy_module("stats").ttest_1samp(flat, 0.0).pvalue)


def permutation_p(differences: ArrayLike, *, generator: np.random.Generator) -> float:
    """p of the test that flips the signs of the differences (``scipy.stats.permutation_test``, paired).

    If the arms are alike, a pair is as likely one way round as the other. Nothing else is assumed.

    Args:
        differences: any shape, at least one entry, finite.
        generator: source of the flips, which are drawn from 14 pairs on; fewer have at most 2^13, and each is tried.

    Returns:
        In (0, 1], at least :func:`least_p` of as many pairs.

    Raises:
        ValueError: no differences, or not all finite.
        MissingExtra: scipy is not installed.

    Example:
        >>> permutation_p([1.0, 2.0, 3.0], generator=np.random.default_rng(0))
        0.25
    """
    flat = flat_values(differences, "differences")
    if len(flat) == 1:  # scipy asks for two
        return 1.0
    test = scipy_module("stats").permutation_test(
        (flat,), np.mean, permutation_type="samples", vectorized=True, n_resamples=FLIPS, rng=generator
    )
    return float(test.pvalue)


def least_p(n: int, *, contrasts: int = 1) -> float:
    """The smallest p that :func:`permutation_p` can give n pairs: 2 of the 2^n flips are the most extreme.

    Args:
        n: pairs, >= 1.
        contrasts: those that Holm's adjustment is over, >= 1: it multiplies the smallest p by their number.

    Returns:
        In (0, 1]. No test can find anything where it is not below alpha: 5 pairs have 0.0625.

    Raises:
        ValueError: a count below 1.

    Example:
        >>> least_p(5), least_p(6), least_p(6, contrasts=2)
        (0.0625, 0.03125, 0.0625)
    """
    for name, count in (("n", n), ("contrasts", contrasts)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    return min(1.0, contrasts * max(2.0 ** (1 - n), 2.0 / (FLIPS + 1)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjustment of several p-values: the chance of any false positive stays below alpha (Holm 1979).

    The k-th smallest of m, counted from 0, is multiplied by m - k; none is below a smaller one's, or above 1.

    Args:
        p_values: one per contrast that was named beforehand, each in [0, 1].

    Returns:
        The adjusted p-values, in the same order. A contrast whose value is at most alpha is significant.

    Raises:
        ValueError: a value is outside [0, 1].

    Example:
        >>> holm([0.02, 0.03, 0.5])
        [0.06, 0.06, 0.5]
    """
    values = np.asarray(p_values, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():  # NaN too
        raise ValueError(f"p-values must lie between 0 and 1, got {list(p_values)}")
    order = np.argsort(values)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)), 1.0)
    return [float(p) for p in adjusted]


def equivalence(differences: ArrayLike, margin: float) -> float | None:
    """p of the two one-sided t tests that the mean difference lies within ``margin`` of 0 (TOST; Schuirmann 1987).

    It is the larger of the two p-values: small only where both ends are ruled out.

    Args:
        differences: any shape, at least one entry, finite.
        margin: the largest difference that does not matter, > 0, in the unit of the differences. Choose it beforehand.

    Returns:
        In [0, 1]; below alpha the arms are equivalent. None for one difference, and where all are equal.

    Raises:
        ValueError: no differences, not all finite, or a margin that is not above 0.
        MissingExtra: scipy is not installed.

    Example:
        >>> round(equivalence([-0.1, 0.0, 0.2, 0.1], margin=0.5), 4)
        0.0039
    """
    flat = flat_values(differences, "differences")
    if not margin > 0:
        raise ValueError(f"margin must be above 0, got {margin}")
    if not varies(flat):
        return None
    stats = scipy_module("stats")
    above = stats.ttest_1samp(flat, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(flat, margin, alternative="less").pvalue
    return float(max(above, below))


def varies(values: NDArray[np.float64], *beside: NDArray[np.float64]) -> bool:
    """Whether two of the values differ by more than the rounding of them, or of the ``beside`` that they come from."""
    largest = max(float(np.abs(numbers).max()) for numbers in (values, *beside))
    return float(np.ptp(values)) > ROUNDING * largest
