"""Small sound files of every kind that is read: what the mutations start from. Each is a few kilobytes."""

from __future__ import annotations

import io
import json
import pickle
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from safetensors.torch import save as save_safetensors
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.save_util import data_to_json
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from polydistill_agents.files.compact import write_student
from polydistill_agents.networks.nature import Size, build_network

Members = dict[str, bytes]


TABLE = spaces.Dict(
    buttons=spaces.MultiBinary(2),
    camera=spaces.Box(0, 255, (1, 36, 36), np.uint8),
    gears=spaces.MultiDiscrete([2, 3]),
    key=spaces.Discrete(3),
    where=spaces.Box(-1, 1, (3,), np.float32),
)


class Room(gym.Env[Any, Any]):
    """A space of vectors, or another one, and three actions; nobody plays in it."""

    action_space = spaces.Discrete(3)

    def __init__(self, observation_space: spaces.Space[Any] | None = None) -> None:
        self.observation_space = observation_space or spaces.Box(-1, 1, (3,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(3, np.float32), 0.0, False, False, {}


def pack(members: Members) -> bytes:
    """A stored zip of the members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def unpack(content: bytes) -> Members:
    """The members of a sound zip."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def torch_bytes(value: Any, **options: Any) -> bytes:
    """What ``torch.save`` writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def make_seeds() -> dict[str, bytes]:
    """Kind -> file. The key says the ending; no key may be a name that a zip looks for beside itself."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        narrow = {"policy_kwargs": {"net_arch": [4]}, "device": "cpu"}
        dqn = _saved(DQN("MlpPolicy", Room(), buffer_size=1, **narrow))
        ppo = _saved(PPO("MlpPolicy", Room(), n_steps=2, batch_size=2, **narrow))
        combined = {"net_arch": [4], "features_extractor_kwargs": {"cnn_output_dim": 2}}
        return {
            "dqn.zip": pack(dqn),
            "dqn-cnn.zip": pack(_nature(dqn)),
            "qrdqn.zip": pack(_quantiles(dqn)),
            "ppo.zip": pack(ppo),
            "ppo-table.zip": pack(
                _saved(PPO("MultiInputPolicy", Room(TABLE), 1e-3, 2, 2, policy_kwargs=combined, device="cpu"))
            ),
            "a2c-counts.zip": pack(_saved(A2C("MlpPolicy", Room(spaces.MultiDiscrete([2, 3])), **narrow))),
            "maskable.zip": pack(_renamed(ppo, "sb3_contrib.common.maskable.policies")),
            "recurrent.zip": pack(_recurrent(ppo)),
            "a2c.zip": pack(_saved(A2C("MlpPolicy", Room(), **narrow))),
            "acktr.pth": torch_bytes(_table()),
            "acktr.safetensors": save_safetensors(_table(), {"architecture": "acktr"}),
            "student.safetensors": _student(),
            "statistics.pkl": pickle.dumps(VecNormalize(DummyVecEnv([Room]))),
        }


def _student() -> bytes:
    """A compact file of a student that sees a table without images."""
    table = spaces.Dict({name: part for name, part in TABLE.items() if name != "camera"})
    model = DQN("MultiInputPolicy", Room(table), buffer_size=1, policy_kwargs={"net_arch": [4]}, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        write_student(Path(folder, "student.safetensors"), model.q_net, score_kind="logits")
        return Path(folder, "student.safetensors").read_bytes()


def described(space: spaces.Space[Any]) -> Any:
    """A space as Stable-Baselines3 writes it."""
    return json.loads(data_to_json({"space": space}))["space"]


def _saved(model: Any) -> Members:
    buffer = io.BytesIO()
    model.save(buffer)
    members = unpack(buffer.getvalue())
    del members["policy.optimizer.pth"]
    return members


def _nature(dqn: Members) -> Members:
    """The DQN with pixels and a Nature-CNN of one channel."""
    network = build_network(spaces.Box(0, 255, (1, 36, 36), np.uint8), 3, Size((1, 1, 1), 2))
    weights = network.state_dict()
    data = json.loads(dqn["data"])
    data["observation_space"] = described(spaces.Box(0, 255, (1, 36, 36), np.uint8))
    both = {f"{prefix}.{name}": value for prefix in ("q_net", "q_net_target") for name, value in weights.items()}
    return dqn | {"data": json.dumps(data).encode(), "policy.pth": torch_bytes(both)}


def _quantiles(dqn: Members) -> Members:
    """The DQN as sb3-contrib would save a QR-DQN of two quantiles."""
    data = json.loads(dqn["data"])
    data["policy_class"]["__module__"] = "sb3_contrib.qrdqn.policies"
    data["n_quantiles"] = 2
    weights = torch.load(io.BytesIO(dqn["policy.pth"]), weights_only=True)
    renamed = {name.replace("q_net", "quantile_net"): value for name, value in weights.items()}
    for name in renamed:
        if "quantile_net.2." in name:
            renamed[name] = torch.cat([renamed[name], renamed[name] + 1.0])
    return dqn | {"data": json.dumps(data).encode(), "policy.pth": torch_bytes(renamed)}


def _renamed(agent: Members, module: str) -> Members:
    """The agent with a policy of another module."""
    data = json.loads(agent["data"])
    data["policy_class"]["__module__"] = module
    return agent | {"data": json.dumps(data).encode()}


def _recurrent(ppo: Members) -> Members:
    """The PPO as sb3-contrib would save one with a memory of three units behind its observations."""
    weights = torch.load(io.BytesIO(ppo["policy.pth"]), weights_only=True)
    for name in ("lstm_actor", "lstm_critic"):
        weights |= {f"{name}.{key}": value for key, value in torch.nn.LSTM(3, 3).state_dict().items()}
    return _renamed(ppo, "sb3_contrib.common.recurrent.policies") | {"policy.pth": torch_bytes(dict(weights))}


def _table() -> dict[str, torch.Tensor]:
    weights = build_network(spaces.Box(0, 255, (1, 84, 84), np.uint8), 2, Size((1, 1, 1), 2)).state_dict()
    names = ("conv1", "conv2", "conv3", "fc", "actor")
    layers = dict.fromkeys(name.rpartition(".")[0] for name in weights)
    own = dict(zip(layers, names, strict=True))
    table = {f"{own[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": value for name, value in weights.items()}
    return table | {"critic.weight": torch.zeros(1, 2), "critic.bias": torch.zeros(1)}
