"""RecurrentPPO as a teacher: step by step the scores of sb3-contrib, also from its zip, over games that begin again."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from polydistill_agents.files.inspection import convert_agent, inspect_agent
from polydistill_agents.networks.observations import take, to_tensors
from polydistill_agents.teachers import as_teacher
from tests.agents.samples import members_of, refusal
from tests.fuzz.seeds import pack

sb3_contrib = pytest.importorskip("sb3_contrib")

VECTOR = spaces.Box(-3, 3, (3,), np.float32)
FRAMES = spaces.Box(0, 255, (1, 36, 36), np.uint8)
TABLE = spaces.Dict(camera=FRAMES, key=spaces.Discrete(4))
STARTS = np.array([[1, 1], [0, 0], [0, 1], [0, 0], [1, 0], [1, 1], [0, 0]], bool)  # (steps, games)
CASES = {
    "own memory of the critic": ("MlpLstmPolicy", VECTOR, {}),
    "shared": ("MlpLstmPolicy", VECTOR, {"shared_lstm": True, "enable_critic_lstm": False}),
    "critic without": ("MlpLstmPolicy", VECTOR, {"enable_critic_lstm": False, "activation_fn": torch.nn.ReLU}),
    "two layers": ("MlpLstmPolicy", VECTOR, {"n_lstm_layers": 2, "net_arch": {"pi": [5], "vf": []}}),
    "drop-out": ("MlpLstmPolicy", VECTOR, {"n_lstm_layers": 2, "lstm_kwargs": {"dropout": 0.5}}),
    "apart": ("MlpLstmPolicy", VECTOR, {"share_features_extractor": False}),
    "frames": ("CnnLstmPolicy", FRAMES, {"features_extractor_kwargs": {"features_dim": 8}}),
    "table": ("MultiInputLstmPolicy", TABLE, {"features_extractor_kwargs": {"cnn_output_dim": 8}}),
    "Discrete": ("MlpLstmPolicy", spaces.Discrete(5), {}),
}


class Room(gym.Env[Any, Any]):
    """Observations drawn from a space; three actions."""

    def __init__(self, space: spaces.Space[Any] = VECTOR) -> None:
        self.observation_space, self.action_space = space, spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, False, False, {}


def make_model(policy: str = "MlpLstmPolicy", env: Any = None, **kwargs: Any) -> Any:
    kwargs = {"lstm_hidden_size": 7} | kwargs
    env = Room() if env is None else env
    model = sb3_contrib.RecurrentPPO(policy, env, n_steps=8, batch_size=8, policy_kwargs=kwargs, device="cpu", seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.normal_(generator=generator).mul_(2.0 * max(parameter[0].numel(), 4) ** -0.5)
    return model


def observe(space: spaces.Space[Any], games: int = 2) -> list[Any]:
    """One observation of each game for each of the steps."""
    space.seed(3)
    steps = []
    for _ in range(len(STARTS)):
        rows = [space.sample() for _ in range(games)]
        one = {name: np.stack([np.asarray(row[name]) for row in rows]) for name in space} if isinstance(
            space, spaces.Dict) else np.stack([np.asarray(row) for row in rows])  # fmt: skip
        steps.append(one)
    return steps


def own_play(model: Any, steps: list[Any]) -> list[tuple[torch.Tensor, np.ndarray]]:
    """Normalised logits and greedy actions of sb3-contrib's own model, step by step."""
    model.policy.set_training_mode(False)
    found, state = [], None
    memory = tuple(torch.zeros(model.policy.lstm_hidden_state_shape).repeat(1, 2, 1) for _ in range(2))
    for seen, starts in zip(steps, STARTS, strict=True):
        with torch.no_grad():
            given = torch.as_tensor(starts, dtype=torch.float32)
            distribution, memory = model.policy.get_distribution(to_tensors(seen, "cpu"), memory, given)
        actions, state = model.predict(seen, state=state, episode_start=starts, deterministic=True)
        found.append((distribution.distribution.logits, actions))
    return found


@pytest.mark.parametrize("name", CASES)
def test_scores_step_by_step_are_those_of_sb3_contrib_from_the_model_and_from_its_zip(name, tmp_path):
    policy, space, kwargs = CASES[name]
    model, steps = make_model(policy, Room(space), **kwargs), observe(space)
    model.save(tmp_path / "a.zip")
    expected = own_play(model, steps)
    assert (expected[1][0] - expected[6][0]).abs().max() > 1e-2
    for source in (model, tmp_path / "a.zip"):
        teacher = as_teacher(source)
        assert teacher.has_memory
        assert teacher.kind == "logits"
        teacher.check_fits(space, spaces.Discrete(3))
        teacher.begin(2)
        for seen, starts, (logits, actions) in zip(steps, STARTS, expected, strict=True):
            scores = teacher.label(to_tensors(seen, "cpu"), starts)
            torch.testing.assert_close(scores.log_softmax(dim=1), logits, rtol=1e-5, atol=1e-6)
            assert (scores.argmax(dim=1).numpy() == actions).all()


def test_a_memory_matters_and_a_call_leaves_it_alone():
    teacher, steps = as_teacher(make_model()), [to_tensors(seen, "cpu") for seen in observe(VECTOR)]
    teacher.begin(2)
    first = teacher.label(steps[0], STARTS[0])
    torch.testing.assert_close(teacher(steps[0]), first)
    second = teacher.label(steps[1], STARTS[1])
    assert (teacher(steps[1]) - second).abs().max() > 1e-2
    again = as_teacher(teacher)
    again.begin(2)
    again.label(steps[0], STARTS[0])
    for _ in range(3):
        again(steps[3])
    torch.testing.assert_close(again.label(steps[1], STARTS[1]), second)


def test_rows_move_the_memory_of_their_games_alone():
    teacher, steps = as_teacher(make_model()), [to_tensors(seen, "cpu") for seen in observe(VECTOR)]
    teacher.begin(2)
    expected = []
    for seen, starts in zip(steps, STARTS, strict=True):
        expected.append(teacher.label(seen, starts))
    for rows in (lambda game: np.array([game]), lambda game: np.arange(2) == game):
        teacher.begin(2)
        for game in (1, 0):
            for seen, starts, whole in zip(steps, STARTS, expected, strict=True):
                at = rows(game)
                torch.testing.assert_close(teacher.label(take(seen, at), starts[at], at), whole[at])


def test_a_memory_is_plain_tensors_that_another_process_goes_on_with(tmp_path):
    model, steps = make_model(n_lstm_layers=2), [to_tensors(seen, "cpu") for seen in observe(VECTOR)]
    teacher = as_teacher(model)
    assert teacher.memory() is None
    teacher.begin(2)
    for seen, starts in zip(steps[:2], STARTS[:2], strict=True):
        teacher.label(seen, starts)
    torch.save(teacher.memory(), tmp_path / "memory.pt")
    expected = teacher.label(steps[2], STARTS[2])
    other = as_teacher(model)
    other.remember(torch.load(tmp_path / "memory.pt", weights_only=True))
    torch.testing.assert_close(other.label(steps[2], STARTS[2]), expected)
    other.remember(None)
    with pytest.raises(ValueError, match="begin"):
        other.label(steps[2], STARTS[2])
    other.begin(3)
    with pytest.raises(ValueError, match="2 starts for 3 games"):
        other.label(steps[2], STARTS[2])


class Doubled(FlattenExtractor):
    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        return 2.0 * super().forward(seen)


def test_an_extractor_of_ones_own_is_asked_as_it_was_written():
    model, steps = make_model(features_extractor_class=Doubled), observe(VECTOR)
    teacher = as_teacher(model)
    teacher.begin(2)
    for seen, starts, (logits, _) in zip(steps, STARTS, own_play(model, steps), strict=True):
        scores = teacher.label(to_tensors(seen, "cpu"), starts)
        torch.testing.assert_close(scores.log_softmax(dim=1), logits, rtol=1e-5, atol=1e-6)


def test_one_behind_vecnormalize_sees_through_its_statistics(tmp_path):
    env = VecNormalize(DummyVecEnv([Room]), clip_obs=1.1)
    model = make_model("MlpLstmPolicy", env).learn(16)
    steps = observe(VECTOR)
    expected = own_play(model, [env.normalize_obs(seen) for seen in steps])
    model.save(tmp_path / "a.zip")
    env.save(str(tmp_path / "vecnormalize.pkl"))
    for source in (model, tmp_path / "a.zip"):
        teacher = as_teacher(source)
        teacher.begin(2)
        for seen, starts, (logits, _) in zip(steps, STARTS, expected, strict=True):
            scores = teacher.label(to_tensors(seen, "cpu"), starts)
            torch.testing.assert_close(scores.log_softmax(dim=1), logits, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(teacher.input_statistics.mean, env.obs_rms.mean)


def test_a_plain_teacher_has_the_same_methods_and_remembers_nothing():
    teacher = as_teacher(lambda seen: seen[:, :2])
    teacher.begin(2)
    seen = torch.arange(6.0).view(2, 3)
    assert torch.equal(teacher.label(seen, np.array([True, False]), np.array([0, 1])), seen[:, :2])
    assert not teacher.has_memory
    assert teacher.memory() is None
    teacher.remember(None)


# ------------------------------------------------------------------ files


def test_a_file_is_told_and_is_no_dqn(tmp_path):
    make_model(n_lstm_layers=2).save(tmp_path / "a.zip")
    told = dict(inspect_agent(str(tmp_path / "a.zip")))
    assert told["algorithm"] == "RecurrentPPO"
    assert told["network"].startswith("vectors of 3 > LSTM 7 > 7 > 64 > 64 > 3 actions (Tanh); ")
    line = refusal(lambda path: convert_agent(path, tmp_path / "b.zip"), tmp_path / "a.zip")
    assert "cannot be a DQN: it has a memory of its game (LSTM)" in line


def rewritten(source: Path, target: Path, change: Any) -> Path:
    members = members_of(source)
    weights = dict(torch.load(io.BytesIO(members["policy.pth"]), weights_only=True))
    buffer = io.BytesIO()
    torch.save(change(weights), buffer)
    target.write_bytes(pack(members | {"policy.pth": buffer.getvalue()}))
    return target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {n: v for n, v in w.items() if n != "lstm_actor.weight_hh_l0"}, "lstm.weight_hh_l0' is missing"),
        (lambda w: w | {"lstm_actor.weight_ih_l0": torch.zeros(28, 9)}, "3 features, the LSTM has 9 inputs"),
        (lambda w: w | {"lstm_actor.weight_ih_l0": torch.zeros(28)}, "not of matrices"),
        (lambda w: w | {"lstm_actor.weight_ih_l0_reverse": torch.zeros(28, 3)}, "do not form a RecurrentPPO"),
        (lambda w: w | {"lstm_actor.bias_ih_l0": torch.zeros(9)}, "do not form a RecurrentPPO"),
    ],
)
def test_weights_that_form_no_memory_are_one_line(tmp_path, change, message):
    make_model().save(tmp_path / "a.zip")
    assert message in refusal(as_teacher, rewritten(tmp_path / "a.zip", tmp_path / "bad.zip", change))


def test_an_lstm_of_another_kind_is_refused(tmp_path):
    make_model(lstm_kwargs={"bidirectional": False}).save(tmp_path / "a.zip")
    assert "its policy_kwargs hold 'lstm_kwargs', which is not known" in refusal(as_teacher, tmp_path / "a.zip")
    members = members_of(tmp_path / "a.zip")
    data = json.loads(members["data"])
    assert data["policy_kwargs"]["lstm_kwargs"] == {"bidirectional": False}
