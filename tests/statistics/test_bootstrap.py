"""Statistics against scipy, against simulated truth, and at the edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from polydistill.statistics import (
    Interval,
    bootstrap,
    bootstrap_interval,
    bootstrap_normalized_interval,
    iqm,
    pooled_interval,
    t_interval,
)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 30, 31, 100])
def test_iqm_is_scipys_mean_trimmed_by_a_quarter_at_either_end(n):
    scores = np.random.default_rng(n).lognormal(3, 2, n)
    assert iqm(scores) == pytest.approx(stats.trim_mean(scores, 0.25))


def test_iqm_takes_every_entry_of_a_runs_by_tasks_array_once():
    scores = np.random.default_rng(0).normal(size=(5, 7))
    assert iqm(scores) == pytest.approx(stats.trim_mean(scores, 0.25, axis=None))


def test_iqm_is_not_moved_by_one_outlier():
    assert iqm([1, 1, 1, 1, 1, 1, 1, 1e9]) == 1.0


def test_bootstrap_interval_is_scipys_percentile_interval():
    scores = np.random.default_rng(1).exponential(10, 30)
    ours = bootstrap_interval(scores, generator=np.random.default_rng(0), n_resamples=100_000)
    theirs = stats.bootstrap(
        (scores,), np.mean, n_resamples=100_000, method="percentile", rng=np.random.default_rng(5)
    ).confidence_interval
    np.testing.assert_allclose(ours, theirs, atol=0.1)


def test_normalized_interval_is_scipys_percentile_interval_of_the_ratio():
    generator = np.random.default_rng(2)
    student, teacher, random = generator.normal(-14, 4, 25), generator.normal(-10, 6, 40), -20.7

    def ratio(s, t, axis):
        return (s.mean(axis) - random) / (t.mean(axis) - random)

    ours = bootstrap_normalized_interval(student, teacher, random, generator=generator, n_resamples=100_000)
    theirs = stats.bootstrap(
        (student, teacher), ratio, n_resamples=100_000, method="percentile", paired=False, rng=np.random.default_rng(5)
    ).confidence_interval
    np.testing.assert_allclose(ours, theirs, atol=0.01)
    assert ours.low < ratio(student, teacher, 0) < ours.high


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 9, 10, 31, 200])
def test_t_interval_is_scipys(n, confidence):
    values = np.random.default_rng(n).normal(54.0, 0.4, n)
    theirs = stats.t.interval(confidence, n - 1, values.mean(), stats.sem(values))
    np.testing.assert_allclose(t_interval(values, confidence=confidence), theirs, rtol=1e-10)


def test_t_interval_of_three_values_is_that_of_the_printed_table():
    # mean 2, standard error 1 / sqrt(3), and 4.303 is the table's value for two degrees of freedom
    np.testing.assert_allclose(t_interval([1.0, 2.0, 3.0]), (2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5), atol=3e-4)


def test_t_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(6)
    hits = sum(low <= 7.0 <= high for low, high in (t_interval(generator.normal(7.0, 2.0, 3)) for _ in range(2000)))
    assert 0.935 < hits / 2000 < 0.965


def test_one_value_has_no_t_interval_and_equal_values_have_one_point():
    assert t_interval([3.0]) is None
    assert t_interval([3.0, 3.0, 3.0]) == Interval(3.0, 3.0)


def test_pooled_interval_is_scipys_of_the_mean_of_the_means():
    generator = np.random.default_rng(7)
    groups = [generator.normal(10, 1, 30), generator.normal(20, 5, 12), generator.exponential(3, 20)]

    def mean_of_means(a, b, c, axis):
        return (a.mean(axis) + b.mean(axis) + c.mean(axis)) / 3

    ours = pooled_interval(groups, generator=np.random.default_rng(0), n_resamples=100_000)
    theirs = stats.bootstrap(
        groups, mean_of_means, n_resamples=100_000, method="percentile", paired=False, rng=np.random.default_rng(5)
    ).confidence_interval
    np.testing.assert_allclose(ours, theirs, atol=0.02)


def test_pooled_interval_knows_nothing_of_the_spread_between_groups():
    groups = [[0.0, 0.0, 0.0], [100.0, 100.0, 100.0]]
    assert pooled_interval(groups, generator=np.random.default_rng(0)) == Interval(50.0, 50.0)


def test_pooled_interval_of_one_group_is_the_bootstrap_interval():
    scores = np.random.default_rng(0).normal(size=20)
    pooled = pooled_interval([scores], generator=np.random.default_rng(7))
    assert pooled == bootstrap_interval(scores, generator=np.random.default_rng(7))


def test_a_group_of_fewer_than_three_scores_leaves_no_pooled_interval():
    assert pooled_interval([[1.0, 2.0, 3.0], [1.0, 2.0]], generator=np.random.default_rng(0)) is None


def test_no_groups_are_refused():
    with pytest.raises(ValueError, match="at least one group"):
        pooled_interval([], generator=np.random.default_rng(0))


@pytest.mark.parametrize(("confidence", "low", "high"), [(0.95, 0.90, 0.97), (0.5, 0.42, 0.57)])
def test_interval_of_the_mean_covers_the_truth_as_often_as_it_says(confidence, low, high):
    generator = np.random.default_rng(3)
    hits = 0
    for _ in range(600):
        scores = generator.gamma(4.0, 5.0, 30)  # mean 20, skewed
        interval = bootstrap_interval(scores, generator=generator, confidence=confidence, n_resamples=500)
        hits += interval.low <= 20.0 <= interval.high
    assert low < hits / 600 < high


def test_normalized_interval_covers_the_true_ratio_as_often_as_it_says():
    generator = np.random.default_rng(4)
    hits = 0
    for _ in range(600):
        student, teacher = generator.normal(15, 4, 30), generator.normal(16, 3, 30)
        interval = bootstrap_normalized_interval(student, teacher, -20.7, generator=generator, n_resamples=500)
        hits += interval.low <= 35.7 / 36.7 <= interval.high
    assert 0.90 < hits / 600 < 0.975


def test_equal_generators_give_equal_intervals_and_the_global_one_stays_as_it_was():
    scores = np.random.default_rng(0).normal(size=20)
    before = np.random.get_state()[1].copy()
    first, second = (bootstrap_interval(scores, generator=np.random.default_rng(7)) for _ in range(2))
    assert first == second
    assert first != bootstrap_interval(scores, generator=np.random.default_rng(8))
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_a_bounded_block_of_draws_changes_no_digit(monkeypatch):
    scores = np.random.default_rng(0).normal(size=20)
    whole = bootstrap_interval(scores, generator=np.random.default_rng(7), n_resamples=1001)
    monkeypatch.setattr(bootstrap, "BLOCK", 64)
    assert bootstrap_interval(scores, generator=np.random.default_rng(7), n_resamples=1001) == whole


@pytest.mark.parametrize("scores", [[3.0], [3.0, 4.0]])
def test_fewer_than_three_scores_have_no_interval(scores):
    generator = np.random.default_rng(0)
    assert bootstrap_interval(scores, generator=generator) is None
    assert bootstrap_normalized_interval(scores, [1.0, 2.0, 3.0], 0.0, generator=generator) is None
    assert bootstrap_normalized_interval([1.0, 2.0, 3.0], scores, 0.0, generator=generator) is None


def test_three_scores_have_an_interval():
    interval = bootstrap_interval([1.0, 2.0, 3.0], generator=np.random.default_rng(0))
    # all three are 1 in one of 27 resamples, more than the 2.5% of a tail: the ends are the least and the greatest
    assert interval == Interval(1.0, 3.0)


def test_a_teacher_hardly_better_than_random_play_leaves_the_ratio_unbounded():
    teacher = np.array([-21.0] * 9 + [-1.0])  # mean -19, but a third of the resamples never meet the one good game
    interval = bootstrap_normalized_interval([-10.0, -9.0, -9.5], teacher, -20.9, generator=np.random.default_rng(0))
    assert interval.low > 0
    assert interval.high == math.inf
    worse = bootstrap_normalized_interval([-21.0] * 3, teacher, -20.9, generator=np.random.default_rng(0))
    assert worse.low == -math.inf
    assert worse.high < 0


def test_a_teacher_no_better_than_random_play_is_refused():
    with pytest.raises(ValueError, match="not above chance"):
        bootstrap_normalized_interval([1.0] * 3, [-21.0, -20.4, -20.8], -20.7, generator=np.random.default_rng(0))


@pytest.mark.parametrize("scores", [[], [1.0, math.nan], [math.inf]])
def test_scores_that_are_missing_or_not_finite_are_refused(scores):
    with pytest.raises(ValueError, match="scores must be finite"):
        iqm(scores)
    with pytest.raises(ValueError, match="scores must be finite"):
        bootstrap_interval(scores, generator=np.random.default_rng(0))
    with pytest.raises(ValueError, match="scores must be finite"):
        pooled_interval([[1.0, 2.0], scores], generator=np.random.default_rng(0))
    with pytest.raises(ValueError, match="values must be finite"):
        t_interval(scores)


@pytest.mark.parametrize("options", [{"confidence": 0.0}, {"confidence": 1.0}, {"n_resamples": 0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        bootstrap_interval([1.0, 2.0], generator=np.random.default_rng(0), **options)
    with pytest.raises(ValueError, match=next(iter(options))):
        pooled_interval([[1.0, 2.0]], generator=np.random.default_rng(0), **options)


@pytest.mark.parametrize("confidence", [0.0, 1.0])
def test_a_confidence_out_of_range_is_refused_by_t_interval(confidence):
    with pytest.raises(ValueError, match="confidence"):
        t_interval([1.0, 2.0], confidence=confidence)
