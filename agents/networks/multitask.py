"""One network for several tasks of one observation form: a shared torso, and a head of its own for each task.

As in the multi-task agents of Rusu et al. (2016): a head is a small perceptron with an output for each action of its
task, and the task that is played chooses the head. With one head for all tasks, each reads its own of the outputs.

Contract: each task's network is a ``QNetwork`` of Stable-Baselines3 that shares the torso's weights, so that whatever
computes with one, or writes one, does so here. Weights stand once in the parameters and in the state.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.dqn.policies import QNetwork
from torch import Tensor, nn
from torch.nn import functional as F

from polydistill_agents.networks.architecture import Architecture
from polydistill_agents.networks.nature import SIZES, Size, SizedNatureCNN
from polydistill_agents.networks.nature import fits_stock as size_fits_stock
from polydistill_agents.networks.q_scale import QScale, put_on_scale
from polydistill_agents.networks.scaling import ScaledCombined, ScaledFlatten, folded

CONTROLLER = (128,)  # units of a head's hidden layers in the paper
# torsos of the paper: "nature" with three heads has 1,882,668 parameters, "wide" with ten 6,756,721
TORSOS: dict[str, Size] = {**SIZES, "wide": Size((64, 64, 64), 1500)}


def fits_stock(torso: Architecture) -> bool:
    """Whether Stable-Baselines3's ``NatureCNN`` has room for a torso, so that ``DQN.load`` plays its heads.

    Example:
        >>> [fits_stock(Architecture(TORSOS[name], None, (), nn.ReLU)) for name in ("nature", "wide")]
        [True, False]
    """
    return torso.size is None or size_fits_stock(torso.size)


class Outputs(nn.Module):
    """Some of the outputs of a layer that all tasks share.

    Args:
        layer: the last one of the shared head.
        rows: which of its outputs, in the order of the task's actions.
    """

    rows: Tensor

    def __init__(self, layer: nn.Linear, rows: Sequence[int]) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("rows", torch.tensor(list(rows)), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """``(batch, units)`` to ``(batch, actions)``."""
        if isinstance(self.layer, QScale):
            return self.layer(features)[:, self.rows]  # type: ignore[no-any-return]
        return F.linear(features, self.layer.weight[self.rows], self.layer.bias[self.rows])


class MultitaskNetwork(nn.Module):
    """A torso with its heads; initial weights come from torch's current generator.

    Args:
        space: what all tasks show.
        actions: number of each task's actions, by the name of the task: its head has so many outputs.
        torso: widths of the features, of the linear layers behind them that are shared, and the activation.
        controller: units of a head's hidden layers.
        outputs: of one head for all tasks, the outputs that are each task's actions; None: a head for each.

    Attributes:
        heads: by task, or one named "all".

    Raises:
        ValueError: a task's outputs are not as many as its actions.

    Example:
        >>> import numpy as np
        >>> frames = spaces.Box(0, 255, (4, 84, 84), np.uint8)
        >>> torso = Architecture(SIZES["nature"], None, (), nn.ReLU)
        >>> network = MultitaskNetwork(frames, {"freeway": 3, "pong": 3, "qbert": 6}, torso)
        >>> sum(weight.numel() for weight in network.parameters())
        1882668
    """

    def __init__(
        self,
        space: spaces.Space[Any],
        actions: Mapping[str, int],
        torso: Architecture,
        controller: Sequence[int] = CONTROLLER,
        outputs: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        self.space, self.actions, self.torso, self.controller = space, dict(actions), torso, tuple(controller)
        self.outputs = None if outputs is None else {name: tuple(outputs[name]) for name in actions}
        for name, rows in (self.outputs or {}).items():
            if len(set(rows)) != actions[name]:
                raise ValueError(f"{name} has {actions[name]} actions, and {len(set(rows))} outputs of the head")
        self.features = _extractor(space, torso)
        widths = [self.features.features_dim, *torso.net_arch]
        self.trunk = nn.Sequential(*_hidden_layers(widths, torso.activation))
        self.heads = nn.ModuleDict()
        n_outputs = {"all": 1 + max(map(max, self.outputs.values()))} if self.outputs is not None else self.actions
        for name, count in n_outputs.items():
            behind = [widths[-1], *self.controller]
            last = nn.Linear(behind[-1], count)
            self.heads[name] = nn.Sequential(*_hidden_layers(behind, torso.activation), last)
        self._networks = {name: self._network_of(name) for name in actions}

    def of(self, task: str) -> QNetwork:
        """The network of a task: what learns and plays there. It shares its weights with the others."""
        return self._networks[task]

    def alone(self, task: str) -> QNetwork:
        """A copy of a task's network that shares nothing, as it is written to a file: without scales."""
        network = copy.deepcopy(self.of(task))
        last = network.q_net[-1]
        if isinstance(last, Outputs):
            layer = last.layer.folded() if isinstance(last.layer, QScale) else last.layer
            plain = nn.Linear(layer.in_features, len(last.rows), device=last.rows.device)
            with torch.no_grad():
                plain.weight.copy_(layer.weight[last.rows])
                plain.bias.copy_(layer.bias[last.rows])
            network.q_net[-1] = plain
        return folded(network)

    def put_on_scale(self) -> None:
        """Give each head a scale of its outputs, see :mod:`~polydistill_agents.networks.q_scale`; one for all tasks has
        one."""
        for head in self.heads.values():
            put_on_scale(cast(nn.Sequential, head))
        for task, network in self._networks.items():
            layer = cast(Any, self.heads["all" if self.outputs is not None else task])[-1]
            if isinstance(network.q_net[-1], Outputs):
                network.q_net[-1].layer = layer
            else:
                network.q_net[-1] = layer

    def q_scales(self) -> dict[str, QScale]:
        """Those of the outputs, by head: by task, or "all"; empty where there are none."""
        last = {name: cast(Any, head)[-1] for name, head in self.heads.items()}
        return {name: layer for name, layer in last.items() if isinstance(layer, QScale)}

    def plain_weights(self) -> dict[str, Tensor]:
        """The state of a network of the same function without scales of its outputs."""
        weights = dict(self.state_dict())
        for name, scale in self.q_scales().items():
            place = f"heads.{name}.{len(cast(Any, self.heads[name])) - 1}."
            for buffer, _ in scale.named_buffers():
                del weights[place + buffer]
            weights |= {place + part: value for part, value in scale.folded().state_dict().items()}
        return weights

    def _network_of(self, task: str) -> QNetwork:
        with torch.device("meta"):  # no memory is taken, and no random number drawn: its layers are replaced
            network = QNetwork(
                self.space,
                spaces.Discrete(self.actions[task]),
                self.features,
                self.features.features_dim,
                net_arch=[*self.torso.net_arch, *self.controller],
                activation_fn=self.torso.activation,
            )
        head = list(cast(nn.Sequential, self.heads["all" if self.outputs is not None else task]))
        if self.outputs is not None:
            head[-1] = Outputs(cast(nn.Linear, head[-1]), self.outputs[task])
        network.q_net = nn.Sequential(*self.trunk, *head)
        return network.eval()

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        done = cast(Any, super())._apply(*args, **kwargs)
        for network in self._networks.values():  # which outputs are its own lies beside the shared weights
            if isinstance(network.q_net[-1], Outputs):
                network.q_net[-1].rows = network.q_net[-1].rows.to(network.q_net[-1].layer.weight.device)
        return done


def _extractor(space: spaces.Space[Any], torso: Architecture) -> BaseFeaturesExtractor:
    if torso.size is not None:
        return SizedNatureCNN(cast(spaces.Box, space), torso.size.hidden, torso.size.channels)
    if torso.cnn_output_dim is not None:
        return ScaledCombined(cast(spaces.Dict, space), torso.cnn_output_dim)
    return ScaledFlatten(space)


def _hidden_layers(widths: Sequence[int], activation: type[nn.Module]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, behind in pairwise(widths):
        layers += [nn.Linear(before, behind), activation()]
    return layers
