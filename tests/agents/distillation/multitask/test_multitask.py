"""polydistill_agents.distillation.multitask.algorithm: several teachers, one student."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor, nn

from polydistill.learning.rewind import NonFiniteError
from polydistill_agents.distillation.multitask import learner
from polydistill_agents.distillation.multitask.algorithm import MultitaskDistillation
from polydistill_agents.files.multitask_file import read_multitask, write_multitask
from polydistill_agents.networks.architecture import Architecture
from polydistill_agents.networks.nature import Size
from polydistill_agents.teachers import as_teacher
from tests.agents.distillation.squares import Squares, look

TORSO = Architecture(Size((4, 4, 4), 16), None, (), nn.ReLU)


def look_the_other_way(frames: Tensor) -> Tensor:
    """Logits of another teacher, of five actions: the square's place from the right, plus one."""
    return torch.cat([torch.full((len(frames), 1), -5.0), 9.0 * look(frames).flip(1), torch.zeros(len(frames), 1)], 1)


class Recorder(BaseCallback):
    """Keeps every step of a task."""

    def __init__(self, steps: list[Any]) -> None:
        super().__init__()
        self.steps = steps

    def _on_step(self) -> bool:
        self.steps.append(self.model.last_step)  # type: ignore[attr-defined]
        return True


@pytest.fixture(autouse=True)
def few_initial_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner, "INITIAL_STATES", 32)


def make(seed: int = 0, teachers: Any = None, **options: Any) -> MultitaskDistillation:
    envs: Any = {"right": Squares(2), "left": Squares(2, seed=1, n_actions=5)}
    teachers = teachers or {"right": look, "left": as_teacher(look_the_other_way, kind="logits")}
    settings = {"buffer_size": 400, "learning_starts": 32, "batch_size": 16, "samples_per_step": 8, "train_freq": 8}
    settings |= {"temperatures": {"right": 0.05, "left": None}, "device": "cpu", "learning_rate": 3e-3}
    return MultitaskDistillation(envs, teachers, TORSO, controller=(8,), seed=seed, **settings | options)


def agreement(model: MultitaskDistillation, task: str) -> float:
    frames = torch.from_numpy(Squares(200, seed=9).reset())
    seat = model.seats[task]
    return float((seat.student_scores(frames).argmax(1) == seat.teacher(frames).argmax(1)).float().mean())


@pytest.mark.parametrize("outputs", [None, {"right": (0, 1, 2), "left": (3, 4, 5, 6, 7)}])
def test_one_student_learns_two_tasks_of_other_actions_and_kinds_of_scores(outputs: Any, tmp_path: Path) -> None:
    model = make(outputs=outputs).learn(300)
    assert agreement(model, "right") > 0.9
    assert agreement(model, "left") > 0.9
    assert model.n_updates == 300, "8 samples for each of 300 steps of two tasks, in batches of 16"
    model.save(tmp_path)
    frames = Squares(50, seed=9).reset()
    for task, seat in model.seats.items():
        stock = DQN.load(tmp_path / f"{task}.zip", device="cpu")
        assert np.array_equal(stock.predict(frames, deterministic=True)[0], seat.predict(frames, deterministic=True)[0])
    assert seat.score_kind == "logits"


def test_each_lesson_has_the_temperature_of_its_teachers_kind() -> None:
    model = make()
    assert model.seats["right"].lesson.temperature == 0.05
    assert model.seats["left"].lesson.temperature == 1.0
    regression = make(objective="policy_mse")
    assert {name: seat.score_kind for name, seat in regression.seats.items()} == {"right": "q_values", "left": "logits"}


def look_far_away(frames: Tensor) -> Tensor:
    """Q-values of the other task, of another size, with five actions."""
    return 50.0 + 10.0 * torch.cat([torch.zeros(len(frames), 1), look(frames).flip(1), -torch.ones(len(frames), 1)], 1)


@pytest.mark.parametrize(
    "outputs", [None, {"right": (0, 1, 2), "left": (3, 4, 5, 6, 7)}], ids=["own heads", "one head"]
)
def test_each_head_keeps_the_q_values_of_its_task_and_files_hold_plain_layers(outputs: Any, tmp_path: Path) -> None:
    teachers = {"right": look, "left": look_far_away}
    model = make(
        teachers=teachers, outputs=outputs, objective="policy_kl_q", objective_kwargs={"q_weight": 0.1},
        temperatures={"right": 0.2, "left": 2.0},
    ).learn(300)  # fmt: skip
    model.save(tmp_path)
    frames = torch.from_numpy(Squares(50, seed=9).reset())
    kinds = {task: seat.score_kind for task, seat in model.seats.items()}
    assert kinds == {"right": "q_values", "left": "q_values"}
    write_multitask(tmp_path / "whole.safetensors", model.network, kinds)
    whole = read_multitask(tmp_path / "whole.safetensors", Squares(1).observation_space).network
    for task, seat in model.seats.items():
        learned = seat.student_scores(frames)
        stock = DQN.load(tmp_path / f"{task}.zip", device="cpu")
        alone = whole.alone(task)
        with torch.no_grad():
            torch.testing.assert_close(stock.q_net(frames), learned, rtol=1e-4, atol=1e-3)
            torch.testing.assert_close(alone(frames), learned, rtol=1e-4, atol=1e-3)
        assert type(stock.q_net.q_net[-1]) is type(alone.q_net[-1]) is nn.Linear
        if outputs is None:  # one head has one scale for both, on which the smaller Q-values are learned late
            assert agreement(model, task) > 0.9
    far = model.seats["left"].student_scores(frames)
    assert (far - look_far_away(frames)).abs().mean() < 4.0, "two T"


def test_an_update_leaves_the_other_heads_and_their_moments_alone() -> None:
    model = make()
    model.learn(32)
    batches = model.learner._draw({n: s.played for n, s in model.seats.items()}, 40, 16, model.learner.order)
    batch = next(batch for batch in batches if batch.task == "left")
    before = [weight.clone() for weight in model.network.heads["right"].parameters()]
    moments = [model.optimizer.state[weight]["exp_avg"].clone() for weight in model.network.heads["right"].parameters()]
    torso = model.network.features.linear[0].weight.clone()
    model.learner.update_from(batch)
    after = list(model.network.heads["right"].parameters())
    assert all(map(torch.equal, before, after))
    assert all(torch.equal(m, model.optimizer.state[w]["exp_avg"]) for m, w in zip(moments, after, strict=True))
    assert not torch.equal(torso, model.network.features.linear[0].weight)


def drawn(model: MultitaskDistillation, n: int) -> Counter[str]:
    sources = {name: seat.played for name, seat in model.seats.items()}
    return Counter(batch.task for batch in model.learner._draw(sources, n, 1, model.learner.order))


def test_tasks_are_drawn_by_their_weights_and_by_the_gaps_to_their_teachers() -> None:
    model = make(weights={"right": 3.0, "left": 1.0})
    model.learn(16 * 8)
    assert model.learner.shares() == {"right": 0.75, "left": 0.25}
    counts = drawn(model, 2000)
    assert 1400 < counts["right"] < 1600, "a deviation of 19 at a mean of 1500"
    model.learner.weighting, model.learner.gaps = "gap", {"right": 0.0, "left": 0.6}
    # weights 3 and 1 times 0 + 0.03 and 0.6 + 0.03
    assert model.learner.shares()["right"] == pytest.approx(0.09 / 0.72)
    model.learner.gaps = {"right": 0.0, "left": 0.0}
    assert model.learner.shares()["right"] == pytest.approx(0.75)


def test_the_gap_is_the_running_mean_of_what_is_not_agreed() -> None:
    model = make(weighting="gap")
    model.learn(8 * 16)
    before = dict(model.learner.gaps)
    rounds = model.learner.round({name: seat.played for name, seat in model.seats.items()}, 12, 16)
    for name, done in rounds.items():
        assert model.learner.gaps[name] == pytest.approx(0.9 * before[name] + 0.1 * (1 - done.agreement))
    assert all(0 < gap < 1 for gap in model.learner.gaps.values())


@pytest.mark.parametrize("options", [{}, {"averaging": 0.3, "weighting": "gap", "beta": 0.5}])
def test_a_state_goes_on_as_the_student_itself_would_have(options: Any) -> None:
    states: list[Any] = []
    whole, steps = make(**options), {"right": [], "left": []}
    recorders = {name: Recorder(each) for name, each in steps.items()}

    def keep() -> None:
        if whole.steps == 64:
            states.append((whole.state(), {name: list(each) for name, each in steps.items()}))

    whole.learn(128, recorders, between_rounds=keep)
    (state, played), other = states[0], make(**options)
    for name, each in played.items():
        games = other.seats[name].games
        first = games.reset()
        for step in each:  # as a recording does: the games are played again
            games.step(step.actions)
        other.continue_play(name, first, each)
    other.load_state(state)
    other.learn(64, reset=False)
    assert other.n_updates == whole.n_updates
    assert all(map(torch.equal, other.network.state_dict().values(), whole.network.state_dict().values()))
    assert other.learner.gaps == whole.learner.gaps


def test_a_bad_batch_of_one_task_names_it_and_leaves_the_student_as_it_was_before() -> None:
    model = make(objective="policy_mse")
    model.learn(32)
    good = {name: value.clone() for name, value in model.network.state_dict().items()}
    model.learner.weights = {"right": 1e-9, "left": 1.0}  # the first batch is a bad one
    model.seats["left"].played.scores.fill_(1e38)
    with pytest.raises(NonFiniteError, match="left: the loss policy_mse is inf: generation 1 at step 32, update"):
        model.train(20)
    assert all(torch.equal(good[name], value) for name, value in model.network.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teachers": {"right": look}}, "the task left has no teacher"),
        ({"teachers": {"right": look, "left": look, "up": look}}, "the teacher of up has no task"),
        ({"weights": {"right": 1.0}}, "weights must be of the tasks right, left, got right"),
        ({"weights": {"right": 1.0, "left": 0.0}}, "the weight of left must be positive and finite"),
        ({"temperatures": {"right": 1.0, "lft": None}}, "temperatures must be of the tasks right, left"),
        (
            {"objective": "policy_mse", "outputs": {"right": (0, 1, 2), "left": (0, 1, 2, 3, 4)}},
            "one head gives scores of one kind, and the teachers would ask it for",
        ),
        ({"weighting": "equally"}, "unknown weighting .equally.; did you mean equal"),
    ],
)
def test_what_no_student_could_learn_together_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**change)


def test_tasks_of_other_observations_or_numbers_of_games_are_refused() -> None:
    one = Squares(2)
    both: Any = {"a": look, "b": look}
    with pytest.raises(ValueError, match=r"a shows \(4, 36, 36\), b shows \(3, 40, 40\)"):
        MultitaskDistillation({"a": one, "b": Squares(2, shape=(3, 40, 40))}, both, TORSO)  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="as many games at once"):
        MultitaskDistillation({"a": one, "b": Squares(3)}, both, TORSO)  # type: ignore[dict-item]
