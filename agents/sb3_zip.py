"""Stable-Baselines3 zips: read without unpickling, written so that stock ``DQN.load`` opens them.

A zip holds ``data`` (JSON; what JSON cannot hold stands there as a base64 pickle, with a plain-text summary
beside it) and ``policy.pth`` (a torch state dict). Reading takes plain JSON values and tensors only: a
teacher is data, never code. Writing goes through a fresh ``DQN`` of Stable-Baselines3, so that no class of
this project is referred to.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.dqn.policies import QNetwork
from torch import Tensor

from agents.networks import SIZES, build_network, size_of
from polydistill.config import UserError

MAX_MEMBER_BYTES = 512 * 2**20  # a Nature-CNN is 7 MB; this bounds memory for a hostile file
SCORE_KINDS = ("q_values", "logits")


class AgentFile(NamedTuple):
    """What a zip says: plain JSON values of ``data``, and the tensors of ``policy.pth`` on the CPU."""

    data: dict[str, Any]
    weights: dict[str, Tensor]

    @property
    def scores(self) -> str:
        """Kind of the scores: "logits" for a student of KL or NLL, "q_values" for all others."""
        card = self.data.get("polydistill")
        kind = card.get("scores") if isinstance(card, dict) else None
        return kind if kind in SCORE_KINDS else "q_values"


def read_agent(path: str | Path) -> AgentFile:
    """Read a zip of Stable-Baselines3 without executing anything in it.

    Raises:
        UserError: the file is missing, damaged, too large, or holds something else than tensors.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = {}
            for name in ("data", "policy.pth"):
                entries = [entry for entry in archive.infolist() if entry.filename == name]
                if len(entries) != 1:
                    raise UserError(f"{path} is no Stable-Baselines3 zip: it has {len(entries)} members named {name!r}")
                if entries[0].file_size > MAX_MEMBER_BYTES:
                    raise UserError(f"{path}: {name} has {entries[0].file_size:,} bytes, more than {MAX_MEMBER_BYTES:,}")
                members[name] = archive.read(entries[0])
        data = json.loads(members["data"])
        weights = torch.load(io.BytesIO(members["policy.pth"]), map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, a zip of Stable-Baselines3 is needed") from None
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is damaged or no Stable-Baselines3 zip: {first_line}") from None
    if not isinstance(data, dict) or not isinstance(weights, dict):
        raise UserError(f"{path} is no Stable-Baselines3 zip: its data or its weights are no table")
    for name, value in weights.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise UserError(f"{path}: {name} is no floating-point tensor")
        if not bool(torch.isfinite(value).all()):
            raise UserError(f"{path}: {name} holds NaN or infinite weights")
    return AgentFile(data, weights)


def rebuild_network(agent: AgentFile, path: str | Path) -> QNetwork:
    """The online Nature-CNN of a DQN zip, in float32, in eval mode; its widths are read from the shapes.

    Raises:
        UserError: the tensors do not form a Nature-CNN with one linear layer behind it.
    """
    weights = {
        name.removeprefix("q_net."): value.float()
        for name, value in agent.weights.items()
        if name.startswith("q_net.")
    }
    activation = agent.data.get("policy_kwargs", {})
    described = json.dumps(activation) if isinstance(activation, dict) else str(activation)
    if "activation_fn" in described:
        raise UserError(f"{path}: it names an activation function of its own; only Nature-CNNs with ReLU are read")
    try:
        channels = tuple(weights[f"features_extractor.cnn.{i}.weight"].shape[0] for i in (0, 2, 4))
        stack, height, width = _frame_shape(agent)
        space = spaces.Box(0, 255, (stack, height, width), "uint8")
        hidden, head = weights["features_extractor.linear.0.weight"], weights["q_net.0.weight"]
        size = SIZES["nature"]._replace(channels=channels, hidden=hidden.shape[0])
        network = build_network(space, head.shape[0], size)
        network.load_state_dict(weights)
    except (KeyError, RuntimeError, ValueError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: its weights do not form a DQN with a Nature-CNN ({reason})") from None
    return network.eval()


def _frame_shape(agent: AgentFile) -> tuple[int, int, int]:
    """``(stack, height, width)``: the stack from the first convolution, the frame from the hidden layer's input."""
    stack = agent.weights["q_net.features_extractor.cnn.0.weight"].shape[1]
    last_channels = agent.weights["q_net.features_extractor.cnn.4.weight"].shape[0]
    flat = agent.weights["q_net.features_extractor.linear.0.weight"].shape[1]
    if flat != last_channels * 7 * 7:
        raise ValueError(f"its frames are not 84 x 84: the hidden layer has {flat} inputs")
    return stack, 84, 84


def write_dqn_zip(path: str | Path, network: QNetwork, *, scores: str = "q_values", steps: int = 0) -> None:
    """Write ``network`` as a DQN zip that stock Stable-Baselines3 opens, atomically.

    A network narrower than Stable-Baselines3's ``NatureCNN`` is embedded in it: the missing channels get zero
    weights, stay zero behind each ReLU, and change nothing. Online and target network share one storage.

    Args:
        path: the file to write; replaced if it exists.
        network: a Nature-CNN of at most 32, 64, 64 channels.
        scores: "q_values" or "logits", stored as plain JSON under ``polydistill``.
        steps: agent steps that the network has learned from; stored as ``num_timesteps``.

    Raises:
        ValueError: an unknown kind of scores, or a network too wide for ``NatureCNN``.
    """
    if scores not in SCORE_KINDS:
        raise ValueError(f"scores must be one of {SCORE_KINDS}, got {scores!r}")
    size = size_of(network)
    if any(have > room for have, room in zip(size.channels, SIZES["nature"].channels, strict=True)):
        raise ValueError(f"channels {size.channels} do not fit Stable-Baselines3's NatureCNN {SIZES['nature'].channels}")
    policy_kwargs: dict[str, Any] = {}
    if size.hidden != SIZES["nature"].hidden:
        policy_kwargs = {"features_extractor_kwargs": {"features_dim": size.hidden}}
    model = DQN("CnnPolicy", env=None, buffer_size=1, policy_kwargs=policy_kwargs, device="cpu", _init_setup_model=False)  # type: ignore[arg-type]
    model.observation_space = network.observation_space
    model.action_space = network.action_space
    model.n_envs = 1
    with torch.random.fork_rng(devices=[]):  # building draws initial weights that nobody keeps
        model._setup_model()
    _embed(network, model.q_net)
    for target, online in zip(model.q_net_target.parameters(), model.q_net.parameters(), strict=True):
        target.data = online.data
    model.replay_buffer = None
    model.exploration_rate = 0.05
    model.num_timesteps = steps
    model.polydistill = {"scores": scores}  # type: ignore[attr-defined]
    buffer = io.BytesIO()
    model.save(buffer, exclude=["replay_buffer"])
    path = Path(path)
    temporary = path.with_name(path.name + ".part")
    with open(temporary, "wb") as file:
        file.write(buffer.getvalue())
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@torch.no_grad()
def _embed(network: QNetwork, wide: QNetwork) -> None:
    """Copy the weights of ``network`` into the corner of ``wide``; all others become zero."""
    source = network.state_dict()
    channels = size_of(network).channels[-1]
    for name, target in wide.state_dict().items():
        value = source[name].to("cpu", target.dtype)
        target.zero_()
        if name == "features_extractor.linear.0.weight":  # its columns are (channel, 7, 7): split them
            value = value.reshape(value.shape[0], channels, -1)
            target = target.reshape(target.shape[0], -1, value.shape[2])
        target[tuple(slice(0, length) for length in value.shape)] = value
