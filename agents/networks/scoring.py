"""From observations as they are stored to scores: how each kind of network computes them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.dqn.policies import QNetwork
from torch import Tensor

from polydistill.device import without_autocast
from polydistill_agents.networks.nature import begins_as_nature, compute_scores
from polydistill_agents.networks.observations import Tensors

Scoring = Callable[[QNetwork, Any], Tensor]  # a network and observations to ``(batch, n_actions)`` float32


def scoring_of(network: QNetwork, precision: str = "float32") -> Scoring:
    """How ``network``, and a copy of it, gives scores. Gradient flows.

    Args:
        network: of Stable-Baselines3's own extractors.
        precision: of a Nature-CNN, see :func:`~polydistill_agents.networks.nature.compute_scores`; all others compute
            in float32.
    """
    space = network.observation_space
    if begins_as_nature(network) and is_image_space(space):
        return partial(compute_scores, precision=precision)
    flat = isinstance(network.features_extractor, FlattenExtractor)
    numbers = isinstance(space, spaces.Box) and not is_image_space(space)
    return _score_numbers if flat and numbers else _score


def _score_numbers(network: QNetwork, observations: Tensor) -> Tensor:
    """As ``network`` itself, whose look at the kind of its observations takes longer than its layers."""
    with without_autocast(observations.device.type):
        return cast(Tensor, network.q_net(cast(Any, network.features_extractor)(observations.float())))


def _score(network: QNetwork, observations: Tensors) -> Tensor:
    with without_autocast(network.device.type):
        return cast(Tensor, network(cast(Any, observations)))
