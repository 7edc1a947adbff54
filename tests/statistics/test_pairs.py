"""Comparisons of pairs against scipy, against rliable's definitions, by hand, and at the edges."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from scipy import stats

from polydistill._environment import MissingExtra
from polydistill.statistics import (
    Interval,
    compare_pairs,
    paired_interval,
    probability_of_improvement,
    t_interval,
)

BY_HAND = [3.0, 5.0, 7.0], [2.0, 3.0, 4.0]  # differences 1, 2, 3: mean 2, deviation 1, t = 2 sqrt(3)


def arms(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Errors of two arms in percent, as they are: what the pairs share is about what they do not."""
    generator = np.random.default_rng(seed)
    shared = generator.normal(25.0, 0.5, n)
    return shared + generator.normal(0.3, 0.4, n), shared + generator.normal(0.0, 0.4, n)


def compared(first, second, **options):
    return compare_pairs(first, second, generator=np.random.default_rng(0), **options)


def test_a_comparison_of_three_pairs_is_that_by_hand():
    found = compared(*BY_HAND)
    assert (found.n, found.mean, found.deviation, found.effect_size) == (3, 2.0, 1.0, 2.0)
    assert found.interval == t_interval([1.0, 2.0, 3.0])
    # of two degrees of freedom P(|T| > t) = 1 - t / sqrt(t^2 + 2), with t = sqrt(12)
    assert found.p_t == pytest.approx(1 - (12 / 14) ** 0.5)
    assert found.p_permutation == 2 / 2**3  # no flip is as far from 0 as all up and all down
    assert found.correlation == pytest.approx(1.0)
    assert found.variance_saved == pytest.approx(1 - 1 / (4 + 1))
    # 3 is above one of the second arm and ties one; 5 and 7 are above all three
    assert found.probability_of_improvement == pytest.approx((1.5 + 3 + 3) / 9)


@pytest.mark.parametrize("n", [2, 5, 20, 50])
def test_p_and_correlation_are_scipys(n):
    first, second = arms(n)
    found = compared(first, second)
    assert found.p_t == pytest.approx(stats.ttest_rel(first, second).pvalue, rel=1e-9)
    assert found.correlation == pytest.approx(stats.pearsonr(first, second).statistic)
    interval = stats.ttest_rel(first, second).confidence_interval(0.95)
    np.testing.assert_allclose(found.interval, interval, rtol=1e-9)


def test_pairing_that_saves_nothing_is_told_as_zero_or_below():
    first, second = np.array([1.0, 1.0, -1.0, -1.0]), np.array([1.0, -1.0, 1.0, -1.0])
    assert compared(first, second).variance_saved == pytest.approx(0.0)
    assert compared(first, -first).variance_saved == pytest.approx(-1.0)  # the difference varies fourfold, not twofold
    assert compared(first, -first).correlation == pytest.approx(-1.0)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_a_bootstrap_interval_of_pairs_is_scipys_of_the_same_generator(method):
    first, second = arms(20)
    ours = paired_interval(first, second, generator=np.random.default_rng(4), method=method)
    theirs = stats.bootstrap(
        (first - second,), np.mean, n_resamples=9_999, method=method, rng=np.random.default_rng(4)
    ).confidence_interval
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    assert ours != paired_interval(first, second, generator=np.random.default_rng(5), method=method)


def test_compare_pairs_takes_the_interval_of_the_chosen_method_and_confidence():
    first, second = arms(20)
    found = compared(first, second, method="bca", confidence=0.8)
    expected = paired_interval(first, second, generator=np.random.default_rng(0), confidence=0.8, method="bca")
    assert found.interval == expected
    assert found.interval != compared(first, second, method="bca").interval


def test_bca_is_refused_below_twenty_pairs():
    with pytest.raises(ValueError, match="a BCa interval needs 20 pairs, and there are 19: choose the method t"):
        compared(*arms(19), method="bca")


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="method is one of t, percentile, bca, got BCA"):
        compared(*arms(30), method="BCA")


def test_one_pair_has_a_mean_and_no_interval():
    found = compared([3.0], [2.0])
    assert found == (1, 1.0, None, None, 1.0, None, None, None, 1.0, None)


def test_two_pairs_have_no_percentile_interval():
    generator = np.random.default_rng(0)
    assert paired_interval([1.0, 2.0], [0.0, 0.0], generator=generator, method="percentile") is None


@pytest.mark.parametrize("method", ["t", "percentile", "bca"])
def test_arms_that_are_the_same_differ_by_nothing_and_have_no_t(method):
    first, _ = arms(20)
    found = compared(first, first, method=method)
    assert found.interval == Interval(0.0, 0.0)
    assert (found.mean, found.p_t, found.effect_size, found.deviation) == (0.0, None, None, 0.0)
    assert found.p_permutation == 1.0
    assert found.probability_of_improvement == 0.5


def test_differences_that_only_rounding_makes_differ_have_no_t():
    second = np.array([75.3, 20.2, 3.1, 64.7, 31.9])
    first = second + 0.1
    assert len(set(first - second)) > 1
    found = compared(first, second)
    assert (found.p_t, found.effect_size) == (None, None)
    assert found.p_permutation == 0.0625


def test_an_arm_that_never_varies_has_no_correlation():
    found = compared([1.0, 2.0, 3.0], [0.1, 0.1, 0.1])
    assert found.correlation is None
    assert found.p_t is not None
    assert found.variance_saved == pytest.approx(0.0)


def test_arms_of_different_length_are_refused():
    with pytest.raises(ValueError, match="as many scores of one arm as of the other, got 3 and 2"):
        compared([1.0, 2.0, 3.0], [1.0, 2.0])


def test_a_comparison_draws_from_its_generator_alone():
    before = np.random.get_state()[1].copy()
    first, second = (compare_pairs(*arms(20), generator=np.random.default_rng(3)) for _ in range(2))
    assert first == second
    np.testing.assert_array_equal(np.random.get_state()[1], before)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (5, 5), (20, 7)])
def test_probability_of_improvement_is_rliables(n, m):
    generator = np.random.default_rng(n)
    first, second = generator.integers(0, 6, n), generator.integers(0, 6, m)  # whole numbers: many ties
    # rliable 1.2.0: mannwhitneyu(x, y, alternative="greater").statistic / (len(x) * len(y)), for one task
    u = stats.mannwhitneyu(first, second, alternative="greater").statistic
    assert probability_of_improvement(first, second) == pytest.approx(u / (n * m))


def test_without_scipy_the_t_interval_is_there_and_a_comparison_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    first, second = arms(20)
    assert paired_interval(first, second, generator=np.random.default_rng(0)) == t_interval(first - second)
    with pytest.raises(MissingExtra) as error:
        compared(first, second)
    assert str(error.value) == "this needs the extra study (scipy not found): pip install 'polydistill[study]'"
