"""Architectures by name, for tables of weights that say nothing but shapes.

Each name stands for a function of the frames (kernels, strides, ReLU, pixels divided by 255) and for the names of
its tensors; widths may differ from file to file but where the name is one of Rusu's sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from stable_baselines3.dqn.policies import QNetwork
from torch import Tensor, nn

from agents.networks import SIZES, size_of
from agents.rebuild import build, own_memory, space_of
from polydistill.errors import UserError

SB3_LAYERS = {
    "features_extractor.cnn.0": "features_extractor.cnn.0",
    "features_extractor.cnn.2": "features_extractor.cnn.2",
    "features_extractor.cnn.4": "features_extractor.cnn.4",
    "features_extractor.linear.0": "features_extractor.linear.0",
    "q_net.0": "q_net.0",
}


class Architecture(NamedTuple):
    """A named function.

    Attributes:
        layers: name of each layer in a file -> its name in a ``QNetwork``.
        unused: layers that play no part in the scores, such as a critic.
        scores: "q_values" or "logits".
        reads: what is meant, for people.
    """

    layers: Mapping[str, str]
    unused: tuple[str, ...]
    scores: str
    reads: str


ARCHITECTURES: dict[str, Architecture] = {
    **{
        name: Architecture(
            SB3_LAYERS, (), "q_values", f"Nature-CNN {size.channels}, {size.hidden}; names of a QNetwork"
        )
        for name, size in SIZES.items()
    },
    "acktr": Architecture(
        dict(zip(("conv1", "conv2", "conv3", "fc", "actor"), SB3_LAYERS, strict=True)),
        ("critic",),
        "logits",
        "Nature-CNN of any width; names conv1, conv2, conv3, fc, actor, critic (pytorch-a2c-ppo-acktr)",
    ),
}


def rebuild_named(name: str, weights: Mapping[str, Tensor], where: str) -> QNetwork:
    """The network of these weights, in float32, in eval mode, with memory of its own.

    Args:
        name: a key of ``ARCHITECTURES``.
        weights: checked; under the architecture's names.
        where: the file's name, for the refusal.

    Raises:
        UserError: the tensors are not those of the architecture.
    """
    architecture = ARCHITECTURES[name]
    known = {f"{layer}.{kind}" for layer in (*architecture.layers, *architecture.unused) for kind in ("weight", "bias")}
    try:
        others = sorted(set(weights) - known)
        if others:
            raise ValueError(f"{others[0]!r:.80} is no part of it")
        own = {
            f"{inner}.{kind}": weights[f"{outer}.{kind}"]
            for outer, inner in architecture.layers.items()
            for kind in ("weight", "bias")
        }
        network = build(own_memory(own), space_of(own), nn.ReLU)
    except (KeyError, RuntimeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())[:300]
        raise UserError(f"{where}: its weights do not form the architecture {name} ({reason})") from None
    if name in SIZES and size_of(network) != SIZES[name]:
        raise UserError(f"{where}: its widths are {tuple(size_of(network))}, those of {name} are {tuple(SIZES[name])}")
    return network
