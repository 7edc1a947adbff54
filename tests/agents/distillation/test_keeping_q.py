"""Students that keep Q-values: what they give, what is saved of them, and that a stock DQN learns on from them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.env_util import make_vec_env
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from polydistill_agents.distillation.algorithm import PolicyDistillation
from polydistill_agents.files.sb3_zip import how_to_go_on
from polydistill_agents.networks.q_scale import QScale, find_q_scale
from polydistill_agents.networks.regret import q_errors
from polydistill_agents.teachers import Teacher, as_teacher
from tests.agents.distillation.squares import Squares, look, make
from tests.curves_and_tables import OF_Q_VALUES, explained

pytestmark = pytest.mark.usefixtures("one_thread")

T = 0.5


def value_of_poles(observations: Tensor) -> Tensor:
    """Q-values of CartPole near 100, whose action to take depends on how the pole falls."""
    _, speed, angle, turn = observations.float().unbind(1)
    push = 8.0 * angle + 4.0 * turn + 0.5 * speed
    return 100.0 - 20.0 * angle.abs()[:, None] + torch.stack([-push, push], dim=1)


def distil(objective: str = "policy_kl_q", **options: Any) -> PolicyDistillation:
    settings: dict[str, Any] = {
        "temperature": T, "objective": objective, "policy_kwargs": {"net_arch": [32]}, "learning_starts": 256,
        "batch_size": 64, "samples_per_step": 32, "learning_rate": 3e-3, "averaging": 0.1, "seed": 0, "device": "cpu",
    }  # fmt: skip
    env = make_vec_env("CartPole-v1", 4, seed=1)
    return PolicyDistillation("MlpPolicy", env, value_of_poles, **{**settings, **options})


def states_of_play() -> Tensor:
    env, seen = make_vec_env("CartPole-v1", 8, seed=9), []
    shown: Any = env.reset()
    for _ in range(40):
        seen.append(torch.from_numpy(np.array(shown)))
        shown = env.step(value_of_poles(seen[-1]).argmax(1).numpy())[0]
    return torch.cat(seen)


def test_the_zip_holds_the_teachers_q_values_and_a_stock_dqn_learns_on_from_it(tmp_path: Path) -> None:
    model = distil().learn(4_000)
    assert model.score_kind == "q_values"
    path = tmp_path / "student.zip"
    model.save(path)
    stock = DQN.load(path, env=make_vec_env("CartPole-v1", 1, seed=2), device="cpu")
    states = states_of_play()
    with torch.no_grad():
        found = stock.q_net(states)
    wanted = value_of_poles(states)
    torch.testing.assert_close(found, model.student_scores(states), rtol=1e-5, atol=1e-4)
    assert (found.argmax(1) == wanted.argmax(1)).float().mean() > 0.95
    assert (found - wanted).abs().mean() < T, "KL leaves them wherever they are: a hundred away"
    assert isinstance(stock.q_net.q_net[-1], nn.Linear)
    assert not isinstance(stock.q_net.q_net[-1], QScale)
    assert as_teacher(path).kind == "q_values"
    assert "continue training" in how_to_go_on(path, as_teacher(path).kind)
    before = copy.deepcopy(stock.q_net.state_dict())
    stock.learn(1_200)
    moved = [(stock.q_net.state_dict()[name] - value).abs().max().item() for name, value in before.items()]
    assert 0 < max(moved) < 1.0
    with torch.no_grad():
        assert (stock.q_net(states) - wanted).abs().mean() < 10.0, "it goes on from where it was"


def test_a_student_of_kl_alone_is_nowhere_near_them() -> None:
    states = states_of_play()
    scores = distil("policy_kl").learn(1_600).student_scores(states)
    best, _ = q_errors(T * scores, value_of_poles(states))
    assert best.mean() < -90.0


def test_q_values_of_another_size_are_learned_alike() -> None:
    """The outputs have a scale of their own, so that a hundred times the Q-values and T make the same updates."""
    large = PolicyDistillation(
        "MlpPolicy", make_vec_env("CartPole-v1", 4, seed=1), lambda seen: 128.0 * value_of_poles(seen),
        temperature=128.0 * T, objective="policy_kl_q", policy_kwargs={"net_arch": [32]}, learning_starts=256,
        batch_size=64, samples_per_step=32, learning_rate=3e-3, averaging=0.1, seed=0, device="cpu",
    ).learn(1_600)  # fmt: skip
    small, states = distil().learn(1_600), states_of_play()
    torch.testing.assert_close(large.student_scores(states) / 128, small.student_scores(states), rtol=0, atol=0.05 * T)


def test_a_stop_between_two_rounds_changes_no_bit() -> None:
    whole = distil()
    whole.learn(800)
    whole.learn(800, reset_num_timesteps=False)
    first = distil()
    first.learn(800)
    state = copy.deepcopy(first.state())
    other = distil()
    other.set_env(first.env)  # type: ignore[arg-type]
    other.replay, other._last_obs = first.replay, first._last_obs
    other.load_state(state)
    other.learn(800, reset_num_timesteps=False)
    scale, same = find_q_scale(other.student), find_q_scale(first.student)
    assert scale is not None
    assert same is not None
    assert scale.shift == same.shift != 0
    for ours, theirs in zip(other.student.state_dict().values(), whole.student.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_student_from_a_file_learns_on_from_its_function(tmp_path: Path) -> None:
    distil().learn(1_600).save(tmp_path / "student.zip")
    options: Any = {"objective": "policy_kl_q", "temperature": T, "learning_starts": 256, "batch_size": 64}
    again = PolicyDistillation.load(
        tmp_path / "student.zip", make_vec_env("CartPole-v1", 4, seed=3), teacher=value_of_poles, seed=0,
        device="cpu", samples_per_step=4, learning_rate=1e-9, **options,
    )  # fmt: skip
    states = states_of_play()
    before = again.student_scores(states)
    scale = find_q_scale(again.student)
    assert scale is not None
    assert not scale.is_fitted
    again.learn(512)
    assert scale.is_fitted
    assert scale.shift > 50
    torch.testing.assert_close(again.student_scores(states), before, rtol=1e-5, atol=1e-3)


def test_frames_and_the_next_generation_have_q_values_too(tmp_path: Path) -> None:
    model = make(objective="policy_kl_q", temperature=0.1, learning_rate=1e-3).learn(1_280)
    model.save(tmp_path / "first.zip")
    frames = torch.from_numpy(Squares(64, seed=99).reset())
    best, worst = q_errors(model.student_scores(frames), look(frames))
    assert best.abs().mean() < 0.1
    assert worst.abs().mean() < 0.1
    model.save(tmp_path / "compact.safetensors")
    teacher, compact = as_teacher(tmp_path / "first.zip"), as_teacher(tmp_path / "compact.safetensors")
    for one in (teacher, compact):
        torch.testing.assert_close(one(frames), model.student_scores(frames), rtol=1e-4, atol=1e-4)
    assert compact.kind == "q_values"
    second = make(teacher=teacher, objective="policy_kl_q", temperature=0.1)
    assert second.lesson.teacher_kind == second.score_kind == "q_values"
    assert second.lesson.temperature == 0.1


def test_a_teacher_of_logits_is_refused_in_one_line_before_any_work() -> None:
    with pytest.raises(ValueError, match="keeps Q-values, and the teacher gives logits: choose policy_kl") as refused:
        make(objective="policy_kl_q", teacher=Teacher(look, kind="logits"))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("objective", ["policy_kl_q", "policy_mse"])
def test_the_errors_of_q_values_are_curves_that_are_explained(objective: str, root: Path, tmp_path: Path) -> None:
    make(objective=objective, tensorboard_log=str(tmp_path)).learn(320, tb_log_name="twin")
    events = EventAccumulator(str(tmp_path / "twin_1"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert tags >= OF_Q_VALUES
    assert tags <= explained(root, "Curves of distill_atari.py and distill_agent.py")
    assert "distill/label_share" not in tags


def test_the_errors_are_those_of_the_best_and_of_the_worst_action_that_stays() -> None:
    student = torch.tensor([[1.0, 7.0, 3.0, 9.0], [0.0, 0.0, 0.0, 0.0]])
    teacher = torch.tensor([[5.0, 2.0, 4.0, -torch.inf], [1.0, -2.0, 0.5, 0.0]])
    best, worst = q_errors(student, teacher)
    assert best.tolist() == [2.0, -1.0]
    assert worst.tolist() == [5.0, 2.0]


def test_the_scale_is_no_function_of_what_is_masked_and_folds_into_the_layer() -> None:
    layer = nn.Linear(5, 3)
    scaled, features = QScale(layer), torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(scaled(features), layer(features))
    function = scaled.folded()
    scaled.fit(torch.tensor([[10.0, 14.0, -torch.inf], [12.0, -torch.inf, 12.0]]))
    assert (scaled.shift, scaled.scale) == (12.0, pytest.approx(2**0.5))
    torch.testing.assert_close(scaled(features), 12.0 + 2**0.5 * layer(features))
    torch.testing.assert_close(scaled.folded()(features), scaled(features))
    scaled.load(function)
    torch.testing.assert_close(scaled(features), function(features), rtol=1e-5, atol=1e-5)
    assert scaled.weight is layer.weight, "the optimiser's"
    scaled.fit(torch.full((4, 3), 6.0))
    assert (scaled.shift, scaled.scale) == (6.0, 1.0)
