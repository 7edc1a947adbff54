"""Tests and their adjustments against scipy, statsmodels, published values, and by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from polydistill.statistics import equivalence, holm, least_p, permutation_p, t_p

DIFFERENCES = np.array([0.31, -0.12, 0.55, 0.20, 0.71, -0.33, 0.18])


def test_t_p_is_scipys_of_one_sample():
    assert t_p(DIFFERENCES) == pytest.approx(stats.ttest_1samp(DIFFERENCES, 0.0).pvalue)


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_permutation_p_is_the_share_of_all_flips_that_are_as_far_from_zero(n):
    differences = DIFFERENCES[:n]
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=n)]
    expected = np.mean(np.array(sums) >= abs(differences.sum()) - 1e-12)
    assert permutation_p(differences, generator=np.random.default_rng(0)) == pytest.approx(expected)


def test_up_to_thirteen_pairs_every_flip_is_tried_once_and_fourteen_draw():
    differences = np.random.default_rng(0).normal(0.3, 1.0, 14)
    few = [permutation_p(differences[:13], generator=np.random.default_rng(seed)) for seed in (1, 2)]
    many = [permutation_p(differences, generator=np.random.default_rng(seed)) for seed in (1, 2)]
    assert few[0] == few[1]
    assert many[0] != many[1]
    assert many == pytest.approx([many[0]] * 2, abs=0.03)


@pytest.mark.parametrize("n", [1, 2, 5, 6, 13, 14, 30])
def test_no_permutation_p_is_below_the_least(n):
    assert permutation_p(np.arange(1.0, n + 1), generator=np.random.default_rng(0)) == pytest.approx(least_p(n))


def test_five_pairs_cannot_reach_a_twentieth_and_six_can_for_one_contrast():
    assert least_p(5) == 0.0625
    assert least_p(6) == 0.03125
    assert least_p(6, contrasts=2) == 0.0625
    assert least_p(1) == least_p(2, contrasts=9) == 1.0


@pytest.mark.parametrize(("n", "contrasts", "name"), [(0, 1, "n"), (5, 0, "contrasts")])
def test_no_pairs_or_contrasts_have_no_least_p(n, contrasts, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        least_p(n, contrasts=contrasts)


def test_holm_by_hand():
    # 0.01 x 4, 0.03 x 3, 0.04 x 2 (below the one before: raised to it), 0.9 x 1; then in the order given
    assert holm([0.04, 0.9, 0.01, 0.03]) == pytest.approx([0.09, 0.9, 0.04, 0.09])
    assert holm([0.4, 0.6]) == pytest.approx([0.8, 0.8])
    assert holm([0.7, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_what_is_no_p_is_refused(p):
    with pytest.raises(ValueError, match="p-values must lie between 0 and 1"):
        holm([0.5, p])


@pytest.mark.parametrize("n", [1, 2, 7, 30])
def test_holm_is_that_of_statsmodels(n):
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p_values = np.random.default_rng(n).beta(0.3, 2.0, n)
    np.testing.assert_allclose(holm(p_values), multitest.multipletests(p_values, method="holm")[1], rtol=1e-12)


@pytest.mark.parametrize("margin", [0.05, 0.3, 1.0])
def test_equivalence_is_the_tost_of_statsmodels(margin):
    weightstats = pytest.importorskip("statsmodels.stats.weightstats")
    first = np.random.default_rng(0).normal(25.0, 0.5, 7)
    theirs = weightstats.ttost_paired(first + DIFFERENCES, first, -margin, margin)[0]
    assert equivalence(DIFFERENCES, margin) == pytest.approx(theirs, rel=1e-9)


def test_equivalence_by_hand():
    # mean 0, deviation 1, n 3, margin 2: both t are 2 sqrt(3), and with two degrees of freedom
    # P(T > t) = (1 - t / sqrt(t^2 + 2)) / 2
    assert equivalence([-1.0, 0.0, 1.0], 2.0) == pytest.approx((1 - (12 / 14) ** 0.5) / 2)


def test_equivalence_is_small_exactly_where_the_interval_of_ninety_percent_lies_within_the_margin():
    _, high = stats.ttest_1samp(DIFFERENCES, 0.0).confidence_interval(0.9)
    assert equivalence(DIFFERENCES, high * 1.001) < 0.05 < equivalence(DIFFERENCES, high * 0.999)


@pytest.mark.parametrize("margin", [0.0, -1.0, float("nan")])
def test_a_margin_that_is_not_above_zero_is_refused(margin):
    with pytest.raises(ValueError, match="margin must be above 0"):
        equivalence(DIFFERENCES, margin)


@pytest.mark.parametrize("differences", [[0.1], [0.2, 0.2, 0.2]])
def test_differences_without_spread_have_no_t_and_no_equivalence(differences):
    assert t_p(differences) is None
    assert equivalence(differences, 1.0) is None
