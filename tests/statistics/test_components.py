"""Components of variance by hand, against scipy's analysis of variance, and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from polydistill.statistics import VarianceComponents, variance_components


def test_components_by_hand():
    # means 2 and 6; within (1 + 1 + 1 + 1) / 2 = 2; between 2 * (4 + 4) / 1 = 16; (16 - 2) / 2 students each = 7
    assert variance_components([[1.0, 3.0], [5.0, 7.0]]) == VarianceComponents(teachers=7.0, students=2.0)


def test_teachers_whose_students_differ_more_than_they_do_count_as_alike():
    assert variance_components([[0.0, 2.0], [0.0, 2.0]]) == VarianceComponents(teachers=0.0, students=2.0)


def test_the_ratio_of_the_mean_squares_is_scipys_f():
    groups = np.random.default_rng(0).normal(size=(12, 3)) + np.arange(12.0)[:, None]
    teachers, students = variance_components(groups)
    assert 1 + 3 * teachers / students == pytest.approx(stats.f_oneway(*groups).statistic)


@pytest.mark.parametrize("counts", [(2,) * 10, (1, 2, 3, 2, 5, 1, 2, 2, 4, 1)], ids=["equal", "unequal"])
def test_components_are_right_on_average(counts):
    generator = np.random.default_rng(1)
    found = []
    for _ in range(2_000):
        groups = [generator.normal(generator.normal(0.0, 2.0), 1.0, n) for n in counts]
        found.append(variance_components(groups))
    np.testing.assert_allclose(np.mean(found, axis=0), (4.0, 1.0), rtol=0.05)


@pytest.mark.parametrize("groups", [[], [[1.0, 2.0]], [[1.0], [2.0]]], ids=["none", "one teacher", "one student each"])
def test_what_cannot_be_told_apart_is_refused(groups):
    with pytest.raises(ValueError, match="at least two teachers are needed, one of them with two students"):
        variance_components(groups)
