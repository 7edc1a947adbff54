"""What an identical student has of its teacher's network: widths and activation, without the teacher's way of learning.

A student is one of Stable-Baselines3's Q-networks: a Nature-CNN of frames, a multilayer perceptron of anything that is
one array, or both side by side for a table of arrays.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.dqn.policies import QNetwork
from torch import nn

from polydistill_agents.networks.nature import Size, begins_as_nature, size_of
from polydistill_agents.networks.normalized import Normalized
from polydistill_agents.networks.quantiles import QuantileNetwork

DEFAULT_WIDTHS = (64, 64)  # of Stable-Baselines3's perceptrons


class Architecture(NamedTuple):
    """Widths and activation of a Q-network.

    Attributes:
        size: of its Nature-CNN; None where it has none.
        cnn_output_dim: features of each image in a table; None where it sees no table.
        net_arch: units of the linear layers behind the features.
        activation: between them.
    """

    size: Size | None
    cnn_output_dim: int | None
    net_arch: tuple[int, ...]
    activation: type[nn.Module]

    @property
    def policy(self) -> str:
        """Stable-Baselines3's name of such a policy."""
        if self.size is not None:
            return "CnnPolicy"
        return "MlpPolicy" if self.cnn_output_dim is None else "MultiInputPolicy"


def architecture_of(network: nn.Module | None) -> Architecture | None:
    """That of a teacher's network, without its quantiles and the statistics before it; None where it is another.

    Several teachers of frames that are alike have the one of all.
    """
    if isinstance(network, nn.ModuleList):
        alike = {architecture_of(member) for member in network}
        first = alike.pop() if len(alike) == 1 else None
        return first if first is not None and first.size is not None else None
    if isinstance(network, Normalized):
        return architecture_of(network.network)
    if isinstance(network, QuantileNetwork):
        return architecture_of(network.quantile_net)
    if not isinstance(network, QNetwork):
        return None
    behind = tuple(network.net_arch), network.activation_fn
    if begins_as_nature(network):
        return Architecture(size_of(network), None, *behind) if network.observation_space.dtype == np.uint8 else None
    extractor = cast(Any, network.features_extractor)
    if isinstance(extractor, FlattenExtractor):
        return Architecture(None, None, *behind)
    if isinstance(extractor, CombinedExtractor):
        images = [part.features_dim for part in extractor.extractors.values() if isinstance(part, NatureCNN)]
        return Architecture(None, images[0] if images else 256, *behind)
    return None
