"""A student of several tasks in one file: its weights as safetensors, and what they are the weights of as JSON.

Heads that stock Stable-Baselines3 plays are zips of their own; this file is what the project itself reads again. The
observations are not in it: whoever reads it knows what is played.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from gymnasium import spaces
from safetensors.torch import save

from polydistill.disk import atomic_write
from polydistill.errors import UserError
from polydistill_agents.files.archive import refusing
from polydistill_agents.files.places import opened
from polydistill_agents.files.sb3_data import ACTIVATIONS
from polydistill_agents.files.tensors import MAX_HEADER_BYTES, MAX_WEIGHT_BYTES, read_safetensors
from polydistill_agents.networks.architecture import Architecture
from polydistill_agents.networks.kinds import SCORE_KINDS
from polydistill_agents.networks.multitask import MultitaskNetwork
from polydistill_agents.networks.nature import Size

CARD = "polydistill_multitask"  # in the file's ``__metadata__``


class MultitaskFile(NamedTuple):
    """What a file holds.

    Attributes:
        network: on the CPU, in eval mode.
        kinds: of the scores of each task, by its name.
    """

    network: MultitaskNetwork
    kinds: dict[str, str]


def write_multitask(path: Path, network: MultitaskNetwork, kinds: Mapping[str, str]) -> None:
    """Write ``network`` to ``path``, whole or not at all.

    Args:
        path: ending in .safetensors.
        network: on any device.
        kinds: of the scores of each task.
    """
    size = network.torso.size
    activation = next(name for name, kind in ACTIVATIONS.items() if kind is network.torso.activation)
    card = {
        "actions": network.actions,
        "scores": dict(kinds),
        "outputs": network.outputs,
        "controller": network.controller,
        **network.torso._asdict(),
        "size": None if size is None else [size.channels, size.hidden],
        "activation": activation,
    }
    weights = {name: value.detach().cpu().contiguous() for name, value in network.plain_weights().items()}
    atomic_write(path, save(weights, {CARD: json.dumps(card)}))


def read_multitask(path: Path, space: spaces.Space[Any]) -> MultitaskFile:
    """The student in a file of :func:`write_multitask`.

    Args:
        path: of the file.
        space: what its tasks show.

    Raises:
        UserError: the file is missing, damaged, or holds no student of such tasks.
    """
    with refusing(str(path), "student of several tasks"):
        with opened(path, MAX_WEIGHT_BYTES + MAX_HEADER_BYTES) as stream:
            content = stream.read()
        weights, says = read_safetensors(content, str(path))
        if CARD not in says:
            raise UserError(f"{path} holds no student of several tasks")
        card = json.loads(says[CARD])
        if not all(kind in SCORE_KINDS for kind in card["scores"].values()):
            raise UserError(f"{path}: its scores are neither {' nor '.join(SCORE_KINDS)}")
        size = None if card["size"] is None else Size(tuple(card["size"][0]), card["size"][1])
        torso = Architecture(size, card["cnn_output_dim"], tuple(card["net_arch"]), ACTIVATIONS[card["activation"]])
        shape: Any = (space, card["actions"], torso, card["controller"], card["outputs"])
        with torch.device("meta"):  # first: weights of another shape would take what memory the card asks for
            expected = {name: value.shape for name, value in MultitaskNetwork(*shape).state_dict().items()}
        if expected != {name: value.shape for name, value in weights.items()}:
            raise UserError(f"{path}: its weights are not those of the network that it names")
        with torch.random.fork_rng(devices=[]):  # building draws initial weights that nobody keeps
            network = MultitaskNetwork(*shape)
        network.load_state_dict(weights)
    # as it has learned, and faster on processors: another layout would round differently
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return MultitaskFile(network.eval(), dict(card["scores"]))
