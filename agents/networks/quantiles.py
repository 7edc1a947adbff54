"""The quantiles of a QR-DQN as the Q-values that they stand for."""

from __future__ import annotations

from typing import Any, cast

from gymnasium import spaces
from stable_baselines3.dqn.policies import QNetwork
from torch import Tensor, nn

from polydistill.losses import average_quantiles
from polydistill_agents.networks.building import build


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
        self.observation_space: spaces.Space[Any] = quantile_net.observation_space

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
