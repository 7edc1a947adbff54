"""polydistill_agents.distillation.learner without an algorithm around it, and who acts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from polydistill.learning.lesson import Lesson
from polydistill.learning.rewind import NonFiniteError
from polydistill_agents.distillation.acting import TeacherActs
from polydistill_agents.distillation.learner import Learner
from polydistill_agents.networks.nature import Size, build_network
from tests.agents.distillation.squares import N_ACTIONS, SMALL, Squares, look


class Frames:
    """Labelled play of one moment, in the place of a replay."""

    def __init__(self) -> None:
        self.frames = torch.from_numpy(Squares(64).reset())

    def batches(self, n_batches: int, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.randint(len(self.frames), (n_batches, batch_size), generator=generator):
            yield self.frames[rows], look(self.frames[rows])


def make_learner(averaging: float = 0.0) -> Learner:
    torch.manual_seed(0)
    student = build_network(spaces.Box(0, 255, SMALL, np.uint8), N_ACTIONS, Size((4, 4, 4), 16))
    lesson = Lesson("policy_kl", look, teacher_kind="q_values", temperature=0.01)
    return Learner(student, torch.optim.Adam(student.parameters(), 1e-3), lesson, seed=0, averaging=averaging)


def test_it_learns_from_any_source_of_labelled_play_without_an_algorithm() -> None:
    learner = make_learner()
    first = learner.round(Frames(), 20, 16)
    for _ in range(4):
        last = learner.round(Frames(), 20, 16)
    assert last.loss < first.loss / 2
    assert last.agreement > first.agreement
    assert last.label_share is not None
    assert 0 < last.label_share <= 1


def test_the_regret_of_a_round_is_what_the_actions_before_each_update_cost() -> None:
    learner, costs = make_learner(), []
    update = learner.update

    def watch(observations: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        loss, scores = update(observations, targets)
        costs.extend((max(row) - row[action]) for row, action in zip(targets.tolist(), scores.argmax(1), strict=True))
        return loss, scores

    learner.update = watch  # type: ignore[method-assign]
    assert learner.round(Frames(), 3, 16).regret == pytest.approx(np.mean(costs), rel=1e-5)
    assert max(costs) > 0, "an untrained student is not always right"


@pytest.mark.parametrize("averaging", [0.0, 0.5])
def test_a_loaded_state_makes_the_updates_that_its_own_learner_would_have_made(averaging: float) -> None:
    learner, other = make_learner(averaging), make_learner(averaging)
    learner.round(Frames(), 5, 16)
    state = learner.state()
    expected = learner.round(Frames(), 5, 16)
    other.load_state(state)
    assert not other.untouched
    assert other.round(Frames(), 5, 16) == expected
    assert_same_weights(other, learner)


def weights(learner: Learner) -> list[Tensor]:
    return [weight.detach().clone() for weight in learner.student.parameters()]


def assert_same_weights(one: Learner, other: Learner) -> None:
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(weights(one), weights(other), strict=True))


def test_between_rounds_the_student_has_the_mean_of_the_weights_that_learn() -> None:
    """After each update in rounds of one, beside a learner without a mean."""
    averaged, plain = make_learner(0.5), make_learner()
    means: list[Tensor] = []
    for k in range(1, 5):
        assert averaged.round(Frames(), 1, 16) == plain.round(Frames(), 1, 16), "the same updates"
        step = min(1.0, 2 / k)
        means = [m + step * (w - m) for m, w in zip(means or weights(plain), weights(plain), strict=True)]
        for mean, weight in zip(means, weights(averaged), strict=True):
            torch.testing.assert_close(weight, mean)
    assert not torch.equal(weights(averaged)[0], weights(plain)[0])


def test_a_bad_update_leaves_the_mean_of_those_before_it() -> None:
    good, bad = make_learner(0.5), make_learner(0.5)
    good.round(Frames(), 4, 16)
    update, made = bad.update, [0]

    def fail_at_the_fifth(observations: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        made[0] += 1
        loss, scores = update(observations, targets)
        return (loss * torch.nan if made[0] == 5 else loss), scores

    bad.update = fail_at_the_fifth  # type: ignore[method-assign]
    with pytest.raises(NonFiniteError):
        bad.round(Frames(), 8, 16)
    assert_same_weights(bad, good)


def test_the_teacher_acts_by_the_scores_that_it_gave_and_explores() -> None:
    frames = Frames().frames
    scores = look(frames)
    greedy = TeacherActs(0.0, None, np.random.default_rng(0))(frames, scores)
    np.testing.assert_array_equal(greedy, scores.argmax(dim=1).numpy())
    explored = TeacherActs(1.0, None, np.random.default_rng(0))(frames, scores)
    assert np.bincount(explored, minlength=N_ACTIONS).min() > 10  # 64 draws of 3 actions
