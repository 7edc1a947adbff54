"""Stable-Baselines3 zips: read without unpickling, written so that stock ``DQN.load`` opens them.

A zip holds ``data`` (JSON; what JSON cannot hold stands there as a base64 pickle, with a plain-text summary
beside it) and ``policy.pth`` (a torch state dict). Reading takes plain JSON values and tensors only: a
teacher is data, never code. Writing goes through a fresh ``DQN`` of Stable-Baselines3, so that no class of
this project is referred to.
"""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.dqn.policies import QNetwork
from torch import Tensor

from agents.networks import SIZES, Size, build_network, size_of
from polydistill.errors import UserError
from polydistill.tracking import atomic_write

MAX_MEMBER_BYTES = {"data": 64 * 2**20, "policy.pth": 512 * 2**20}  # a Nature-CNN has 7 MB; bounds a hostile file
MAX_STACK = 64
SCORE_KINDS = ("q_values", "logits")


class AgentFile(NamedTuple):
    """What a zip says: plain JSON values of ``data``, and the tensors of ``policy.pth`` on the CPU."""

    data: dict[str, Any]
    weights: dict[str, Tensor]

    @property
    def scores(self) -> str:
        """Kind of the scores: "logits" for a student of KL or NLL, "q_values" for all others."""
        return kind_of(self.data)


def kind_of(attributes: Mapping[str, Any]) -> str:
    """Kind of the scores of an agent with these attributes: those of a zip, or of a loaded model."""
    card = attributes.get("polydistill")
    kind = card.get("scores") if isinstance(card, dict) else None
    return kind if kind in SCORE_KINDS else "q_values"


def read_agent(path: str | Path) -> AgentFile:
    """Read a zip of Stable-Baselines3 without executing anything in it.

    Raises:
        UserError: the file is missing, damaged, too large, or holds something else than tensors.
    """
    path = Path(path)
    try:
        members = _read_members(path)
        data = json.loads(members["data"])
        weights = torch.load(io.BytesIO(members["policy.pth"]), map_location="cpu", weights_only=True)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, a zip of Stable-Baselines3 is needed") from None
    except pickle.UnpicklingError:  # torch's own message would propose to open it all the same
        raise UserError(
            f"{path}: policy.pth is damaged or holds something else than tensors, and is not opened"
        ) from None
    except Exception as error:  # a damaged file makes zipfile, json and torch raise nearly anything
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is damaged or no Stable-Baselines3 zip: {first_line}") from None
    if not isinstance(data, dict) or not isinstance(weights, dict):
        raise UserError(f"{path} is no Stable-Baselines3 zip: its data or its weights are no table")
    _check_weights(weights, path)
    return AgentFile(data, weights)


def _read_members(path: Path) -> dict[str, bytes]:
    members = {}
    with zipfile.ZipFile(path) as archive:
        for name, limit in MAX_MEMBER_BYTES.items():
            entries = [entry for entry in archive.infolist() if entry.filename == name]
            if len(entries) != 1:
                raise UserError(f"{path} is no Stable-Baselines3 zip: it has {len(entries)} members named {name!r}")
            if entries[0].file_size > limit:
                raise UserError(f"{path}: {name} has {entries[0].file_size:,} bytes, more than {limit:,}")
            members[name] = archive.read(entries[0])
    return members


def _check_weights(weights: dict[Any, Any], path: Path) -> None:
    """Only plain, finite, floating-point tensors; one that repeats a small storage may not pretend to be huge."""
    n_bytes = 0
    for name, value in weights.items():
        plain = isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
        if not isinstance(name, str) or not plain or not value.is_floating_point() or value.numel() == 0:
            raise UserError(f"{path}: {name} is no floating-point tensor")
        n_bytes += value.numel() * value.element_size()
        if n_bytes > MAX_MEMBER_BYTES["policy.pth"]:
            raise UserError(f"{path}: its tensors have more than {MAX_MEMBER_BYTES['policy.pth']:,} bytes")
        if not bool(torch.isfinite(value.float()).all()):
            raise UserError(f"{path}: {name} holds NaN or infinite weights")


def rebuild_network(agent: AgentFile, path: str | Path) -> QNetwork:
    """The online Nature-CNN of a DQN zip, in float32, in eval mode; its widths are read from the shapes.

    Raises:
        UserError: the tensors do not form a Nature-CNN with one linear layer behind it, or ``policy_kwargs`` say that
            it computes something else.
    """
    _check_policy_kwargs(agent.data.get("policy_kwargs"), path)
    weights = {
        name.removeprefix("q_net."): value.float().clone(memory_format=torch.contiguous_format)
        for name, value in agent.weights.items()
        if name.startswith("q_net.")
    }
    try:
        space, n_actions, size = _read_shapes(weights)
        with torch.device("meta"):  # no memory is taken, and no random number drawn, for weights that nobody keeps
            network = build_network(space, n_actions, size)
        network.load_state_dict(weights, assign=True)
    except KeyError as error:
        raise UserError(f"{path}: its weights do not form a DQN with a Nature-CNN ({error} is missing)") from None
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).splitlines()[:2]).replace("\t", "")
        raise UserError(f"{path}: its weights do not form a DQN with a Nature-CNN ({reason})") from None
    return network.eval()


def _check_policy_kwargs(kwargs: Any, path: str | Path) -> None:
    """Refuse what the shapes do not show. Classes stand there as plain text beside the pickle that is not opened."""
    kwargs = kwargs if isinstance(kwargs, dict) else {}
    activation = str(kwargs.get("activation_fn", "ReLU"))
    extractor = str(kwargs.get("features_extractor_class", "NatureCNN"))
    if not activation.removesuffix("'>").endswith("ReLU") or "LeakyReLU" in activation:
        raise UserError(f"{path}: only networks with ReLU are read, it has {activation}")
    if not extractor.removesuffix("'>").endswith("NatureCNN"):
        raise UserError(f"{path}: only Nature-CNNs are read, it has {extractor}")
    if kwargs.get("normalize_images", True) is not True:
        raise UserError(f"{path}: it was trained on pixels of 0 to 255 (normalize_images=False), which are not read")


def _read_shapes(weights: dict[str, Tensor]) -> tuple[spaces.Box, int, Size]:
    """Observation space, number of actions and widths.

    Raises:
        KeyError: a tensor is missing.
        ValueError: a tensor has the wrong number of axes, or the frames are not 84 x 84.
    """
    convolutions = [weights[f"features_extractor.cnn.{i}.weight"] for i in (0, 2, 4)]
    hidden, head = weights["features_extractor.linear.0.weight"], weights["q_net.0.weight"]
    if [value.dim() for value in (*convolutions, hidden, head)] != [4, 4, 4, 2, 2]:
        raise ValueError("its layers are not three convolutions and two linear ones")
    first, second, third = (value.shape[0] for value in convolutions)
    stack = convolutions[0].shape[1]
    if hidden.shape[1] != third * 7 * 7:
        raise ValueError(f"its frames are not 84 x 84: the hidden layer has {hidden.shape[1]} inputs")
    if stack > MAX_STACK:
        raise ValueError(f"it stacks {stack} frames, more than {MAX_STACK}")
    space = spaces.Box(0, 255, (stack, 84, 84), np.uint8)
    return space, head.shape[0], Size((first, second, third), hidden.shape[0])


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
        raise ValueError(
            f"channels {size.channels} do not fit Stable-Baselines3's NatureCNN {SIZES['nature'].channels}"
        )
    policy_kwargs: dict[str, Any] = {}
    if size.hidden != SIZES["nature"].hidden:
        policy_kwargs["features_extractor_kwargs"] = {"features_dim": size.hidden}
    if not network.normalize_images:
        policy_kwargs["normalize_images"] = False
    model = DQN("CnnPolicy", None, buffer_size=1, policy_kwargs=policy_kwargs, device="cpu", _init_setup_model=False)  # type: ignore[arg-type]
    model.observation_space = spaces.Box(0, 255, network.observation_space.shape, np.uint8)
    model.action_space = spaces.Discrete(int(network.action_space.n))
    model.n_envs = 1
    with torch.random.fork_rng(devices=[]):  # building draws initial weights that nobody keeps
        model._setup_model()
    _embed(network, model.q_net)
    for target, online in zip(model.q_net_target.parameters(), model.q_net.parameters(), strict=True):
        target.data = online.data
    model.observation_space = spaces.Box(0, 255, network.observation_space.shape, np.uint8)  # the first one was sampled
    model.replay_buffer = None
    model.exploration_rate = 0.05
    model.num_timesteps = steps
    model.polydistill = {"scores": scores}  # type: ignore[attr-defined]
    buffer = io.BytesIO()
    model.save(buffer, exclude=["replay_buffer"])
    atomic_write(Path(path), buffer.getvalue())


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
