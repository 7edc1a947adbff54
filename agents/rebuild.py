"""Networks from tables of tensors: the shapes give the widths, a description gives the rest.

Whatever the algorithm, an agent's greedy actions come from frames or vectors -> features -> linear layers -> scores.
That is Stable-Baselines3's ``QNetwork``; a QR-DQN's has an output for each quantile, and their mean behind it. So
:func:`rebuild` brings the tensors under the names of a ``QNetwork``, and drops what plays no part (target networks,
critics) after a look at its names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.dqn.policies import QNetwork
from torch import Tensor, nn

from agents.archive import shown
from agents.networks import KERNELS, SizedNatureCNN
from agents.normalization import Normalized
from agents.sb3_data import MAX_SIDE, MAX_STACK, Description
from polydistill.errors import UserError
from polydistill.losses import average_quantiles

CONVOLUTIONS = tuple(f"features_extractor.cnn.{i}.weight" for i in (0, 2, 4))
HIDDEN = "features_extractor.linear.0.weight"
FRAME = (84, 84)  # where nothing names the observations


class QuantileNetwork(nn.Module):
    """The mean over the quantiles of a QR-DQN: its Q-values.

    Args:
        quantile_net: with ``n_quantiles * n_actions`` outputs, the actions of one quantile side by side.
        n_quantiles: >= 1.
    """

    def __init__(self, quantile_net: QNetwork, n_quantiles: int) -> None:
        super().__init__()
        self.quantile_net, self.n_quantiles = quantile_net, n_quantiles
        self.n_actions = int(quantile_net.action_space.n) // n_quantiles
        self.observation_space = cast(spaces.Box, quantile_net.observation_space)

    def forward(self, observations: Tensor) -> Tensor:
        """Observations to ``(batch, n_actions)`` Q-values."""
        quantiles = self.quantile_net(observations)
        return average_quantiles(quantiles.view(-1, self.n_quantiles, self.n_actions))

    def averaged(self) -> QNetwork:
        """The same function as a plain ``QNetwork``: the mean of linear outputs is a linear layer too."""
        weights = self.quantile_net.state_dict()
        head = f"q_net.{len(cast(Any, self.quantile_net.q_net)) - 1}"
        for name in (f"{head}.weight", f"{head}.bias"):
            value = weights[name]
            weights[name] = value.view(self.n_quantiles, self.n_actions, *value.shape[1:]).mean(dim=0)
        return build(
            weights, self.observation_space, self.quantile_net.activation_fn, self.quantile_net.normalize_images
        )


ScoreNetwork = QNetwork | QuantileNetwork | Normalized  # what a file holds


def rebuild(weights: Mapping[str, Tensor], description: Description, where: str) -> QNetwork | QuantileNetwork:
    """The network that scores the actions, in float32, in eval mode, with memory of its own.

    Args:
        weights: the tensors of ``policy.pth``, checked.
        description: what the shapes do not show.
        where: the file's name, for the refusal.

    Raises:
        UserError: the tensors do not form the network that is described.
    """
    algorithm = description.algorithm
    kind = "Nature-CNN" if any(".cnn." in name for name in weights) else "network of linear layers"
    try:
        own = own_names(weights, algorithm)
        outputs = _head(own).shape[0]
        if outputs != description.n_actions * description.n_quantiles:
            counted = f"{description.n_actions} actions" + (
                f" and {description.n_quantiles} quantiles" if algorithm == "QR-DQN" else ""
            )
            raise ValueError(f"{outputs} outputs are not those of {counted}")
        space = description.space or space_of(own)
        network = build(own_memory(own), space, description.activation, description.normalize_images)
        if algorithm != "actor-critic":
            _check_target(weights, "q_net" if algorithm == "DQN" else "quantile_net")
    except KeyError as error:
        raise UserError(f"{where}: its weights do not form a {algorithm} with a {kind} ({error} is missing)") from None
    except (RuntimeError, ValueError) as error:
        reason = " ".join(" ".join(str(error).splitlines()[:2]).split())[:300]
        raise UserError(f"{where}: its weights do not form a {algorithm} with a {kind} ({reason})") from None
    if algorithm != "QR-DQN":
        return network
    return QuantileNetwork(network, description.n_quantiles).eval()


def build(
    weights: Mapping[str, Tensor],
    space: spaces.Box,
    activation: type[nn.Module] = nn.ReLU,
    normalize_images: bool = True,
) -> QNetwork:
    """A ``QNetwork`` that holds exactly these tensors, in eval mode.

    Raises:
        KeyError: a tensor is missing.
        ValueError, RuntimeError: the tensors do not fit one another, or the space.
    """
    layers = _linear_layers(weights)
    widths = [layer.shape[0] for layer in layers]
    extractor: Any
    with torch.device("meta"):  # no memory is taken, and no random number drawn, for weights that nobody keeps
        if CONVOLUTIONS[0] in weights:
            channels, hidden = _nature_sizes(weights, space)
            extractor = SizedNatureCNN(space, hidden, channels)
        else:
            extractor = FlattenExtractor(space)
        if layers[0].shape[1] != extractor.features_dim:
            raise ValueError(
                f"observations {space.shape} give {extractor.features_dim} features, "
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


def space_of(weights: Mapping[str, Tensor]) -> spaces.Box:
    """What the network sees, where nothing names it: 84 x 84 pixels for a Nature-CNN, else a vector of floats.

    Raises:
        KeyError: there is no such layer.
        ValueError: it stacks an absurd number of frames.
    """
    if CONVOLUTIONS[0] not in weights:
        return spaces.Box(-np.inf, np.inf, (_linear_layers(weights)[0].shape[1],), np.float32)
    first = weights[CONVOLUTIONS[0]]
    if first.dim() != 4:
        raise ValueError("its layers are not three convolutions and linear ones")
    if first.shape[1] > MAX_STACK:
        raise ValueError(f"it stacks {first.shape[1]} frames, more than {MAX_STACK}")
    return spaces.Box(0, 255, (first.shape[1], *FRAME), np.uint8)


def own_memory(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights in float32, in torch's own order of axes, in memory that nothing else uses."""
    return {name: value.float().clone(memory_format=torch.contiguous_format) for name, value in weights.items()}


def own_names(weights: Mapping[str, Tensor], algorithm: str) -> dict[str, Tensor]:
    """The tensors of a policy that score the actions, under the names of a ``QNetwork``.

    Args:
        weights: under the names of Stable-Baselines3's policies.
        algorithm: "DQN", "QR-DQN" or "actor-critic".

    Raises:
        KeyError: a tensor is missing.
        ValueError: one is no part of such a policy.
    """
    return _of_actor(weights) if algorithm == "actor-critic" else _of_values(weights, algorithm)


def _of_values(weights: Mapping[str, Tensor], algorithm: str) -> dict[str, Tensor]:
    """The online network of a DQN or QR-DQN, under the names of a ``QNetwork``."""
    prefix = {"DQN": "q_net", "QR-DQN": "quantile_net"}[algorithm]
    own = _below(weights, f"{prefix}.")
    _refuse_others(weights, (f"{prefix}.", f"{prefix}_target."))
    return {re.sub(f"^{prefix}\\.", "q_net.", name): value for name, value in own.items()}


def _check_target(weights: Mapping[str, Tensor], prefix: str) -> None:
    own, target = (
        {name: value.shape for name, value in _below(weights, p).items()} for p in (f"{prefix}.", f"{prefix}_target.")
    )
    if target and own != target:
        raise ValueError("online and target network differ in shape")


def _of_actor(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The actor of an actor-critic, under the names of a ``QNetwork``; with features of its own, or the critic's."""
    critic = ("vf_features_extractor.", "mlp_extractor.value_net.", "value_net.")
    actor = ("features_extractor.", "pi_features_extractor.", "mlp_extractor.shared_net.", "mlp_extractor.policy_net.")
    _refuse_others(weights, (*critic, *actor, "action_net."))
    features = _below(weights, "pi_features_extractor.") or _below(weights, "features_extractor.")
    own = {f"features_extractor.{name}": value for name, value in features.items()}
    index = 0
    for part in ("mlp_extractor.shared_net.", "mlp_extractor.policy_net."):
        layers = _below(weights, part)
        for i in range(0, len(layers), 2):  # linear layers at 0, 2, ...; a function between two of them
            for kind in ("weight", "bias"):
                own[f"q_net.{index}.{kind}"] = layers[f"{i}.{kind}"]
            index += 2
    for kind in ("weight", "bias"):
        own[f"q_net.{index}.{kind}"] = weights[f"action_net.{kind}"]
    return own


def _below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _refuse_others(weights: Iterable[str], known: tuple[str, ...]) -> None:
    for name in weights:
        if not name.startswith(known):
            raise ValueError(f"{shown(name)} is no part of it")


def _linear_layers(weights: Mapping[str, Tensor]) -> list[Tensor]:
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


def _head(weights: Mapping[str, Tensor]) -> Tensor:
    return _linear_layers(weights)[-1]


def _nature_sizes(weights: Mapping[str, Tensor], space: spaces.Box) -> tuple[tuple[int, int, int], int]:
    """Channels and hidden units; the frames must be those that the hidden layer has inputs for."""
    convolutions, hidden = [weights[name] for name in CONVOLUTIONS], weights[HIDDEN]
    if [value.dim() for value in (*convolutions, hidden)] != [4, 4, 4, 2]:
        raise ValueError("its layers are not three convolutions and linear ones")
    if len(space.shape) != 3 or max(space.shape) > MAX_SIDE:
        raise ValueError(f"observations {space.shape} are no frames for convolutions")
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
