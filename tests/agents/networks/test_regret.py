"""polydistill_agents.networks.regret: what an action costs by a teacher's scores, worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from polydistill_agents.networks.regret import random_regrets, regrets, values_of

SCORES = torch.tensor([[1.0, 4.0, 1.0], [2.0, 2.0, 2.001]])


def test_of_q_values_it_is_their_difference_in_their_own_unit() -> None:
    values = values_of(SCORES, "q_values")
    torch.testing.assert_close(regrets(values, torch.tensor([0, 2])), torch.tensor([3.0, 0.0]))
    torch.testing.assert_close(random_regrets(values)[0], torch.tensor(2.0))


def test_a_disagreement_where_the_gap_is_tiny_costs_next_to_nothing() -> None:
    values = values_of(SCORES, "q_values")
    assert regrets(values, torch.tensor([1, 0]))[1] == pytest.approx(0.001, rel=1e-3)


def test_of_logits_it_is_a_difference_of_probabilities_whatever_the_unlikely_ones_are() -> None:
    logits = torch.tensor([[math.log(0.7), math.log(0.3), -1e4]])
    values = values_of(logits, "logits")
    assert regrets(values, torch.tensor([1])).item() == pytest.approx(0.4)
    assert regrets(values, torch.tensor([2])).item() == pytest.approx(0.7)


@pytest.mark.parametrize(("kind", "expected"), [("q_values", 2.0), ("logits", 1 / (1 + math.exp(-2)))])
def test_a_masked_action_costs_a_finite_amount(kind: str, expected: float) -> None:
    masked = torch.tensor([[3.0, -torch.inf, 1.0]])
    lost = regrets(values_of(masked, kind), torch.tensor([1]))
    assert lost.item() == pytest.approx(expected), "of Q-values that of the worst that is allowed"
