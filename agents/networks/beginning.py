"""How a student begins: the scale of its inputs, and initial weights, taken from the first states of play.

Data-dependent initialisation (Krähenbühl et al. 2016, arXiv 1511.06856; Salimans and Kingma 2016, arXiv 1602.07868):
orthogonal weights, then layer by layer a scale and a bias for each channel, such that every unit's input has mean 0 and
deviation 1. On Atari the background drowns the few pixels that move, and with torch's own initial weights a student
stays for hundreds of thousands of samples where it gives the same policy in every state. The last layer starts near
zero: a uniform policy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import CombinedExtractor
from stable_baselines3.dqn.policies import QNetwork
from torch import Tensor, nn
from torch.nn import functional as F

from polydistill_agents.networks.multitask import MultitaskNetwork
from polydistill_agents.networks.observations import Tensors, count_rows, join
from polydistill_agents.networks.scaling import fit_scales

Layers = Iterable[tuple[Any, Callable[[Tensor], Tensor]]]


@torch.no_grad()
def initialize_from_data(network: QNetwork, observations: Tensors, generator: torch.Generator) -> None:
    """Draw the weights such that every unit's input has mean 0 and deviation 1 over ``observations``.

    Args:
        network: of Nature-CNNs, flat parts and linear layers; on any device. Changed in place. The scale of its inputs
            (:mod:`~polydistill_agents.networks.scaling`) stays.
        observations: as they are stored, on the network's device; some hundreds of states of play.
        generator: on the CPU, of the orthogonal weights.
    """
    _begin_head(cast(Any, network.q_net), _begin_features(network, observations, generator), generator)


def begin(network: QNetwork, observations: Tensors, generator: torch.Generator, *, scaled: bool = False) -> None:
    """Scale of the inputs, unless they are ``scaled``, and initial weights; see above."""
    if not scaled:
        fit_scales(network, observations)
    initialize_from_data(network, observations, generator)


@torch.no_grad()
def begin_multitask(network: MultitaskNetwork, observations: Mapping[str, Tensors], generator: torch.Generator) -> None:
    """As :func:`begin`, of a torso that sees all tasks, and of heads that each see their own, or of one that sees all.

    Args:
        network: changed in place.
        observations: of each task, as many of one as of another.
        generator: on the CPU.
    """
    states, one = join(list(observations.values())), network.of(next(iter(observations)))
    fit_scales(one, states)
    features = _begin_features(one, states, generator)
    trunk = cast(Any, network.trunk)
    features = _begin_layers(zip(trunk[::2], trunk[1::2], strict=True), features, generator)
    own = torch.split(features, [count_rows(seen) for seen in observations.values()])
    seen_by = dict(zip(observations, own, strict=True)) if network.outputs is None else {"all": features}
    for name, seen in seen_by.items():
        _begin_head(network.heads[name], seen, generator)


def _begin_features(network: QNetwork, observations: Tensors, generator: torch.Generator) -> Tensor:
    extractor = cast(Any, network.features_extractor)
    inputs: Any = preprocess_obs(cast(Any, observations), network.observation_space, network.normalize_images)
    if not isinstance(extractor, CombinedExtractor):
        return _begin_part(extractor, inputs, generator)
    parts = [_begin_part(part, inputs[name], generator) for name, part in extractor.extractors.items()]
    return torch.cat(parts, dim=1)


def _begin_head(layers: Any, features: Tensor, generator: torch.Generator) -> None:
    _begin_layers(zip(layers[:-1:2], layers[1::2], strict=True), features, generator)
    _draw_orthogonal(layers[-1], 0.01, generator)


def _begin_part(extractor: Any, inputs: Tensor, generator: torch.Generator) -> Tensor:
    """Features, of a Nature-CNN whose weights are drawn, or of a part without weights."""
    if not hasattr(extractor, "cnn"):
        return cast(Tensor, extractor(inputs))
    convolutions = [layer for layer in extractor.cnn if isinstance(layer, nn.Conv2d)]
    return _begin_layers([(layer, F.relu) for layer in (*convolutions, extractor.linear[0])], inputs, generator)


def _begin_layers(layers: Layers, x: Tensor, generator: torch.Generator) -> Tensor:
    for layer, activation in layers:
        _draw_orthogonal(layer, 1.0, generator)
        x = x if isinstance(layer, nn.Conv2d) else x.flatten(1)
        inputs = layer(x)
        axes = [axis for axis in range(inputs.dim()) if axis != 1]
        mean, deviation = inputs.mean(axes), inputs.std(axes).clamp(min=1e-3)  # a dead unit stays as it is
        layer.weight.div_(deviation.view(-1, *[1] * (layer.weight.dim() - 1)))
        layer.bias.copy_(-mean / deviation)
        x = activation(layer(x))
    return x


def _draw_orthogonal(layer: Any, gain: float, generator: torch.Generator) -> None:
    weight = torch.empty(layer.weight.shape)
    nn.init.orthogonal_(weight, gain, generator)
    layer.weight.copy_(weight)
    layer.bias.zero_()
