"""Two arms of a study, compared pair by pair: how large the difference is, and how sure.

A pair is two runs that share a seed: teacher, initial weights, order of the data. The contract: pure functions of numpy
arrays, randomness only from the ``numpy.random.Generator`` that is passed; what one pair cannot say is None.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polydistill.statistics._scipy import scipy_module
from polydistill.statistics.bootstrap import FEWEST
from polydistill.statistics.significance import permutation_p, t_p, varies
from polydistill.statistics.t_distribution import t_interval
from polydistill.statistics.values import Interval, check_confidence, flat_values

Method = Literal["t", "percentile", "bca"]
METHODS: tuple[Method, ...] = ("t", "percentile", "bca")
BCA_FROM = 20  # pairs: with fewer, the correction for skewness is mostly noise


class PairedComparison(NamedTuple):
    """The first arm less the second, over n pairs; values in the unit of the scores, probabilities in [0, 1]."""

    n: int
    mean: float  # of the differences
    interval: Interval | None  # of the mean difference over new seeds; None below 2 pairs (percentile: below 3)
    p_t: float | None  # None below 2 pairs, and where all differences are equal
    p_permutation: float
    effect_size: float | None  # d_z: mean / deviation; None where p_t is
    correlation: float | None  # Pearson's, of the two arms over the pairs; None where an arm does not vary
    variance_saved: float | None  # share of the variance of an unpaired difference; below 0 pairing has cost some
    probability_of_improvement: float  # that a run of the first arm is above one of the second, whatever its seed
    deviation: float | None  # standard deviation of the differences; 0 where all are equal, None below 2 pairs


def compare_pairs(
    first: ArrayLike,
    second: ArrayLike,
    *,
    generator: np.random.Generator,
    confidence: float = 0.95,
    method: Method = "t",
) -> PairedComparison:
    """All that the pairs say about the difference of two arms.

    Args:
        first: ``(pairs,)`` scores of one arm, finite.
        second: ``(pairs,)`` scores of the other in the same order of seeds. Where less is better, as with an error, a
            negative mean speaks for ``first``, and its probability of improvement is 1 minus the one returned.
        generator: source of the flips of the permutation test and of the resamples of a bootstrap.
        confidence: probability in (0, 1).
        method: of the interval; see :func:`paired_interval`.

    Raises:
        ValueError: no pairs, different numbers, not all finite, or an option out of range.
        MissingExtra: scipy is not installed.

    Example:
        >>> found = compare_pairs([3.0, 5.0, 7.0], [2.0, 3.0, 4.0], generator=np.random.default_rng(0))
        >>> found.mean, found.effect_size, found.p_permutation
        (2.0, 2.0, 0.25)
    """
    one, other = _pairs(first, second)
    differences = one - other
    mean = float(differences.mean())
    vary = varies(differences, one, other)
    deviation = float(differences.std(ddof=1)) if vary else 0.0
    return PairedComparison(
        n=len(one),
        mean=mean,
        interval=paired_interval(one, other, generator=generator, confidence=confidence, method=method),
        p_t=t_p(differences) if vary else None,
        p_permutation=permutation_p(differences, generator=generator),
        effect_size=mean / deviation if vary else None,
        correlation=float(np.corrcoef(one, other)[0, 1]) if varies(one) and varies(other) else None,
        variance_saved=_variance_saved(one, other),
        probability_of_improvement=probability_of_improvement(one, other),
        deviation=deviation if len(one) > 1 else None,
    )


def paired_interval(
    first: ArrayLike,
    second: ArrayLike,
    *,
    generator: np.random.Generator,
    confidence: float = 0.95,
    method: Method = "t",
    n_resamples: int = 9_999,
) -> Interval | None:
    """Interval of the mean difference within pairs: where it would lie over new seeds, all else being the same.

    Args:
        first: ``(pairs,)`` scores, finite.
        second: likewise, in the same order of seeds.
        generator: source of the resamples of a bootstrap; unused by t.
        confidence: probability in (0, 1).
        method: "t", Student's, the one to take; "percentile", too narrow for few pairs; "bca", bias-corrected and
            accelerated (Efron 1987), from ``BCA_FROM`` = 20 pairs on. docs/statistics.md says how often each covers.
        n_resamples: of a bootstrap, >= 1.

    Returns:
        In the unit of the scores; None for one pair, and for a percentile interval of two.

    Raises:
        ValueError: no pairs, different numbers, not all finite, too few for BCa, or an option out of range.
        MissingExtra: a bootstrap without scipy.

    Example:
        >>> low, high = paired_interval([3.0, 5.0, 7.0], [2.0, 3.0, 4.0], generator=np.random.default_rng(0))
        >>> round(low, 3), round(high, 3)
        (-0.484, 4.484)
    """
    one, other = _pairs(first, second)
    check_confidence(confidence)
    if method not in METHODS:
        raise ValueError(f"method is one of {', '.join(METHODS)}, got {method}")
    if method == "bca" and len(one) < BCA_FROM:
        raise ValueError(f"a BCa interval needs {BCA_FROM} pairs, and there are {len(one)}: choose the method t")
    if method == "t":
        return t_interval(one - other, confidence=confidence)
    if len(one) < FEWEST:
        return None
    differences = one - other
    if not varies(differences, one, other):  # nothing to resample, and BCa would divide 0 by 0
        mean = float(differences.mean())
        return Interval(mean, mean)
    found = scipy_module("stats").bootstrap(
        (one, other),
        _mean_difference,
        paired=True,
        vectorized=True,
        method={"percentile": "percentile", "bca": "BCa"}[method],
        confidence_level=confidence,
        n_resamples=n_resamples,
        rng=generator,
    )
    return Interval(float(found.confidence_interval.low), float(found.confidence_interval.high))


def probability_of_improvement(first: ArrayLike, second: ArrayLike) -> float:
    """How often a run of the first arm is above a run of the second, each with each, ties counting half.

    It is Mann and Whitney's U over the number of comparisons, as in rliable (Agarwal et al. 2021, section 4.3): the
    seeds of the two runs need not be the same.

    Args:
        first: any shape, at least one entry, finite.
        second: likewise; the numbers may differ.

    Returns:
        In [0, 1]; 0.5 where the arms are alike.

    Raises:
        ValueError: no scores, or not all finite.

    Example:
        >>> probability_of_improvement([1.0, 2.0], [0.0, 2.0])
        0.625
    """
    one, other = flat_values(first, "first"), flat_values(second, "second")
    ordered = np.sort(other)
    below = np.searchsorted(ordered, one, side="left") + np.searchsorted(ordered, one, side="right")
    return float(below.sum() / (2 * len(one) * len(other)))


def _pairs(first: ArrayLike, second: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    one, other = flat_values(first, "first"), flat_values(second, "second")
    if len(one) != len(other):
        raise ValueError(f"pairs need as many scores of one arm as of the other, got {len(one)} and {len(other)}")
    return one, other


def _variance_saved(one: NDArray[np.float64], other: NDArray[np.float64]) -> float | None:
    if len(one) < 2:
        return None
    apart = float(one.var(ddof=1) + other.var(ddof=1))
    return 1.0 - float((one - other).var(ddof=1)) / apart if varies(one) or varies(other) else None


def _mean_difference(one: NDArray[np.float64], other: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    return np.asarray(one.mean(axis=axis) - other.mean(axis=axis))
