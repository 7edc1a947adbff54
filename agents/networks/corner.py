"""A narrow Nature-CNN in the corner of a wider one, with zeros around it, and cut out of it again.

Stable-Baselines3's ``NatureCNN`` has 32, 64 and 64 channels, whatever it is asked for. So a file that stock
``DQN.load`` opens holds a narrow network in the first channels of a wide one: the others have zero weights, stay zero
behind each ReLU, and change nothing. Whoever computes with the network wants it in its own widths: the wide one costs
as much as a teacher.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from stable_baselines3.dqn.policies import QNetwork
from torch import Tensor

from polydistill_agents.networks.building import CONVOLUTIONS, HIDDEN
from polydistill_agents.networks.kinds import ScoreNetwork
from polydistill_agents.networks.nature import Size, begins_as_nature, build_network, size_of


@torch.no_grad()
def embed(network: QNetwork, wide: QNetwork) -> None:
    """Copy the weights of ``network`` into the corner of ``wide``; all others become zero."""
    source = network.state_dict()
    for name, target in wide.state_dict().items():
        value = source[name].to("cpu", target.dtype)
        target.zero_()
        if name == HIDDEN:
            value, target = _by_channels(value, network), _by_channels(target, wide)
        target[tuple(slice(0, length) for length in value.shape)] = value


@torch.no_grad()
def cut_corner(wide: QNetwork, size: Size) -> QNetwork:
    """The Nature-CNN of widths ``size`` in the first channels and units of ``wide``."""
    source = wide.state_dict()
    with torch.device("meta"):  # no memory is taken, and no random number drawn, for weights that nobody keeps
        space, n_actions = cast(Any, wide.observation_space), int(cast(Any, wide.action_space).n)
        network = build_network(space, n_actions, size, wide.net_arch, wide.activation_fn)
    weights = {}
    for name, target in network.state_dict().items():
        value, shape = source[name], tuple(target.shape)
        if name == HIDDEN:
            value, shape = _by_channels(value, wide), tuple(_by_channels(target, network).shape)
        weights[name] = value[tuple(slice(0, length) for length in shape)].reshape(target.shape).clone()
    network.load_state_dict(weights, assign=True)
    network.normalize_images = wide.normalize_images
    return network.train(wide.training)


def cut_padding(network: ScoreNetwork) -> ScoreNetwork:
    """``network`` itself, or, of a Nature-CNN whose last channels are zeros, a narrower one of the same scores."""
    if (
        not isinstance(network, QNetwork)
        or not begins_as_nature(network)
        or network.observation_space.dtype != np.uint8
    ):
        return network
    size, weights = size_of(network), network.state_dict()
    first, second, third = (
        _count_used(weights[name], weights[name.replace("weight", "bias")]) for name in CONVOLUTIONS
    )
    channels = (first, second, third)
    return network if channels == size.channels else cut_corner(network, Size(channels, size.hidden))


def _count_used(weight: Tensor, bias: Tensor) -> int:
    """Channels up to the last one that is not all zeros; one at least."""
    used = ((weight.flatten(1) != 0).any(1) | (bias != 0)).nonzero()
    return int(used.max()) + 1 if len(used) else 1


def _by_channels(hidden: Tensor, network: QNetwork) -> Tensor:
    """The hidden layer's ``(units, columns)`` weights, whose columns are (channel, row, column), by channels."""
    return hidden.view(hidden.shape[0], size_of(network).channels[-1], -1)
