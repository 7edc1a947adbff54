"""Students of any observations: numbers, places, keys, tables of them; what is trained is what is played and saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import Tensor, nn

from polydistill_agents.distillation.algorithm import PolicyDistillation
from polydistill_agents.networks.normalized import Normalized, Statistics
from polydistill_agents.networks.observations import each, leaves, to_tensors
from polydistill_agents.teachers import as_teacher

N_ACTIONS = 3
IMAGE = spaces.Box(0, 255, (36, 36, 3), np.uint8)
SPACES: dict[str, spaces.Space[Any]] = {
    "numbers": spaces.Box(-np.inf, np.inf, (4,), np.float32),
    "numbers in double precision, as a matrix": spaces.Box(-2.0, 2.0, (2, 3), np.float64),
    "bytes": spaces.Box(0, 200, (5,), np.uint8),
    "a place": spaces.Discrete(5),
    "places": spaces.MultiDiscrete([3, 4]),
    "keys": spaces.MultiBinary(4),
    "a small image": spaces.Box(0, 255, (3, 8, 8), np.uint8),
    "a table": spaces.Dict({"speed": spaces.Box(-9, 9, (2,), np.float32), "place": spaces.Discrete(4)}),
    "a table with an image": spaces.Dict({"eye": IMAGE, "buttons": spaces.MultiBinary(2)}),
}


class Drawn(gym.Env[Any, Any]):
    """Episodes of 12 steps whose observations are drawn from a space."""

    def __init__(self, space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = space, spaces.Discrete(N_ACTIONS)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.age = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.age += 1
        return self.observation_space.sample(), 1.0, self.age == 12, False, {}


def games(space: spaces.Space[Any], n_envs: int = 4) -> VecEnv:
    return DummyVecEnv([lambda: Drawn(space) for _ in range(n_envs)])


def fixed_teacher(env: VecEnv) -> Any:
    """Scores that are linear in what Stable-Baselines3 makes of the observations."""
    space, weights = env.observation_space, {}

    def scores(observations: Any) -> Tensor:
        inputs: Any = preprocess_obs(observations, space)
        flat = torch.cat([part.flatten(1).float() for part in leaves(inputs)], dim=1)
        if "first" not in weights:
            weights["first"] = torch.randn(flat.shape[1], N_ACTIONS, generator=torch.Generator().manual_seed(0))
        return flat @ weights["first"]

    return scores


@pytest.mark.parametrize("kind", SPACES)
def test_trained_played_saved_and_loaded_are_one_function(kind: str, tmp_path: Path) -> None:
    env = make_env(kind)
    policy = "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"
    model = PolicyDistillation(
        policy,
        env,
        fixed_teacher(env),
        policy_kwargs={"net_arch": [16]},
        learning_starts=32,
        batch_size=16,
        samples_per_step=4,
        temperature=1.0,
        seed=3,
        device="cpu",
    )
    model.learn(160)
    observations = env.reset()
    seen = to_tensors(observations, "cpu")
    trained = model.student_scores(seen)
    assert trained.std() > 1e-3, "it has learned something"
    assert model.predict(observations, deterministic=True)[0].tolist() == trained.argmax(dim=1).tolist()
    path = tmp_path / "student.zip"
    model.save(path)
    stock = DQN.load(path, env=env, device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(stock.q_net(seen), trained, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(as_teacher(path)(seen), trained, rtol=1e-4, atol=1e-4)
    options = {"temperature": 1.0, "learning_starts": 0, "device": "cpu"}
    again = PolicyDistillation.load(path, env=env, teacher=fixed_teacher(env), **options)
    torch.testing.assert_close(again.student_scores(seen), trained, rtol=1e-4, atol=1e-4)
    again.learn(32, reset_num_timesteps=False)


def make_env(kind: str) -> VecEnv:
    env = games(SPACES[kind])
    return PolicyDistillation._wrap_env(env)  # as Stable-Baselines3 transposes images


def test_what_is_drawn_from_the_replay_is_what_was_observed() -> None:
    env = games(SPACES["a table"])
    seen: list[Any] = []

    def teacher(observations: Any) -> Tensor:
        seen.append(each(lambda value: value.clone(), observations))
        return torch.arange(float(N_ACTIONS)).repeat(len(observations["place"]), 1) + len(seen)

    model = PolicyDistillation(
        "MultiInputPolicy", env, teacher, buffer_size=40, learning_starts=40, temperature=1.0,
        policy_kwargs={"net_arch": [4]}, batch_size=40, seed=0, device="cpu",
    )  # fmt: skip
    seen.clear()
    model.learn(4 * 13)
    replay = model.replay
    assert replay is not None
    assert len(replay) == 40
    observations, scores = replay.gather(torch.arange(40))
    expected = each(torch.cat, {name: [one[name] for one in seen[-10:]] for name in ("speed", "place")})
    for found, wanted in zip(leaves(observations), leaves(expected), strict=True):
        assert torch.equal(found, wanted)
    assert scores[:, 0].tolist() == [float(k) for k in range(4, 14) for _ in range(4)]


def test_inputs_of_different_scale_are_brought_to_one_and_the_saved_network_sees_them_raw(tmp_path: Path) -> None:
    class Scales(Drawn):
        def step(self, action: Any) -> Any:
            observation, *rest = super().step(action)
            return observation * np.array([1e-3, 1.0, 1e4, 0.0]) + np.array([0.0, 50.0, -1e5, 7.0]), *rest

        def reset(self, **options: Any) -> Any:
            return self.step(0)[0] if super().reset(**options) is None else (self.step(0)[0], {})

    env = DummyVecEnv([lambda: Scales(spaces.Box(-1.0, 1.0, (4,), np.float64)) for _ in range(4)])
    teacher = lambda x: torch.stack([x[:, 0] * 1e3, (x[:, 1] - 50.0), (x[:, 2] + 1e5) * 1e-4], dim=1)  # noqa: E731
    model = PolicyDistillation(
        "MlpPolicy", env, teacher, temperature=1.0, learning_starts=400, batch_size=64, samples_per_step=64,
        policy_kwargs={"net_arch": [32]}, objective="policy_mse", seed=0, device="cpu",
    )  # fmt: skip
    model.learn(2_000)
    observations = torch.from_numpy(np.concatenate([env.step(np.zeros(4, dtype=int))[0] for _ in range(50)]))
    expected = teacher(observations).float()
    assert (model.student_scores(observations) - expected).abs().mean() < 0.05
    model.save(tmp_path / "student")
    with torch.no_grad():
        stock = DQN.load(tmp_path / "student", device="cpu").q_net(observations.float())
    assert (stock - expected).abs().mean() < 0.06


def test_a_student_is_loaded_as_it_was_saved_whatever_its_teachers_statistics(tmp_path: Path) -> None:
    space = spaces.Box(0.0, 100.0, (4,), np.float32)
    statistics = Statistics(np.full(4, 50.0), np.full(4, 800.0), 10.0, 1e-8)
    teacher = as_teacher(Normalized(nn.Linear(4, N_ACTIONS), statistics, space), kind="logits")
    options: Any = {"teacher": teacher, "policy_kwargs": {"net_arch": [8]}, "device": "cpu"}
    model = PolicyDistillation("MlpPolicy", games(space), learning_starts=32, batch_size=16, seed=0, **options)
    model.learn(160)
    model.save(tmp_path / "student.zip")
    again = PolicyDistillation.load(tmp_path / "student.zip", env=model.env, **options)
    seen = 100 * torch.rand(64, 4)
    torch.testing.assert_close(again.student_scores(seen), model.student_scores(seen), rtol=1e-4, atol=1e-4)


def test_a_loaded_student_of_images_in_a_table_is_as_wide_as_its_file(tmp_path: Path) -> None:
    env = make_env("a table with an image")
    widths: Any = {"net_arch": [8], "features_extractor_kwargs": {"cnn_output_dim": 16}}
    model = PolicyDistillation("MultiInputPolicy", env, None, policy_kwargs=widths, device="cpu")
    model.save(tmp_path / "student.zip")
    again = PolicyDistillation.load(tmp_path / "student.zip", device="cpu")
    seen = to_tensors(env.reset(), "cpu")
    torch.testing.assert_close(again.student_scores(seen), model.student_scores(seen))
    other = {"features_extractor_kwargs": {"cnn_output_dim": 32}}
    with pytest.raises(ValueError, match=r"features_extractor_kwargs is .*16. in the file, not .*32"):
        PolicyDistillation.load(tmp_path / "student.zip", policy_kwargs=other, device="cpu")


def test_a_small_image_in_a_table_is_refused_in_one_line() -> None:
    env = games(spaces.Dict({"eye": SPACES["a small image"], "place": spaces.Discrete(4)}))
    with pytest.raises(ValueError, match=r"eye of the observations is an image of \(3, 8, 8\).* 36 x 36: flatten it$"):
        PolicyDistillation("MultiInputPolicy", env, None, device="cpu")


def test_an_identical_student_has_its_teachers_widths_and_activation() -> None:
    env = make_vec_env("CartPole-v1", 2)
    teacher = PPO("MlpPolicy", env, policy_kwargs={"net_arch": [9, 7], "activation_fn": nn.ELU}, device="cpu")
    model = PolicyDistillation("MlpPolicy", env, teacher, device="cpu")
    assert (model.student.net_arch, model.student.activation_fn) == ([9, 7], nn.ELU)
    with pytest.warns(UserWarning, match=r"the student is of net_arch \[64, 64\]"):
        model = PolicyDistillation("MlpPolicy", env, lambda x: x[:, :2], device="cpu")
    assert model.student.net_arch == [64, 64]


def test_an_environment_is_taken_by_its_name() -> None:
    model = PolicyDistillation(
        "MlpPolicy", "CartPole-v1", lambda x: x[:, :2], policy_kwargs={"net_arch": [8]}, learning_starts=64
    )
    assert model.n_envs == 1
    model.learn(300)


@pytest.mark.parametrize(
    ("policy", "options", "message"),
    [
        ("CnnPolicy", {}, "frames .* choose 'MlpPolicy' for them"),
        ("MultiInputPolicy", {}, "policy must be 'MlpPolicy'"),
        ("MlpPolicy", {"size": "net1"}, "size is of a Nature-CNN"),
        ("MlpPolicy", {"policy_kwargs": {"features_extractor_kwargs": {"features_dim": 3}}}, "must be empty"),
    ],
)
def test_what_does_not_fit_vectors_is_refused_in_one_line(policy: str, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        PolicyDistillation(policy, make_vec_env("CartPole-v1", 1), None, device="cpu", **options)
    assert "\n" not in str(refused.value)
