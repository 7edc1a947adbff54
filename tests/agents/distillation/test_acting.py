"""Who acts: the teacher, the student, or for each game and step one of them by chance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from polydistill_agents.distillation.acting import StudentActs, TeacherActs, beta_schedule
from polydistill_agents.distillation.algorithm import PolicyDistillation
from tests.agents.distillation.squares import N_ACTIONS, Squares, look, make
from tests.curves_and_tables import explained

pytestmark = pytest.mark.usefixtures("one_thread")
TAG = "distill/teacher_action_share"


class Kept(BaseCallback):
    """Keeps the actions and the share of the teacher's, as it is after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.actions: list[NDArray[Any]] = []
        self.shares: list[float | None] = []

    def _on_step(self) -> bool:
        self.actions.append(self.locals["actions"].copy())
        self.shares.append(self.logger.name_to_value.get(TAG))
        return True


def small(teacher: Any = look, **options: Any) -> PolicyDistillation:
    """A student that learns little, of small frames."""
    return make(teacher, env=Squares(), **{"samples_per_step": 0.5, **options})


def always(action: int) -> Any:
    """A teacher or student who always takes ``action``."""
    return lambda observations: torch.nn.functional.one_hot(torch.full((len(observations),), action), N_ACTIONS).float()


def choosing(action: int, **options: Any) -> PolicyDistillation:
    """A student whose own actions are all ``action``, and its teacher's 0; its weights count as set."""
    model = small(always(0), **{"exploration_rate": 0.0, **options})
    model.student_scores = always(action)  # type: ignore[method-assign]
    with torch.no_grad():
        next(model.student.parameters()).mul_(1.0)
    return model


def actions_of(model: PolicyDistillation, steps: int = 640) -> NDArray[Any]:
    kept = Kept()
    model.learn(steps, kept)
    return np.concatenate(kept.actions)


def test_a_constant_a_pair_and_a_function_say_how_likely_the_teacher_acts() -> None:
    assert [beta_schedule(0.25)(left) for left in (1.0, 0.5, 0.0)] == [0.25, 0.25, 0.25]
    assert [beta_schedule((1.0, 0.2))(left) for left in (1.0, 0.5, 0.0)] == pytest.approx([1.0, 0.6, 0.2])
    assert beta_schedule(lambda left: left**2)(0.5) == 0.25


@pytest.mark.parametrize(
    ("beta", "message"),
    [
        *((value, "beta must be a probability from 0 to 1") for value in (1.5, -0.1, float("nan"), True)),
        *(
            (value, "beta must be a number, a pair .start, end., or a function")
            for value in ("1", None, (1, 0, 0), [1])
        ),
        ((1.0, 1.5), "beta must be a probability from 0 to 1, it is 1.5 at its end"),
        (lambda left: 2 * left, "beta must be a probability from 0 to 1, it is 2.0 at its start"),
        (lambda left: None, "beta must be a probability from 0 to 1, it is None at its start"),
    ],
)
def test_a_beta_that_is_no_probability_is_refused_at_once(beta: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        small(beta=beta)
    assert "\n" not in str(refused.value)


def test_at_beta_1_nothing_else_is_drawn_or_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(observations: Tensor) -> Tensor:
        raise AssertionError("the student was asked")

    model = small(exploration_rate=0.3)
    monkeypatch.setattr(model, "student_scores", asked)
    stream = np.random.default_rng()
    stream.bit_generator.state = model.explore.bit_generator.state
    kept = Kept()
    model.learn(64, kept)
    assert kept.shares == [None] * 16
    for _ in range(16):
        stream.random(4), stream.integers(N_ACTIONS, size=4)
    assert model.explore.bit_generator.state == stream.bit_generator.state


def test_at_beta_0_the_student_acts_once_it_has_weights_and_the_teacher_labels() -> None:
    model = choosing(2, beta=0.0)
    assert (actions_of(model) == 2).all()
    assert model.replay is not None
    _, scores = model.replay.gather(torch.arange(len(model.replay)))
    assert (scores.argmax(dim=1) == 0).all(), "the teacher labels"


def test_a_student_that_has_not_begun_to_learn_does_not_act() -> None:
    kept = Kept()
    small(always(0), beta=0.0, exploration_rate=0.0).learn(256, kept)
    assert (np.concatenate(kept.actions[:16]) == 0).all()
    assert kept.shares[15] == 1.0
    assert kept.shares[-1] == 0.0


def test_each_game_and_step_has_a_coin_of_its_own() -> None:
    model = choosing(2, beta=0.25)
    kept = Kept()
    model.learn(2_000, kept)
    by_teacher = np.stack(kept.actions) == 0
    assert 0.2 < by_teacher.mean() < 0.3  # 2,000 coins: 5 deviations
    assert (by_teacher.sum(axis=1) % 4 > 0).any(), "not one coin for all games"


def test_along_a_schedule_the_share_of_the_teacher_falls_and_is_logged() -> None:
    model = choosing(2, beta=(1.0, 0.0))
    by_teacher = np.split(actions_of(model, 4_000) == 0, 4)
    assert [part.mean() for part in by_teacher] == pytest.approx([7 / 8, 5 / 8, 3 / 8, 1 / 8], abs=0.06)


def test_who_acts_explores_at_the_same_rate() -> None:
    model = choosing(2, beta=0.0, exploration_rate=0.6)
    assert np.bincount(actions_of(model), minlength=3) / 640 == pytest.approx([0.2, 0.2, 0.6], abs=0.08)


def test_where_the_teacher_samples_the_student_does_from_its_own_policy() -> None:
    torn = torch.tensor([0.0, 0.0, -99.0])
    model = choosing(0, beta=0.0, play="sample", temperature=1.0)
    model.student_scores = lambda observations: torn.expand(len(observations), 3)  # type: ignore[method-assign]
    assert np.bincount(actions_of(model), minlength=3) / 640 == pytest.approx([0.5, 0.5, 0.0], abs=0.1)


def test_the_share_of_teacher_actions_is_a_curve_that_is_explained(root: Path, tmp_path: Path) -> None:
    small(beta=(1.0, 0.0), tensorboard_log=str(tmp_path)).learn(640, tb_log_name="dagger")
    events = EventAccumulator(str(tmp_path / "dagger_1"))
    events.Reload()
    shares = [event.value for event in events.Scalars(TAG)]
    assert shares[0] > 0.8
    assert shares[-1] < 0.2
    assert TAG in explained(root, "Curves of distill_atari.py and distill_agent.py")


def test_the_coins_of_a_student_that_is_gone_on_with_are_those_that_would_have_come() -> None:
    model, other = (choosing(2, beta=0.5) for _ in range(2))
    model.learn(64)
    other.replay = model.replay
    other.load_state(model.state())
    other._last_obs, other.env = model._last_obs, model.env
    for student in (model, other):
        student.replay = None
    kept = [Kept(), Kept()]
    for student, actions in zip((model, other), kept, strict=True):
        student.learn(64, actions, reset_num_timesteps=False)
    np.testing.assert_array_equal(*(actions.actions for actions in kept))


def test_another_beta_is_another_student() -> None:
    state = small(beta=(1.0, 0.5)).state()
    assert state["settings"]["beta_ends"] == [1.0, 0.5]
    with pytest.raises(ValueError, match=r"the state is of a student with beta_ends \[1.0, 0.5\], this one has"):
        small().load_state(state)


def test_the_coin_decides_and_the_actions_of_the_teacher_stay_as_they_were() -> None:
    frames = torch.from_numpy(Squares(512).reset())
    taught = TeacherActs(0.5, None, np.random.default_rng(3))(frames, look(frames))
    chosen, by_teacher = StudentActs(always(1), 0.0, None, np.random.default_rng(4)).replace(taught, frames, 0.5)
    np.testing.assert_array_equal(chosen[by_teacher], taught[by_teacher])
    assert (chosen[~by_teacher] == 1).all()
    assert 0.4 < by_teacher.mean() < 0.6
