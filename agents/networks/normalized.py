"""A network behind the statistics of a ``VecNormalize`` that no longer move."""

from __future__ import annotations

from typing import NamedTuple, cast

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn


class Statistics(NamedTuple):
    """What is done to an observation.

    Attributes:
        mean: of the shape of an observation, float64.
        variance: likewise.
        clip: bound of what comes out, > 0.
        epsilon: added to the variance, > 0.
    """

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    clip: float
    epsilon: float


class Normalized(nn.Module):
    """A network behind statistics that no longer move.

    Args:
        network: from normalised observations to scores.
        statistics: of the observations as they come.
        space: of the observations as they come.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, network: nn.Module, statistics: Statistics, space: spaces.Box) -> None:
        super().__init__()
        self.network, self.observation_space = network, space
        self.clip, self.epsilon = statistics.clip, statistics.epsilon
        self.register_buffer("mean", torch.tensor(statistics.mean, dtype=torch.float64))
        self.register_buffer("variance", torch.tensor(statistics.variance, dtype=torch.float64))

    @property
    def statistics(self) -> Statistics:
        """As given."""
        mean, variance = (value.double().cpu().numpy() for value in (self.mean, self.variance))
        return Statistics(mean, variance, self.clip, self.epsilon)

    def scale(self, observations: Tensor) -> Tensor:
        """What the network sees of observations ``(batch, ...)`` of any type, float32."""
        scaled = (observations - self.mean) / torch.sqrt(self.variance + self.epsilon)
        return scaled.clamp(-self.clip, self.clip).float()

    def forward(self, observations: Tensor) -> Tensor:
        """Observations ``(batch, ...)`` of any type to scores ``(batch, actions)``."""
        return cast(Tensor, self.network(self.scale(observations)))
