"""How often intervals cover the truth, and tests find what is not there, where the truth is known.

Differences within pairs are drawn from distributions whose mean is 0, images and seeds from a model of two classifiers.
The contract: each function takes a method of this package as its user does, and gives the share of ``repeats`` draws,
whose standard error is sqrt(share (1 - share) / repeats).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from polydistill.statistics.pairs import Method, paired_interval
from polydistill.statistics.significance import equivalence, holm, permutation_p, t_p
from polydistill.statistics.t_distribution import t_interval
from polydistill.statistics.two_way import two_way_interval
from polydistill.statistics.values import Interval

Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]
# differences whose mean is 0; the skewness of the log-normal ones is 6.2
DIFFERENCES: Mapping[str, Draw] = {
    "normal": lambda generator, n: generator.normal(size=n),
    "log-normal": lambda generator, n: generator.lognormal(size=n) - math.exp(0.5),
    "t, 3 degrees": lambda generator, n: generator.standard_t(3, size=n),
}


def covered(method: Method, draw: Draw, n: int, repeats: int, generator: np.random.Generator) -> float:
    """The share of :func:`paired_interval`s of n pairs (95%) in which the true mean difference, 0, lies."""
    hits = 0
    for _ in range(repeats):
        interval = paired_interval(draw(generator, n), np.zeros(n), generator=generator, method=method)
        hits += _holds(interval, 0.0)
    return hits / repeats


def t_positives(draw: Draw, n: int, repeats: int, generator: np.random.Generator) -> float:
    """The share of t tests of n pairs with p <= 0.05, although the true mean difference is 0."""
    return _share_found((t_p(draw(generator, n)) for _ in range(repeats)), repeats)


def permutation_positives(draw: Draw, n: int, repeats: int, generator: np.random.Generator) -> float:
    """The share of permutation tests of n pairs with p <= 0.05, although the true mean difference is 0."""
    return _share_found((permutation_p(draw(generator, n), generator=generator) for _ in range(repeats)), repeats)


def any_false_positive(contrasts: int, n: int, repeats: int, generator: np.random.Generator) -> tuple[float, float]:
    """The share of studies with any false positive: with Holm's adjustment, and without.

    As many arms as ``contrasts`` are each compared with the same other one by t; all are alike, and normal.
    """
    adjusted = alone = 0
    for _ in range(repeats):
        scores = generator.normal(size=(contrasts + 1, n))
        p_values = [p for arm in scores[1:] if (p := t_p(arm - scores[0])) is not None]
        adjusted += min(holm(p_values)) <= 0.05
        alone += min(p_values) <= 0.05
    return adjusted / repeats, alone / repeats


def false_equivalence(draw: Draw, n: int, repeats: int, generator: np.random.Generator) -> float:
    """The share of TOSTs of n pairs with p <= 0.05, although the true mean difference is the margin: 1."""
    return _share_found((equivalence(draw(generator, n) + 1.0, 1.0) for _ in range(repeats)), repeats)


def covered_two_ways(
    seeds: int, images: int, spread: float, repeats: int, generator: np.random.Generator
) -> tuple[float, float]:
    """The shares of 95% intervals that hold the true difference in accuracy over all seeds and all images.

    A network is right on an image where the image's ease, the arm's way with this image, the network's own strength and
    its whim on this image add up to more than 0. All are normal: ease N(1, 1), the way N(0, 0.3^2), strength
    N(0, ``spread``^2), whim N(0, 0.6^2). Both arms are alike, so the true difference is 0.

    Returns:
        of :func:`two_way_interval`, and of :func:`t_interval` over the seeds alone.
    """
    both = alone = 0
    for _ in range(repeats):
        ease = generator.normal(1.0, 1.0, (1, 1, images))
        way = generator.normal(0.0, 0.3, (2, 1, images))
        strength = generator.normal(0.0, spread, (2, seeds, 1))
        first, second = ease + way + strength + generator.normal(0.0, 0.6, (2, seeds, images)) > 0
        both += _holds(two_way_interval(first, second, generator=generator, n_resamples=1_000), 0.0)
        alone += _holds(t_interval(first.mean(axis=1) - second.mean(axis=1)), 0.0)
    return both / repeats, alone / repeats


def _share_found(p_values: Iterable[float | None], repeats: int) -> float:
    return sum(p is not None and p <= 0.05 for p in p_values) / repeats


def _holds(interval: Interval | None, value: float) -> bool:
    return interval is not None and interval.low <= value <= interval.high
