"""polydistill_agents.distillation.learner without an algorithm around it, and who acts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from polydistill.learning.lesson import Lesson
from polydistill_agents.distillation.acting import TeacherActs
from polydistill_agents.distillation.learner import Learner
from polydistill_agents.networks.nature import Size, build_network
from tests.agents.distillation.squares import N_ACTIONS, SMALL, Squares, look


class Frames:
    """Labelled play of one moment, in the place of a replay."""

    def __init__(self) -> None:
        self.frames = torch.from_numpy(Squares(64, shape=SMALL).reset())

    def batches(self, n_batches: int, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.randint(len(self.frames), (n_batches, batch_size), generator=generator):
            yield self.frames[rows], look(self.frames[rows])


def make_learner() -> Learner:
    torch.manual_seed(0)
    student = build_network(spaces.Box(0, 255, SMALL, np.uint8), N_ACTIONS, Size((4, 4, 4), 16))
    lesson = Lesson("policy_kl", look, teacher_kind="q_values", temperature=0.01)
    return Learner(student, torch.optim.Adam(student.parameters(), 1e-3), lesson, seed=0)


def test_it_learns_from_any_source_of_labelled_play_without_an_algorithm() -> None:
    learner = make_learner()
    first = learner.round(Frames(), 20, 16)
    for _ in range(4):
        last = learner.round(Frames(), 20, 16)
    assert last.loss < first.loss / 2
    assert last.agreement > first.agreement
    assert last.label_share is not None
    assert 0 < last.label_share <= 1


def test_a_loaded_state_makes_the_updates_that_its_own_learner_would_have_made() -> None:
    learner, other = make_learner(), make_learner()
    learner.round(Frames(), 5, 16)
    state = learner.state()
    expected = learner.round(Frames(), 5, 16)
    other.load_state(state)
    assert not other.untouched
    assert other.round(Frames(), 5, 16) == expected


def test_the_teacher_acts_by_the_scores_that_it_gave_and_explores() -> None:
    frames = Frames().frames
    scores = look(frames)
    greedy = TeacherActs(0.0, None, np.random.default_rng(0))(frames, scores)
    np.testing.assert_array_equal(greedy, scores.argmax(dim=1).numpy())
    explored = TeacherActs(1.0, None, np.random.default_rng(0))(frames, scores)
    assert np.bincount(explored, minlength=N_ACTIONS).min() > 10  # 64 draws of 3 actions
