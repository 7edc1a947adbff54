"""Models of Stable-Baselines3 as teachers at any moment of their life, behind VecNormalize too; they stay unchanged."""

from __future__ import annotations

import importlib.util
import io
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecMonitor, VecNormalize
from torch import nn

from polydistill.errors import UserError
from polydistill.provenance import weights_sha256
from polydistill_agents.networks.nature import SIZES
from polydistill_agents.teachers import as_teacher

VECTORS = spaces.Box(-5, 5, (3,), np.float32)
FRAMES = spaces.Box(0, 255, (4, 84, 84), np.uint8)
ALGORITHMS = ["DQN", "QRDQN", "PPO", "A2C"]


class Room(gym.Env[Any, Any]):
    """Observations far from mean 0 and deviation 1; two actions."""

    def __init__(self, observation_space: spaces.Box = VECTORS) -> None:
        self.observation_space, self.action_space = observation_space, spaces.Discrete(2)
        self.rng = np.random.default_rng(0)

    def observe(self) -> np.ndarray:
        if self.observation_space.dtype == np.uint8:
            return self.rng.integers(0, 256, self.observation_space.shape, dtype=np.uint8)
        return self.rng.normal([3.0, -1.0, 0.5], [0.1, 2.0, 1.0]).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        return self.observe(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self.observe(), float(action), bool(self.rng.random() < 0.2), False, {}


def kind_of(algorithm: str) -> Any:
    if algorithm == "QRDQN":
        if importlib.util.find_spec("sb3_contrib") is None:
            pytest.skip("needs sb3-contrib, which is not installed")
        return importlib.import_module("sb3_contrib").QRDQN
    return {"DQN": DQN, "PPO": PPO, "A2C": A2C}[algorithm]


def make_model(algorithm: str, env: Any = None, policy: Any = "MlpPolicy", **kwargs: Any) -> Any:
    own: dict[str, Any] = {"n_steps": 8}
    if "DQN" in algorithm:
        own = {"buffer_size": 100, "learning_starts": 4, "train_freq": 2, "batch_size": 4}
    own |= {"batch_size": 8, "n_epochs": 1} if algorithm == "PPO" else {}
    return kind_of(algorithm)(policy, Room() if env is None else env, seed=0, device="cpu", **own, **kwargs)


def observations(count: int = 16) -> torch.Tensor:
    room = Room()
    return torch.from_numpy(np.stack([room.observe() for _ in range(count)]))


def own_scores(model: Any, seen: torch.Tensor) -> torch.Tensor:
    """As the model's own classes compute them, from what its environment shows it."""
    with torch.no_grad():
        if hasattr(model, "quantile_net"):
            return model.quantile_net(seen).mean(dim=1)
        if hasattr(model, "q_net"):
            return model.q_net(seen)
        features = model.policy.extract_features(seen, model.policy.pi_features_extractor)
        return model.policy.action_net(model.policy.mlp_extractor.forward_actor(features))


class TakeTeacher(BaseCallback):
    """Takes the model as a teacher in the midst of its learning, once a step."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[tuple[Any, torch.Tensor, bool]] = []

    def _on_step(self) -> bool:
        mode = self.model.policy.training
        teacher = as_teacher(self.model)
        assert self.model.policy.training == mode
        self.taken.append((teacher, own_scores(self.model, observations()), mode))
        return True


def stages(algorithm: str) -> dict[str, Any]:
    model = make_model(algorithm)
    learned = make_model(algorithm).learn(16)
    buffer = io.BytesIO()
    learned.save(buffer)
    loaded = kind_of(algorithm).load(buffer, device="cpu")
    again = kind_of(algorithm).load(buffer, env=Room(), device="cpu").learn(16)
    return {"fresh": model, "learned": learned, "loaded": loaded, "learned again": again}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_model_is_a_teacher_at_any_moment_and_stays_as_it_is(algorithm):
    seen = observations()
    for moment, model in stages(algorithm).items():
        expected, sha256 = own_scores(model, seen), weights_sha256(model.policy.state_dict())
        modes = [module.training for module in model.policy.modules()]
        frozen = [parameter.requires_grad for parameter in model.policy.parameters()]
        teacher = as_teacher(model)
        torch.testing.assert_close(teacher(seen), expected, rtol=1e-5, atol=1e-6, msg=moment)
        assert [module.training for module in model.policy.modules()] == modes
        assert [parameter.requires_grad for parameter in model.policy.parameters()] == frozen
        if model.env is not None:
            model.learn(16)
            assert weights_sha256(model.policy.state_dict()) != sha256, "the model goes on learning"
        torch.testing.assert_close(teacher(seen), expected, rtol=1e-5, atol=1e-6, msg=f"{moment}: the teacher does not")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_callback_takes_the_model_in_the_midst_of_its_learning(algorithm):
    callback, seen = TakeTeacher(), observations()
    make_model(algorithm).learn(24, callback)
    assert len(callback.taken) >= 24
    for teacher, expected, _ in callback.taken:
        torch.testing.assert_close(teacher(seen), expected, rtol=1e-5, atol=1e-6)
    first, last = callback.taken[0][1], callback.taken[-1][1]
    assert not torch.equal(first, last)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("policy", ["MlpPolicy", "CnnPolicy"])
def test_a_model_and_its_zip_are_one_teacher(algorithm, policy):
    narrow = {"features_extractor_kwargs": {"features_dim": 8}} if policy == "CnnPolicy" else {"net_arch": [5]}
    room = Room(FRAMES if policy == "CnnPolicy" else VECTORS)
    model = make_model(algorithm, room, policy, policy_kwargs=narrow)
    seen = torch.from_numpy(np.stack([room.observe() for _ in range(4)]))
    buffer = io.BytesIO()
    model.save(buffer)
    first, second = as_teacher(model), as_teacher(buffer)
    torch.testing.assert_close(first(seen), second(seen), rtol=1e-5, atol=1e-6)
    assert (first.kind, first.size) == (second.kind, second.size)
    assert weights_sha256(first.network.state_dict()) == weights_sha256(second.network.state_dict())
    if policy == "CnnPolicy":
        assert first.size == SIZES["nature"]._replace(hidden=8)


class Doubled(FlattenExtractor):
    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        return 2.0 * super().forward(seen)


class Masked(ActorCriticPolicy):
    def get_distribution(self, obs):
        distribution = super().get_distribution(obs)
        return self.action_dist.proba_distribution(distribution.distribution.logits + torch.tensor([-1e9, 0.0]))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_extractor_of_ones_own_is_asked_as_it_was_written(algorithm):
    model = make_model(algorithm, policy_kwargs={"features_extractor_class": Doubled}).learn(8)
    seen = observations()
    torch.testing.assert_close(as_teacher(model)(seen), own_scores(model, seen))
    if algorithm == "PPO":
        plain = make_model(algorithm).learn(8)
        plain.policy.action_net = nn.Sequential(plain.policy.action_net, nn.Tanh())
        torch.testing.assert_close(as_teacher(plain)(seen), own_scores(plain, seen))


def test_a_distribution_of_ones_own_is_asked_as_it_was_written():
    teacher = as_teacher(make_model("PPO", policy=Masked).learn(8))
    assert bool((teacher(observations()).argmax(dim=1) == 1).all())


class Halved(ActorCriticPolicy):
    def _get_action_dist_from_latent(self, latent_pi):
        return self.action_dist.proba_distribution(0.5 * self.action_net(latent_pi) + torch.tensor([-9.0, 0.0]))


def test_logits_that_are_changed_behind_the_last_layer_are_asked_as_they_were_written():
    model, seen = make_model("PPO", policy=Halved).learn(8), observations()
    expected = model.policy.get_distribution(seen).distribution.probs
    torch.testing.assert_close(as_teacher(model)(seen).softmax(dim=1), expected)


def test_a_module_that_keeps_what_it_computed_is_copied():
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.kept = nn.Linear(3, 2), {}

        def forward(self, seen):
            self.kept["last"] = [self.layer(seen)]
            return self.kept["last"][0]

    network, seen = Keeps(), observations()
    expected = network(seen)
    torch.testing.assert_close(as_teacher(network)(seen), expected.detach())
    assert network.kept["last"][0].grad_fn is not None, "its own graph is left alone"


def test_what_is_no_teacher_is_one_line():
    with pytest.raises(UserError, match="this DQN has no networks yet: build it with an environment first"):
        as_teacher(DQN("MlpPolicy", Room(), _init_setup_model=False))
    room = Room()
    room.action_space = spaces.Box(-1, 1, (2,))  # type: ignore[assignment]
    model = PPO("MlpPolicy", room, n_steps=8, batch_size=8)
    with pytest.raises(UserError, match="a teacher needs discrete actions, this PPO has Box"):
        as_teacher(model)


# ------------------------------------------------------------------ VecNormalize


def normalized(**options: Any) -> VecNormalize:
    return VecNormalize(DummyVecEnv([Room]), **options)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("options", [{}, {"clip_obs": 0.7, "epsilon": 0.5}])
def test_a_model_sees_through_the_statistics_of_that_moment(algorithm, options):
    env = normalized(**options)
    model, seen = make_model(algorithm, VecMonitor(env)).learn(32), observations()
    expected = own_scores(model, torch.from_numpy(env.normalize_obs(seen.numpy())))
    teacher = as_teacher(model)
    assert torch.equal(teacher(seen), as_teacher(model)(seen))
    torch.testing.assert_close(teacher(seen), expected, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(own_scores(model, seen), expected), "they matter"
    mean = env.obs_rms.mean.copy()
    model.learn(32)
    assert not np.array_equal(env.obs_rms.mean, mean), "the environment's statistics have moved on"
    torch.testing.assert_close(teacher(seen), expected, rtol=1e-6, atol=1e-6)
    assert env.training


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_statistics_that_are_not_used_are_no_obstacle(algorithm):
    model, seen = make_model(algorithm, normalized(norm_obs=False)).learn(16), observations()
    torch.testing.assert_close(as_teacher(model)(seen), own_scores(model, seen), rtol=1e-5, atol=1e-6)


def test_pixels_behind_vecnormalize_fit_a_game_as_they_come():
    env = VecNormalize(DummyVecEnv([lambda: Room(FRAMES)]))
    kwargs = {"normalize_images": False, "features_extractor_kwargs": {"features_dim": 8, "normalized_image": True}}
    model = make_model("PPO", env, "CnnPolicy", policy_kwargs=kwargs).learn(8)
    teacher = as_teacher(model)
    teacher.check_fits(FRAMES, spaces.Discrete(2))
    frames = np.stack([Room(FRAMES).observe() for _ in range(2)])
    expected = own_scores(model, torch.from_numpy(env.normalize_obs(frames)))
    torch.testing.assert_close(teacher(torch.from_numpy(frames)), expected, rtol=1e-5, atol=1e-5)


def test_two_normalisations_are_applied_from_the_inside_out():
    inner = normalized(clip_obs=1.5)
    outer = VecNormalize(inner, clip_obs=0.9)
    model, seen = make_model("A2C", outer).learn(32), observations()
    expected = own_scores(model, torch.from_numpy(outer.normalize_obs(inner.normalize_obs(seen.numpy()))))
    torch.testing.assert_close(as_teacher(model)(seen), expected, rtol=1e-6, atol=1e-6)


def test_what_changes_normalised_observations_once_more_is_named():
    room = VecNormalize(DummyVecEnv([lambda: Room(FRAMES)]))
    kwargs = {"normalize_images": False, "features_extractor_kwargs": {"features_dim": 8, "normalized_image": True}}
    model = make_model("A2C", VecFrameStack(room, 2, "first"), "CnnPolicy", policy_kwargs=kwargs)
    with pytest.raises(UserError, match="VecFrameStack changes what VecNormalize has normalised: wrap VecNormalize"):
        as_teacher(model)


def test_a_model_whose_statistics_are_gone_is_told_how_to_bring_them():
    env, buffer = normalized(), io.BytesIO()
    model, seen = make_model("PPO", env).learn(8), observations()
    model.save(buffer)
    with pytest.raises(UserError, match=r"as in PPO\.load\(path, env=VecNormalize\.load\(statistics, env\)\)"):
        as_teacher(PPO.load(buffer, device="cpu"))
    with pytest.raises(UserError, match=r"as in PPO\.load\(path, env=VecNormalize\.load\(statistics, env\)\)"):
        as_teacher(PPO.load(buffer, env=DummyVecEnv([Room]), device="cpu"))  # an environment without them
    loaded = PPO.load(buffer, env=env, device="cpu")
    torch.testing.assert_close(as_teacher(loaded)(seen), as_teacher(model)(seen))
