"""Power of the paired t test against statsmodels, printed tables, and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from polydistill.statistics import power_of_pairs, seeds_needed, smallest_effect


@pytest.mark.parametrize("alpha", [0.05, 0.005])
@pytest.mark.parametrize("n", [2, 5, 20, 200])
@pytest.mark.parametrize("effect", [0.0, 0.05, 0.2])
def test_power_is_that_of_statsmodels(effect, n, alpha):
    power = pytest.importorskip("statsmodels.stats.power")
    theirs = power.TTestPower().power(effect / 0.5, n, alpha, alternative="two-sided")
    assert power_of_pairs(-effect, 0.5, n, alpha) == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("n", [5, 20, 500])
def test_an_effect_that_cannot_be_missed_has_all_power(n):
    assert power_of_pairs(50.0, 1.0, n) == pytest.approx(1.0)  # statsmodels gives NaN from d_z sqrt(n) of about 10 on


def test_power_without_effect_is_alpha():
    assert power_of_pairs(0.0, 1.0, 7, alpha=0.03) == pytest.approx(0.03)


def test_power_is_the_share_of_simulated_studies_that_find_the_effect():
    differences = np.random.default_rng(0).normal(0.6, 1.0, (20_000, 15))
    found = np.mean(stats.ttest_1samp(differences, 0.0, axis=1).pvalue < 0.05)
    assert power_of_pairs(0.6, 1.0, 15) == pytest.approx(found, abs=0.01)


@pytest.mark.parametrize(("effect_size", "n"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_seeds_for_small_medium_and_large_effects_are_those_of_gpower(effect_size, n):
    assert seeds_needed(-effect_size * 0.3, 0.3) == n  # 80%, alpha 0.05, two-sided, matched pairs


@pytest.mark.parametrize(("effect", "power", "alpha"), [(0.31, 0.9, 0.05), (1.7, 0.8, 0.01), (0.05, 0.5, 0.05)])
def test_one_seed_fewer_than_needed_is_too_few(effect, power, alpha):
    n = seeds_needed(effect, 1.0, power, alpha)
    assert power_of_pairs(effect, 1.0, n, alpha) >= power > power_of_pairs(effect, 1.0, n - 1, alpha)


def test_a_huge_effect_needs_two_seeds_and_none_cannot_be_seen():
    assert seeds_needed(1e4, 1.0) == 2
    assert seeds_needed(0.0, 1.0) is None


@pytest.mark.parametrize("n", [2, 3, 20, 500])
def test_the_smallest_effect_has_just_the_wanted_power(n):
    effect = smallest_effect(0.4, n, power=0.9)
    assert power_of_pairs(effect, 0.4, n) == pytest.approx(0.9, abs=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: power_of_pairs(1.0, 1.0, 1), "n must be at least 2 pairs, got 1"),
        (lambda: power_of_pairs(1.0, 0.0, 5), "deviation must be a finite number above 0, got 0.0"),
        (lambda: seeds_needed(1.0, 1.0, power=1.0), "power must be between alpha, 0.05, and 1, got 1.0"),
        (lambda: smallest_effect(1.0, 5, alpha=0.0), "alpha is a probability between 0 and 1, got 0.0"),
        (lambda: smallest_effect(1.0, 1), "n must be at least 2 pairs, got 1"),
    ],
)
def test_what_has_no_power_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
