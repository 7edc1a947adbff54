"""The mean of a network's weights over its last updates."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from polydistill.learning.average import WeightAverage


def one_weight() -> nn.Linear:
    return nn.Linear(1, 1, bias=False)


def learn(average: WeightAverage, *weights: float) -> float:
    """The mean, after updates that lead to ``weights``."""
    average.hide()
    for weight in weights:
        with torch.no_grad():
            average.network.weight.fill_(weight)
        average.add()
    average.show()
    return shown(average)


def shown(average: WeightAverage) -> float:
    return float(average.network.weight.item())


def test_it_is_the_mean_by_hand_over_a_share_of_the_updates_so_far() -> None:
    # share 1/2: steps of 1, 1, 2/3, 1/2 of the way from the mean to 3, 6, 12 and 0
    assert learn(WeightAverage(one_weight(), 0.5), 3.0, 6.0, 12.0, 0.0) == pytest.approx(5.0)
    assert learn(WeightAverage(one_weight(), 1.0), 3.0, 6.0, 12.0, 0.0) == pytest.approx(5.25), "1: of all"


def test_it_reaches_over_the_last_share_of_the_updates_however_many_there_are() -> None:
    for updates in (100, 1_000):
        lag = updates - learn(WeightAverage(one_weight(), 0.1), *(float(k) for k in range(1, updates + 1)))
        assert lag / updates == pytest.approx(1 / 11, abs=0.01)  # weights fall as age^9: mean age 1/11


def test_between_rounds_the_network_shows_the_mean_and_learns_on_from_its_own_weights() -> None:
    whole, parts = (WeightAverage(one_weight(), 0.5) for _ in range(2))
    learn(whole, 3.0, 6.0, 12.0, 0.0)
    assert learn(parts, 3.0, 6.0) == pytest.approx(6.0)
    parts.hide()
    assert shown(parts) == 6.0
    parts.show()
    assert learn(parts, 12.0) == pytest.approx(10.0)
    parts.hide()
    assert shown(parts) == 12.0, "what learns is not the mean"
    parts.show()
    assert learn(parts, 0.0) == pytest.approx(shown(whole))


def test_weights_that_others_set_between_rounds_learn_on_and_nothing_of_before_is_kept() -> None:
    average = WeightAverage(one_weight(), 0.5)
    learn(average, 3.0, 6.0, 12.0)
    with torch.no_grad():
        average.network.weight.fill_(7.0)
    average.hide()
    assert shown(average) == 7.0
    assert average.updates == 0
    assert learn(average, 8.0) == 8.0


def test_a_loaded_state_goes_on_as_its_own_would_have_done() -> None:
    average, other = (WeightAverage(one_weight(), 0.25) for _ in range(2))
    learn(average, 3.0, 6.0, 12.0)
    other.network.load_state_dict(average.network.state_dict())
    other.load_state(average.state())
    assert shown(other) == shown(average)
    assert learn(other, 1.0, 2.0) == learn(average, 1.0, 2.0)
    other.hide()
    assert shown(other) == 2.0
