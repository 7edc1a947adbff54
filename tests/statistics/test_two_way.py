"""The bootstrap over seeds and images, by hand, by enumeration, and at the edges."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from polydistill.statistics import Interval, t_interval, two_way, two_way_interval

# what each of 3 seeds gets right of 3 images
FIRST = np.array([[1, 1, 0], [1, 0, 1], [1, 1, 1]], dtype=bool)
SECOND = np.array([[1, 0, 0], [0, 0, 1], [1, 0, 0]], dtype=bool)


def test_the_ends_are_those_of_all_draws_of_seeds_and_images_moved_by_students_t():
    differences = FIRST.astype(np.float32) - SECOND
    every = [
        differences[np.ix_(seeds, images)].mean()
        for seeds in itertools.product(range(3), repeat=3)
        for images in itertools.product(range(3), repeat=3)
    ]
    drawn = two_way._resampled_means(differences, 40_000, np.random.default_rng(0))
    assert drawn.mean() == pytest.approx(np.mean(every), abs=0.005)
    assert drawn.std() == pytest.approx(np.std(every), rel=0.02)
    low, high = two_way_interval(FIRST, SECOND, generator=np.random.default_rng(0), n_resamples=40_000)
    ends = np.quantile(every, [0.025, 0.975], method="inverted_cdf")
    # Student's t of two degrees of freedom is 4.303, and z 1.960
    expected = differences.mean() + (ends - differences.mean()) * (3 / 2) ** 0.5 * 4.303 / 1.960
    np.testing.assert_allclose((low, high), expected, rtol=1e-3)


def test_new_images_widen_what_new_seeds_alone_say():
    generator = np.random.default_rng(1)
    hard = generator.random(400) < 0.3  # images that the first arm gets right and the second does not
    second = np.broadcast_to(~hard, (5, 400)).copy()
    first = np.ones((5, 400), dtype=bool)
    first[:, :40] = generator.random((5, 40)) < 0.9
    seeds = t_interval(first.mean(axis=1) - second.mean(axis=1))
    both = two_way_interval(first, second, generator=generator)
    assert both.high - both.low > 3 * (seeds.high - seeds.low)


def test_a_bounded_block_of_draws_changes_the_draws_not_the_result(monkeypatch):
    generator = np.random.default_rng(2)
    first, second = generator.random((2, 6, 50)) < [[[0.8]], [[0.7]]]
    whole = two_way_interval(first, second, generator=np.random.default_rng(0), n_resamples=4_000)
    monkeypatch.setattr(two_way, "BLOCK", 500)
    np.testing.assert_allclose(
        two_way_interval(first, second, generator=np.random.default_rng(0), n_resamples=4_000), whole, atol=0.02
    )


@pytest.mark.parametrize("shape", [(2, 50), (50, 2)])
def test_fewer_than_three_seeds_or_images_have_no_interval(shape):
    right = np.ones(shape, dtype=bool)
    assert two_way_interval(right, ~right, generator=np.random.default_rng(0)) is None


def test_three_of_each_that_all_agree_are_one_point():
    right = np.ones((3, 3), dtype=bool)
    assert two_way_interval(right, ~right, generator=np.random.default_rng(0)) == Interval(1.0, 1.0)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (FIRST.astype(float), SECOND, "correctness must be bool, got float64 and bool"),
        (FIRST, SECOND[:2], r"must be \(seeds, images\) of both arms, got \(3, 3\) and \(2, 3\)"),
        (FIRST[0], SECOND[0], r"got \(3,\) and \(3,\)"),
        (FIRST[:0], SECOND[:0], r"got \(0, 3\) and \(0, 3\)"),
    ],
)
def test_what_is_not_the_correctness_of_two_arms_is_refused(first, second, message):
    with pytest.raises(ValueError, match=message):
        two_way_interval(first, second, generator=np.random.default_rng(0))


def test_no_resamples_are_refused():
    with pytest.raises(ValueError, match="n_resamples must be at least 1, got 0"):
        two_way_interval(FIRST, SECOND, generator=np.random.default_rng(0), n_resamples=0)
