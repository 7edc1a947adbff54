"""Zips of agents behind VecNormalize: seen through the statistics that lie beside them, which are never unpickled."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from polydistill.errors import UserError
from polydistill_agents.files.inspection import convert_agent, inspect_agent
from polydistill_agents.files.normalization import read_statistics
from polydistill_agents.files.sb3_zip import read_agent, rebuild_network
from polydistill_agents.networks.normalized import Statistics
from polydistill_agents.teachers import as_teacher
from tests.agents.samples import refusal

VECTORS = spaces.Box(-5, 5, (3,), np.float32)
FRAMES = spaces.Box(0, 255, (2, 36, 36), np.uint8)


class Room(gym.Env[Any, Any]):
    """Observations far from mean 0 and deviation 1; two actions."""

    def __init__(self, observation_space: spaces.Space[Any] = VECTORS) -> None:
        self.observation_space, self.action_space = observation_space, spaces.Discrete(2)
        self.rng = np.random.default_rng(0)

    def observe(self) -> Any:
        if isinstance(self.observation_space, spaces.Dict):
            return {"a": self.rng.normal(size=3).astype(np.float32)}
        if len(self.observation_space.shape or ()) == 3 and self.observation_space.dtype == np.float32:
            return self.rng.uniform(-1, 1, FRAMES.shape).astype(np.float32)
        if self.observation_space.dtype == np.uint8:
            return self.rng.integers(0, 256, FRAMES.shape, dtype=np.uint8)
        return self.rng.normal([3.0, -1.0, 0.5], [0.1, 2.0, 1.0]).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observe(), 1.0, bool(self.rng.random() < 0.2), False, {}


def learned(
    algorithm: str, folder: Path, space: spaces.Space[Any] = VECTORS, name: str = "a.zip", **options: Any
) -> Any:
    """A model behind VecNormalize, saved as ``a.zip``; its environment is not."""
    env = VecNormalize(DummyVecEnv([lambda: Room(space)]), **options)
    kwargs: dict[str, Any] = {"net_arch": [4]}
    if space is FRAMES:
        kwargs |= {
            "features_extractor_kwargs": {"features_dim": 8, "normalized_image": True},
            "normalize_images": False,
        }
        kwargs["net_arch"] = []
    kind: Any = {"DQN": DQN, "PPO": PPO, "A2C": A2C}[algorithm]
    own: dict[str, Any] = {"buffer_size": 50, "learning_starts": 8} if algorithm == "DQN" else {"n_steps": 8}
    own |= {"batch_size": 8, "n_epochs": 1} if algorithm == "PPO" else {}
    policy = "CnnPolicy" if space is FRAMES else "MlpPolicy"
    model = kind(policy, env, policy_kwargs=kwargs, seed=0, device="cpu", **own).learn(24)
    model.save(folder / name)
    return model


def observe(space: spaces.Space[Any] = VECTORS) -> torch.Tensor:
    room = Room(space)
    return torch.from_numpy(np.stack([room.observe() for _ in range(8)]))


@pytest.mark.parametrize("algorithm", ["DQN", "PPO", "A2C"])
@pytest.mark.parametrize("space", [VECTORS, FRAMES], ids=["vectors", "frames"])
def test_a_zip_sees_through_the_statistics_beside_it_as_its_model_does(tmp_path, algorithm, space):
    model = learned(algorithm, tmp_path, space, clip_obs=1.5, epsilon=0.1)
    model.get_env().save(tmp_path / "vecnormalize.pkl")
    whole, zipped = as_teacher(model), as_teacher(tmp_path / "a")
    torch.testing.assert_close(zipped(observe(space)), whole(observe(space)), rtol=1e-5, atol=1e-6)
    assert zipped.kind == whole.kind
    (tmp_path / "vecnormalize.pkl").unlink()
    if algorithm == "DQN":  # whose zip does not tell
        assert not torch.allclose(as_teacher(tmp_path / "a.zip")(observe(space)), whole(observe(space)))
    else:
        assert "put beside it what env.save('vecnormalize.pkl') writes" in refusal(as_teacher, tmp_path / "a.zip")


@pytest.mark.parametrize("algorithm", ["DQN", "PPO"])
def test_statistics_that_leave_observations_alone_are_no_obstacle(tmp_path, algorithm):
    model = learned(algorithm, tmp_path, norm_obs=False)
    model.get_env().save(tmp_path / "vecnormalize.pkl")
    torch.testing.assert_close(as_teacher(tmp_path / "a.zip")(observe()), as_teacher(model)(observe()))
    convert_agent(tmp_path / "a.zip", tmp_path / "b.zip")


@pytest.mark.parametrize("algorithm", ["PPO", "A2C"])
def test_an_agent_that_never_saw_normalised_observations_leaves_the_statistics_of_another_alone(tmp_path, algorithm):
    learned("PPO", tmp_path, name="other.zip").get_env().save(tmp_path / "vecnormalize.pkl")
    env: Any = DummyVecEnv([Room])
    kind: Any = {"PPO": PPO, "A2C": A2C}[algorithm]
    own: dict[str, Any] = {"batch_size": 8, "n_epochs": 1} if algorithm == "PPO" else {}
    model = kind("MlpPolicy", env, policy_kwargs={"net_arch": [4]}, seed=0, device="cpu", n_steps=8, **own)
    model.learn(8).save(tmp_path / "plain.zip")
    torch.testing.assert_close(as_teacher(tmp_path / "plain.zip")(observe()), as_teacher(model)(observe()))


def test_images_of_floats_stay_floats_behind_statistics(tmp_path):
    floats = spaces.Box(-1.0, 1.0, (2, 36, 36), np.float32)  # no pixels: VecNormalize leaves its type and bounds
    model = learned("PPO", tmp_path, floats)
    model.get_env().save(tmp_path / "vecnormalize.pkl")
    for source in (model, tmp_path / "a.zip"):
        assert as_teacher(source).network.observation_space == floats


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_statistics_of_every_protocol_are_read(tmp_path, protocol):
    env = learned("A2C", tmp_path).get_env()
    env.clip_obs, env.epsilon = np.float64(2.5), np.float32(0.25)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(env, protocol))
    found = read_statistics(tmp_path / "x.pkl")
    np.testing.assert_array_equal(found.mean, env.obs_rms.mean)
    np.testing.assert_array_equal(found.variance, env.obs_rms.var)
    assert (found.clip, found.epsilon) == (2.5, 0.25)


@pytest.mark.parametrize(
    "place", ["vecnormalize.pkl", "vec_normalize.pkl", "a/vecnormalize.pkl", "rl_model_vecnormalize_40_steps.pkl"]
)
def test_statistics_are_found_where_the_zoo_and_callbacks_put_them(tmp_path, place):
    model = learned("PPO", tmp_path)
    (tmp_path / place).parent.mkdir(exist_ok=True)
    model.get_env().save(tmp_path / place)
    torch.testing.assert_close(as_teacher(tmp_path / "a.zip")(observe()), as_teacher(model)(observe()))
    (tmp_path / place).write_bytes(b"")
    assert "no file of VecNormalize" in refusal(as_teacher, tmp_path / "a.zip")


def test_the_best_model_of_the_zoo_uses_the_statistics_of_its_environments_folder(tmp_path):
    model = learned("PPO", tmp_path, name="best_model.zip")
    (tmp_path / "Room-v0").mkdir()
    model.get_env().save(tmp_path / "Room-v0" / "vecnormalize.pkl")
    torch.testing.assert_close(as_teacher(tmp_path / "best_model")(observe()), as_teacher(model)(observe()))


def test_of_many_checkpoints_each_has_the_statistics_of_its_own_steps(tmp_path):
    models = {steps: learned("PPO", tmp_path, name=f"rl_model_{steps}_steps.zip") for steps in (40, 140)}
    models[140].learn(48)
    for steps, model in models.items():
        model.save(tmp_path / f"rl_model_{steps}_steps.zip")
        model.get_env().save(tmp_path / f"rl_model_vecnormalize_{steps}_steps.pkl")
    for steps, model in models.items():
        teacher = as_teacher(tmp_path / f"rl_model_{steps}_steps.zip")
        torch.testing.assert_close(teacher(observe()), as_teacher(model)(observe()))
    models[40].save(tmp_path / "final.zip")
    assert "2 files of VecNormalize lie there (rl_model_vecnormalize_140_steps.pkl, " in refusal(
        as_teacher, tmp_path / "final.zip"
    )


def test_such_an_agent_is_described_and_is_neither_converted_nor_a_student(tmp_path):
    model = learned("PPO", tmp_path)
    model.get_env().save(tmp_path / "vecnormalize.pkl")
    told = dict(inspect_agent(str(tmp_path / "a.zip")))
    assert told["network"].endswith("parameters; behind the statistics of a VecNormalize")
    with pytest.raises(UserError, match="cannot be a DQN alone: it sees through the statistics of a VecNormalize"):
        convert_agent(tmp_path / "a.zip", tmp_path / "b.zip")
    with pytest.raises(UserError, match="no Nature-CNN"):
        rebuild_network(read_agent(tmp_path / "a.zip"))


class Derived(VecNormalize):
    """It may normalise otherwise."""


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mknod, (str(self.path),)


def test_what_holds_no_statistics_or_others_is_one_line_and_nothing_is_executed(tmp_path):
    env = learned("PPO", tmp_path).get_env()
    path, marker = tmp_path / "vecnormalize.pkl", tmp_path / "executed"

    def written(change: Any) -> str:
        altered = pickle.loads(pickle.dumps(env))
        vars(altered).update(venv=None, class_attributes={}, returns=None)  # which pickling takes off again
        result = change(altered)
        path.write_bytes(pickle.dumps(altered if result is None else result))
        line = refusal(as_teacher, tmp_path / "a.zip")
        assert not marker.exists()
        return line

    assert "holds no VecNormalize" in written(lambda env: {"norm_obs": False})
    assert "holds no VecNormalize" in written(lambda env: Payload(marker))
    assert "its norm_obs is neither true nor false" in written(lambda env: setattr(env, "norm_obs", None))
    assert "holds no VecNormalize" in written(lambda env: setattr(env, "__class__", Derived))
    assert "plain observations" in written(lambda env: setattr(env, "obs_rms", Payload(marker)))
    assert "plain observations" in written(lambda env: setattr(env, "clip_obs", "much"))
    assert "plain observations" in written(lambda env: setattr(env, "obs_rms", {"a": env.obs_rms}))
    assert "not finite, or negative" in written(lambda env: setattr(env.obs_rms, "var", -env.obs_rms.var))
    assert "not finite, or negative" in written(lambda env: setattr(env.obs_rms, "mean", env.obs_rms.mean * np.nan))
    assert "not finite, or negative" in written(lambda env: setattr(env, "epsilon", 0.0))
    path.write_bytes(pickle.dumps(learned("PPO", tmp_path, FRAMES, "frames.zip").get_env()))
    assert "the VecNormalize beside it (2, 36, 36): is that another agent's?" in refusal(as_teacher, tmp_path / "a.zip")
    path.write_bytes(pickle.dumps(env)[:200])
    assert "damaged or no file of VecNormalize" in refusal(as_teacher, tmp_path / "a.zip")


def test_a_damaged_file_gives_statistics_or_one_line(tmp_path):
    content, path = pickle.dumps(learned("PPO", tmp_path).get_env()), tmp_path / "vecnormalize.pkl"
    rng, read = np.random.default_rng(0), 0
    for _ in range(300):
        damaged = bytearray(content)
        for position in rng.integers(0, len(content), rng.integers(1, 4)):
            damaged[position] = rng.integers(0, 256)
        path.write_bytes(damaged[: rng.integers(1, len(content) + 1)] if rng.random() < 0.1 else damaged)
        outcome = statistics_or_line(path)
        assert not isinstance(outcome, str) or outcome.isprintable()
        read += not isinstance(outcome, str)
    assert 30 < read < 290


def statistics_or_line(path: Path) -> Statistics | str | None:
    try:
        return read_statistics(path)
    except UserError as error:
        return str(error)
