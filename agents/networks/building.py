"""A ``QNetwork`` from its tensors: the shapes give the widths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor
from stable_baselines3.dqn.policies import QNetwork
from torch import Tensor, nn

from polydistill_agents.networks.fitting import tell_space
from polydistill_agents.networks.nature import KERNELS, SizedNatureCNN

MAX_SIDE, MAX_STACK = 512, 64  # of frames
MIN_SIDE = 36  # of frames: what three convolutions make one pixel of
CONVOLUTIONS = tuple(f"features_extractor.cnn.{i}.weight" for i in (0, 2, 4))
HIDDEN = "features_extractor.linear.0.weight"
FRAME = (84, 84)  # where nothing names the observations


def build(
    weights: Mapping[str, Tensor],
    space: spaces.Space[Any],
    activation: type[nn.Module] = nn.ReLU,
    normalize_images: bool = True,
) -> QNetwork:
    """A ``QNetwork`` that holds exactly these tensors, in eval mode.

    Its features are those of Stable-Baselines3: a Nature-CNN where there are convolutions, a ``CombinedExtractor`` of a
    Dict, else the observation itself, flat (of counts: one-hot).

    Raises:
        KeyError: a tensor is missing.
        ValueError, RuntimeError: the tensors do not fit one another, or the space.
    """
    layers = linear_layers(weights)
    widths = [layer.shape[0] for layer in layers]
    with torch.device("meta"):  # no memory is taken, and no random number drawn, for weights that nobody keeps
        extractor = build_extractor(weights, space)
        if layers[0].shape[1] != extractor.features_dim:
            raise ValueError(
                f"observations {tell_space(space)} give {extractor.features_dim} features, "
                f"the first linear layer has {layers[0].shape[1]} inputs"
            )
        network = QNetwork(
            space,
            spaces.Discrete(widths[-1]),
            extractor,
            extractor.features_dim,
            net_arch=widths[:-1],
            activation_fn=activation,
            normalize_images=normalize_images,
        )
    network.load_state_dict(dict(weights), assign=True)
    return network.eval()


def build_extractor(weights: Mapping[str, Tensor], space: spaces.Space[Any]) -> BaseFeaturesExtractor:
    """The extractor whose weights stand below ``features_extractor.``, with weights of its own; build it on "meta".

    Raises:
        KeyError: a tensor is missing.
        ValueError: the tensors do not fit the space.
    """
    if isinstance(space, spaces.Dict):
        return _combined(weights, space)
    if CONVOLUTIONS[0] not in weights:
        return FlattenExtractor(space)
    channels, hidden = _nature_sizes(weights, space)
    return SizedNatureCNN(space, hidden, channels)  # type: ignore[arg-type]  # a Box: its sizes fit


def space_of(weights: Mapping[str, Tensor]) -> spaces.Box:
    """The observation space where the file names none: 84 x 84 pixels for a Nature-CNN, else a vector of floats.

    Raises:
        KeyError: there is no such layer.
        ValueError: it stacks an absurd number of frames.
    """
    if CONVOLUTIONS[0] not in weights:
        return spaces.Box(-np.inf, np.inf, (linear_layers(weights)[0].shape[1],), np.float32)
    first = weights[CONVOLUTIONS[0]]
    if first.dim() != 4:
        raise ValueError("its layers are not three convolutions and linear ones")
    if first.shape[1] > MAX_STACK:
        raise ValueError(f"it stacks {first.shape[1]} frames, more than {MAX_STACK}")
    return spaces.Box(0, 255, (first.shape[1], *FRAME), np.uint8)


def linear_layers(weights: Mapping[str, Tensor]) -> list[Tensor]:
    """The weights of ``q_net.0``, ``q_net.2``, ... in order.

    Raises:
        KeyError: there is none.
        ValueError: one is no matrix.
    """
    layers: list[Tensor] = []
    while (name := f"q_net.{2 * len(layers)}.weight") in weights or not layers:
        layers.append(weights[name])
        if layers[-1].dim() != 2:
            raise ValueError(f"{name} is no matrix")
    return layers


def _combined(weights: Mapping[str, Tensor], space: spaces.Dict) -> CombinedExtractor:
    """Of each image the features of a Nature-CNN, all of one width; of the others themselves; side by side."""
    widths = {}
    for name, part in space.items():
        hidden = weights.get(f"features_extractor.extractors.{name}.linear.0.weight")
        if hidden is None:
            continue
        if not isinstance(part, spaces.Box) or len(part.shape) != 3 or min(part.shape[1:]) < MIN_SIDE:
            raise ValueError(f"{name}: observations {tell_space(part)} are no frames for convolutions")
        widths[name] = hidden.shape[0]
    if len(set(widths.values())) > 1:
        raise ValueError(f"its Nature-CNNs are of several widths {sorted(set(widths.values()))}")
    normalized_image = any(not is_image_space(space[name]) for name in widths)
    return CombinedExtractor(space, next(iter(widths.values()), 1), normalized_image)


def _nature_sizes(weights: Mapping[str, Tensor], space: spaces.Space[Any]) -> tuple[tuple[int, int, int], int]:
    """Channels and hidden units; the frames must be those that the hidden layer has inputs for."""
    convolutions, hidden = [weights[name] for name in CONVOLUTIONS], weights[HIDDEN]
    if [value.dim() for value in (*convolutions, hidden)] != [4, 4, 4, 2]:
        raise ValueError("its layers are not three convolutions and linear ones")
    if not isinstance(space, spaces.Box) or len(space.shape) != 3 or max(space.shape) > MAX_SIDE:
        raise ValueError(f"observations {tell_space(space)} are no frames for convolutions")
    first, second, third = (value.shape[0] for value in convolutions)
    side: Any = space.shape[1:]
    for size, stride in KERNELS:
        side = [(length - size) // stride + 1 for length in side]
    if convolutions[0].shape[1] != space.shape[0] or hidden.shape[1] != third * max(side[0], 0) * max(side[1], 0):
        raise ValueError(
            f"its frames are not {' x '.join(map(str, space.shape))}: the first convolution has "
            f"{convolutions[0].shape[1]} channels in, the hidden layer {hidden.shape[1]} inputs"
        )
    return (first, second, third), hidden.shape[0]
