"""A network that remembers: the actor of sb3-contrib's RecurrentPPO, from its tensors.

Features of an observation, an LSTM over the steps of a game, linear layers, scores. What the LSTM holds of each game is
its memory: hidden and cell state, each ``(layers, games, units)`` float32, zeros where a game begins.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, cast

import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, create_mlp
from torch import Tensor, nn

from polydistill_agents.networks.building import build_extractor, linear_layers
from polydistill_agents.networks.observations import Tensors, count_rows

Memory = tuple[Tensor, Tensor]


class Remembering(nn.Module, ABC):
    """What scores a step given what is remembered of the game."""

    @abstractmethod
    def begin(self, n_games: int) -> Memory:
        """The memory of games that have not begun."""

    @abstractmethod
    def step(self, observations: Tensors, memory: Memory, starts: Tensor) -> tuple[Tensor, Memory]:
        """Scores ``(games, actions)``, and the memory after this step.

        Args:
            observations: one of each game.
            memory: before it.
            starts: ``(games,)`` bool: True where a new game begins, whose memory is then zeros.
        """

    def forward(self, observations: Tensors) -> Tensor:
        """Scores of first observations: nothing is remembered."""
        rows = count_rows(observations)
        memory = self.begin(rows)
        return self.step(observations, memory, torch.ones(rows, dtype=torch.bool, device=memory[0].device))[0]


class RecurrentNetwork(Remembering):
    """Scores of a step, given what is remembered of the game.

    Args:
        features_extractor: of Stable-Baselines3.
        lstm: over its features.
        q_net: from what the LSTM gives to scores.
        space: of the observations.
        normalize_images: whether pixels are divided by 255.
    """

    def __init__(
        self,
        features_extractor: BaseFeaturesExtractor,
        lstm: nn.LSTM,
        q_net: nn.Sequential,
        space: spaces.Space[Any],
        normalize_images: bool = True,
    ) -> None:
        super().__init__()
        self.features_extractor, self.lstm, self.q_net = features_extractor, lstm, q_net
        self.observation_space, self.normalize_images = space, normalize_images

    def begin(self, n_games: int) -> Memory:
        """The memory of games that have not begun."""
        first = next(self.lstm.parameters())
        hidden = first.new_zeros(self.lstm.num_layers, n_games, self.lstm.hidden_size)
        return hidden, hidden.clone()

    def step(self, observations: Tensors, memory: Memory, starts: Tensor) -> tuple[Tensor, Memory]:
        """See :meth:`Remembering.step`."""
        seen: Any = preprocess_obs(observations, self.observation_space, normalize_images=self.normalize_images)
        goes_on = (~starts).to(memory[0].dtype).view(1, -1, 1)
        output, after = self.lstm(
            self.features_extractor(seen).unsqueeze(0), (memory[0] * goes_on, memory[1] * goes_on)
        )
        return cast(Tensor, self.q_net(output.squeeze(0))), after


def build_recurrent(
    weights: Mapping[str, Tensor],
    space: spaces.Space[Any],
    activation: type[nn.Module],
    normalize_images: bool = True,
) -> RecurrentNetwork:
    """A network that holds exactly these tensors, in eval mode.

    Args:
        weights: under the names of :class:`RecurrentNetwork`.
        space: of the observations.
        activation: between the linear layers behind the LSTM.
        normalize_images: whether pixels are divided by 255.

    Raises:
        KeyError: a tensor is missing.
        ValueError, RuntimeError: the tensors do not fit one another, or the space.
    """
    widths = [layer.shape[0] for layer in linear_layers(weights)]
    inputs, recurrent = weights["lstm.weight_ih_l0"], weights["lstm.weight_hh_l0"]
    if inputs.dim() != 2 or recurrent.dim() != 2:
        raise ValueError("its LSTM is not of matrices")
    units, n_layers = recurrent.shape[1], sum(name.startswith("lstm.weight_ih_l") for name in weights)
    with torch.device("meta"):
        extractor = build_extractor(weights, space)
        lstm = nn.LSTM(inputs.shape[1], units, n_layers)
        head = nn.Sequential(*create_mlp(units, widths[-1], widths[:-1], activation))
        network = RecurrentNetwork(extractor, lstm, head, space, normalize_images)
    if extractor.features_dim != lstm.input_size:
        raise ValueError(f"observations give {extractor.features_dim} features, the LSTM has {lstm.input_size} inputs")
    network.load_state_dict(dict(weights), assign=True)
    return network.eval()
