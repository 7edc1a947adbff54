"""Inputs on a fixed scale: a student of raw numbers learns as if they had mean 0 and deviation 1.

The speed of a cart, the charge of a battery in percent and the time in milliseconds stand in one observation. The scale
is part of the network while it learns, and is folded into the first linear layer when it is saved: a stock network of
raw observations computes the same. One-hot inputs (``Discrete``, ``MultiBinary``) and what Nature-CNNs see keep theirs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, preprocess_obs
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor
from stable_baselines3.dqn.policies import QNetwork
from torch import Tensor, nn

from polydistill_agents.networks.normalized import Statistics
from polydistill_agents.networks.observations import Tensors
from polydistill_agents.networks.q_scale import find_q_scale

CONSTANT = 1e-6  # a deviation below, as a share of the largest value, is none: the input keeps its scale


class InputScale(nn.Module):
    """``(flatten(x) - shift) * scale`` of ``(batch, ...)``; at first the identity.

    Args:
        n_features: of a flat observation.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(n_features))
        self.register_buffer("scale", torch.ones(n_features))

    def forward(self, inputs: Tensor) -> Tensor:
        """``(batch, ...)`` to ``(batch, n_features)``."""
        flat = inputs if inputs.dim() == 2 else inputs.flatten(1)
        return (flat - self.shift) * self.scale

    @torch.no_grad()
    def fit(self, inputs: Tensor) -> None:
        """Take mean and deviation of ``inputs``; one that is constant keeps its scale."""
        flat = inputs.flatten(1).double()
        deviation, mean = torch.std_mean(flat, dim=0, correction=0)
        varies = deviation > CONSTANT * flat.abs().amax(dim=0)
        self.shift.copy_(mean)
        self.scale.copy_(torch.where(varies, 1.0 / deviation, 1.0))


class ScaledFlatten(FlattenExtractor):
    """Stable-Baselines3's ``FlattenExtractor`` behind an :class:`InputScale`."""

    def __init__(self, observation_space: spaces.Space[Any]) -> None:
        super().__init__(observation_space)
        self.inputs = InputScale(self.features_dim)

    def forward(self, observations: Tensor) -> Tensor:
        """``(batch, ...)``, as ``preprocess_obs`` makes it, to ``(batch, features)``."""
        return self.inputs(observations)  # type: ignore[no-any-return]


class ScaledCombined(CombinedExtractor):
    """Stable-Baselines3's ``CombinedExtractor`` with an :class:`InputScale` for each part that is no image."""

    def __init__(
        self, observation_space: spaces.Dict, cnn_output_dim: int = 256, normalized_image: bool = False
    ) -> None:
        super().__init__(observation_space, cnn_output_dim, normalized_image)
        for name, extractor in self.extractors.items():
            if isinstance(extractor, nn.Flatten):
                self.extractors[name] = InputScale(get_flattened_obs_dim(observation_space[name]))


class ScaledPart(NamedTuple):
    """An :class:`InputScale` of a network.

    Attributes:
        inputs: it.
        name: of its part of the observations; None where it sees them all.
        space: of its part.
        columns: of the first linear layer.
    """

    inputs: InputScale
    name: str | None
    space: spaces.Space[Any]
    columns: slice


def scaled_parts(network: QNetwork) -> Iterator[ScaledPart]:
    """All of a network; none of a stock one."""
    extractor, space = cast(Any, network.features_extractor), network.observation_space
    if isinstance(extractor, ScaledFlatten):
        yield ScaledPart(extractor.inputs, None, space, slice(0, extractor.features_dim))
    if not isinstance(extractor, ScaledCombined):
        return
    begin = 0
    for name, part in extractor.extractors.items():
        inner = cast(spaces.Dict, space)[name]
        width = part.shift.numel() if isinstance(part, InputScale) else cast(Any, part).features_dim
        if isinstance(part, InputScale):
            yield ScaledPart(part, name, inner, slice(begin, begin + width))
        begin += width


def fit_scales(network: QNetwork, observations: Tensors) -> None:
    """Give the numbers among a network's inputs mean 0 and deviation 1 over ``observations``, as they come."""
    for part in scaled_parts(network):
        if isinstance(part.space, spaces.Box):
            values = observations if part.name is None else cast(dict[str, Tensor], observations)[part.name]
            part.inputs.fit(cast(Tensor, preprocess_obs(cast(Tensor, values), part.space, network.normalize_images)))


@torch.no_grad()
def take_statistics(network: QNetwork, statistics: Statistics) -> bool:
    """Give the inputs the scale of ``VecNormalize``, without its clipping, where the network sees one vector.

    Returns:
        Whether it does.
    """
    parts = list(scaled_parts(network))
    if len(parts) != 1 or parts[0].name is not None or parts[0].space.shape != statistics.mean.shape:
        return False
    deviation = torch.from_numpy(statistics.variance + statistics.epsilon).sqrt().flatten()
    parts[0].inputs.shift.copy_(torch.from_numpy(statistics.mean).flatten())
    parts[0].inputs.scale.copy_(1.0 / deviation)
    return True


@torch.no_grad()
def load_stock(network: QNetwork, stock: QNetwork) -> None:
    """Give ``network`` the function of a stock one: its weights, and inputs as they come, whatever their scale was. Its
    outputs stay on the scale that they have."""
    for part in scaled_parts(network):
        part.inputs.shift.zero_()
        part.inputs.scale.fill_(1.0)
    network.load_state_dict({**dict(network.named_buffers()), **stock.state_dict()})
    q_scale = find_q_scale(network)
    if q_scale is not None:
        q_scale.load(cast(Any, stock.q_net)[-1])


@torch.no_grad()
def folded(network: QNetwork) -> QNetwork:
    """A copy of the same function whose first and last linear layers hold the scales: a stock network."""
    plain = copy.deepcopy(network)
    q_scale = find_q_scale(plain)
    if q_scale is not None:
        cast(Any, plain.q_net)[-1] = q_scale.folded()
    if not any(True for _ in scaled_parts(plain)):
        return plain
    first, extractor = cast(Any, plain.q_net)[0], cast(Any, plain.features_extractor)
    weight, bias = first.weight.double(), first.bias.double()
    for part in scaled_parts(plain):
        weight[:, part.columns] *= part.inputs.scale.double()
        bias -= weight[:, part.columns] @ part.inputs.shift.double()
        if part.name is None:
            plain.features_extractor = FlattenExtractor(part.space)
        else:
            extractor.extractors[part.name] = nn.Flatten()
    first.weight.copy_(weight)
    first.bias.copy_(bias)
    return plain
