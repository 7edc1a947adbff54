"""What gives scores of actions, and the kinds of scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stable_baselines3.dqn.policies import QNetwork
from torch import Tensor

from polydistill_agents.networks.normalized import Normalized
from polydistill_agents.networks.quantiles import QuantileNetwork
from polydistill_agents.networks.recurrent import RecurrentNetwork

SCORE_KINDS = ("q_values", "logits")
ScoreFunction = Callable[[Any], Tensor]  # observations as they are stored (``Tensors``) to ``(batch, actions)``
ScoreNetwork = QNetwork | QuantileNetwork | RecurrentNetwork | Normalized  # what a file holds
