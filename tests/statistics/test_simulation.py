"""The simulations of docs/statistics.md in short form, with bounds that a right method seldom misses."""

from __future__ import annotations

import numpy as np
import pytest

from polydistill.statistics import simulation
from polydistill.statistics.simulation import DIFFERENCES

PAIRS = [5, 10, 20, 50]


def stream() -> np.random.Generator:
    return np.random.default_rng(20)


@pytest.mark.parametrize("n", PAIRS)
def test_the_default_interval_covers_normal_differences_as_often_as_it_says(n):
    assert 0.93 <= simulation.covered("t", DIFFERENCES["normal"], n, 2_000, stream()) <= 0.97


def test_students_interval_errs_on_the_safe_side_for_heavy_tails_and_not_for_skewed_differences():
    assert simulation.covered("t", DIFFERENCES["t, 3 degrees"], 10, 1_000, stream()) > 0.93
    assert simulation.covered("t", DIFFERENCES["log-normal"], 10, 1_000, stream()) < 0.90


def test_percentiles_of_five_pairs_are_far_too_narrow():
    assert simulation.covered("percentile", DIFFERENCES["normal"], 5, 300, stream()) < 0.90


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_bootstraps_of_fifty_pairs_cover_normal_differences(method):
    assert 0.89 <= simulation.covered(method, DIFFERENCES["normal"], 50, 250, stream()) <= 0.98


@pytest.mark.parametrize("n", PAIRS)
def test_t_finds_at_most_the_stated_rate_where_nothing_is(n):
    assert 0.03 <= simulation.t_positives(DIFFERENCES["normal"], n, 1_000, stream()) <= 0.075


@pytest.mark.parametrize("name", ["normal", "t, 3 degrees"])
def test_the_permutation_test_needs_no_normal_differences(name):
    assert 0.025 <= simulation.permutation_positives(DIFFERENCES[name], 10, 600, stream()) <= 0.085


def test_the_permutation_test_of_five_pairs_never_finds_anything():
    assert simulation.permutation_positives(DIFFERENCES["normal"], 5, 200, stream()) == 0.0


def test_holm_holds_the_rate_over_four_contrasts_and_without_it_the_rate_is_passed():
    adjusted, alone = simulation.any_false_positive(4, 10, 600, stream())
    assert adjusted <= 0.085
    assert alone > 0.09


@pytest.mark.parametrize("n", [5, 20])
def test_arms_just_the_margin_apart_are_called_equivalent_at_most_at_the_stated_rate(n):
    assert 0.02 <= simulation.false_equivalence(DIFFERENCES["normal"], n, 600, stream()) <= 0.085


def test_an_interval_over_seeds_knows_nothing_of_new_images_and_the_two_way_one_does():
    both, alone = simulation.covered_two_ways(20, 200, 0.0, 100, stream())
    assert both >= 0.95
    assert alone <= 0.85


def test_the_two_way_interval_covers_where_five_seeds_decide():
    both, _ = simulation.covered_two_ways(5, 200, 0.5, 150, stream())
    assert both >= 0.90
