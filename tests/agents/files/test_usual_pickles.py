"""What an inspection calls unusual is unusual: nothing in ordinary zips of any year, and whatever an attack needs."""

from __future__ import annotations

import base64
import json
import os
import pickle
from collections import OrderedDict, deque

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper
from torch import nn

from polydistill_agents.files.inspection import inspect_agent
from polydistill_agents.files.usual_pickles import examine_pickle
from tests.fuzz.seeds import make_seeds, pack, unpack


def constant_fn(value):
    def func(_):
        return value

    return func


def get_linear_fn(start, end, end_fraction):  # both as Stable-Baselines3 had them until 2.7
    def func(progress_remaining):
        if (1 - progress_remaining) > end_fraction:
            return end
        return start + (1 - progress_remaining) * (end - start) / end_fraction

    return func


def get_schedule_fn(value_schedule):
    return lambda progress_remaining: float(value_schedule(progress_remaining))


ORDINARY = {
    "constant": constant_fn(1e-4),
    "linear": get_linear_fn(1.0, 0.05, 0.1),
    "schedule": get_schedule_fn(constant_fn(0.2)),
    "space": spaces.Box(-1, 1, (3,), seed=0),
    "table of spaces": spaces.Dict({"a": spaces.Discrete(3), "b": spaces.MultiBinary(2)}),
    "generators": [np.random.RandomState(0), np.random.default_rng(0), np.random.SeedSequence(3)],
    "arrays": [np.zeros(3), np.float32(1), np.array([True]), np.dtype("f4")],
    "kwargs": {"activation_fn": nn.Tanh, "optimizer_class": torch.optim.Adam, "net_arch": [64, {"pi": [3]}]},
    "buffers": [deque([{"r": 1.0}], maxlen=100), OrderedDict(a=1), {1, 2}, frozenset({3}), b"x", bytearray(b"y")],
    "noise": NormalActionNoise(np.zeros(2), np.ones(2)),
    "extractor": {"features_extractor_class": NatureCNN},
}


@pytest.mark.parametrize("name", ORDINARY)
def test_what_stable_baselines_writes_is_usual(name):
    for protocol in (3, 4, 5):
        assert examine_pickle(cloudpickle.dumps(ORDINARY[name], protocol))[1] == []


class Room(gym.Env):
    observation_space, action_space = spaces.Box(-1, 1, (3,)), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return np.zeros(3, np.float32), {}

    def step(self, action):
        return np.zeros(3, np.float32), 0.0, False, False, {}


@pytest.mark.parametrize("algorithm", [DQN, PPO, A2C])
def test_an_ordinary_zip_has_no_unusual_globals_whatever_year_wrote_its_schedules(algorithm, tmp_path):
    own = {"buffer_size": 8} if algorithm is DQN else {"n_steps": 8}
    own |= {"batch_size": 8} if algorithm is PPO else {}
    model = algorithm("MlpPolicy", Room(), learning_rate=get_linear_fn(1e-3, 0.0, 1.0), device="cpu", **own)
    model.learn(16).save(tmp_path / "a.zip")
    with_fields(tmp_path / "a.zip", lr_schedule=cloudpickle.dumps(get_schedule_fn(constant_fn(1e-3))))
    assert unusual(tmp_path / "a.zip") == "none"


def with_fields(path, **fields):
    if not path.exists():
        path.write_bytes(make_seeds()["dqn.zip"])
    members = unpack(path.read_bytes())
    data = json.loads(members["data"])
    for name, content in fields.items():
        text = base64.b64encode(content).decode() if isinstance(content, bytes) else content
        data[name] = {":type:": "<class 'function'>", ":serialized:": text}
    path.write_bytes(pack(members | {"data": json.dumps(data).encode()}))
    return path


def unusual(path) -> str:
    return dict(inspect_agent(str(path)))["unusual globals"]


@pytest.mark.parametrize("root_name", ["dqn-CartPole-v1.zip", "qrdqn-CartPole-v1.zip", "ppo-CartPole-v1.zip"])
def test_zips_of_2021_have_no_unusual_globals(root, root_name):
    path = root.parent / "shared" / "data" / "teachers" / root_name
    if not path.is_file():
        pytest.skip("needs the folder shared beside the clone")
    assert unusual(path) == "none"


# ------------------------------------------------------------------ hostile


class Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def local_reaches_out():
    def func(progress_remaining):
        def inner():
            return os.getcwd()

        return inner()

    return func


def holds(thing):
    def func(_):
        return thing

    return func


class OfMain:
    """A class that is written by value, as one of a user's script is."""


OfMain.__module__ = "__main__"

HOSTILE = {
    "a call": (pickle.dumps(Call(os.getcwd)), "posix.getcwd"),
    "an evaluation": (pickle.dumps(Call(eval, "1")), "builtins.eval"),
    "an attribute": (pickle.dumps(Call(getattr, "x", "upper")), "builtins.getattr"),
    "code that names": (cloudpickle.dumps(local_reaches_out()), "code that uses getcwd"),
    "what a function holds": (cloudpickle.dumps(holds(os.getcwd)), "posix.getcwd"),
    "a module": (cloudpickle.dumps(holds(os)), "cloudpickle.cloudpickle.subimport"),
    "a class by value": (cloudpickle.dumps(OfMain), "cloudpickle.cloudpickle._make_skeleton_class"),
    "a function that is called": (cloudpickle.dumps(Call(constant_fn(1), 2)), "a call of what it has built"),
    "what unpickles once more": (pickle.dumps(CloudpickleWrapper(3)), "CloudpickleWrapper"),
    "a path through a module": (
        b"\x80\x04\x8c\x22stable_baselines3.common.save_util\x8c\x0cpickle.loads\x93.",
        "stable_baselines3.common.save_util.pickle.loads",
    ),
    "a function of the library": (
        b"\x80\x04cstable_baselines3.common.save_util\nload_from_pkl\n.",
        "stable_baselines3.common.save_util.load_from_pkl",
    ),
    "another type": (b"\x80\x04ccloudpickle.cloudpickle\n_builtin_type\n\x8c\x03xyz\x85R.", "_builtin_type"),
    "an end that is missing": (pickle.dumps([1, 2])[:-1], "what is damaged, or longer than what is looked at"),
    "a state that is replaced": (
        pickle.dumps(Call(os.getcwd))[:-1] + b"0" + pickle.dumps(3),
        "posix.getcwd",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_an_attack_needs_is_named(name, tmp_path):
    content, word = HOSTILE[name]
    line = unusual(with_fields(tmp_path / "a.zip", lr_schedule=content))
    assert word in line
    assert "in lr_schedule" in line
    assert line.endswith("(never loaded here; DQN.load would execute them)")


def test_characters_that_are_no_base64_hide_nothing(tmp_path):
    text = base64.b64encode(pickle.dumps(Call(os.getcwd))).decode()
    hidden = "!" + "*".join(text) + "\u20ac"
    assert base64.b64decode(hidden.encode()) == base64.b64decode(text), "so Stable-Baselines3 decodes it"
    assert "posix.getcwd" in unusual(with_fields(tmp_path / "a.zip", lr_schedule=hidden))


def test_pickles_that_are_too_many_to_look_into_are_not_called_usual(tmp_path):
    fields = {f"x{number}": pickle.dumps(number) for number in range(250)}
    assert "what is not looked into" in unusual(with_fields(tmp_path / "a.zip", **fields))
