"""A frozen source of scores, of known kind: what students learn from."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.dqn.policies import QNetwork
from torch import Tensor, nn

from polydistill.errors import UserError
from polydistill_agents.environments.task import Task
from polydistill_agents.networks.kinds import SCORE_KINDS, ScoreFunction
from polydistill_agents.networks.nature import Size, is_nature, size_of
from polydistill_agents.networks.quantiles import QuantileNetwork


class Teacher:
    """A frozen source of scores.

    Args:
        function: from ``(batch, stack, height, width)`` uint8 to ``(batch, n_actions)`` scores.
        kind: "q_values" or "logits".
        network: the network behind ``function``, where there is one. It is frozen and put in eval mode.

    Attributes:
        kind: as given.
        network: hashed, counted, and copied in shape by an identical student. None for a bare function.
        size: widths of the network if it is a Nature-CNN that sees pixels (of a QR-DQN: without its quantiles),
            else None.
    """

    def __init__(self, function: ScoreFunction, *, kind: str = "q_values", network: nn.Module | None = None) -> None:
        if kind not in SCORE_KINDS:
            raise ValueError(f"kind must be one of {SCORE_KINDS}, got {kind!r}")
        self._function, self.kind, self.network = function, kind, network
        self._device = torch.device("cpu")
        if network is not None:
            network.eval().requires_grad_(False)
            self._device = next((parameter.device for parameter in network.parameters()), self._device)
        inner = network.quantile_net if isinstance(network, QuantileNetwork) else network
        self.size: Size | None = size_of(inner) if isinstance(inner, QNetwork) and sees_pixels(inner) else None

    @torch.no_grad()
    def __call__(self, observations: Tensor) -> Tensor:
        """Scores ``(batch, n_actions)`` float32 of observations ``(batch, stack, height, width)`` uint8."""
        if self.network is not None and any(module.training for module in self.network.modules()):
            self.network.eval()  # someone put it into train mode
        with torch.autocast(observations.device.type, enabled=False):
            return self._function(observations).float()

    def to(self, device: torch.device | str) -> Teacher:
        """Move the network, where there is one, to ``device``, where observations will come from."""
        self._device = torch.device(device)
        if self.network is not None:
            self.network.to(device)
        return self

    def count_actions(self, task: Task) -> int:
        """How many actions of ``task`` it scores, its own or all; it is asked, and no environment is opened.

        Raises:
            UserError: it is of another task, or fails.
        """
        self._check_observations(task.observation_space)
        actions = task.actions_of(self._probe(task.observation_space).shape[1])
        self.check_fits(task.observation_space, actions)
        return int(actions.n)

    def check_fits(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        """Compare the teacher's inputs and outputs with those of a game, and ask it once.

        Raises:
            UserError: they differ, or the teacher fails.
        """
        if not isinstance(action_space, spaces.Discrete) or not isinstance(observation_space, spaces.Box):
            raise UserError(f"a teacher of Atari needs discrete actions and frames, not {action_space}")
        self._check_observations(observation_space)
        scores = self._probe(observation_space)
        n_actions = int(action_space.n)
        if scores.shape[1] != n_actions:
            raise UserError(
                f"the teacher scores {scores.shape[1]} actions, the game has {n_actions}: "
                "was it trained on another game, or on the full set of 18 actions?"
            )
        if bool(scores.isnan().any()):
            raise UserError("the teacher's scores are not numbers (NaN)")

    def _check_observations(self, space: spaces.Space[Any]) -> None:
        taught = getattr(self.network, "observation_space", None)
        if isinstance(taught, spaces.Space) and (taught.shape, taught.dtype) != (space.shape, space.dtype):
            raise UserError(
                f"the teacher sees {taught.dtype} {taught.shape}, the game shows {space.dtype} {space.shape}"
            )

    def _probe(self, space: spaces.Space[Any]) -> Tensor:
        """Its scores of two black screens, ``(2, actions)``."""
        try:
            scores = self(torch.zeros((2, *(space.shape or ())), dtype=torch.uint8, device=self._device))
        except Exception as error:  # the teacher may be any code
            reason = (str(error).splitlines() or [""])[0]
            raise UserError(
                f"the teacher fails on observations {space.shape}: {type(error).__name__}: {reason}"
            ) from error
        if scores.dim() != 2 or len(scores) != 2:
            raise UserError(
                f"the teacher must give one row of scores per observation, gave {tuple(scores.shape)} for 2"
            )
        return scores


def sees_pixels(network: nn.Module) -> bool:
    """Whether it is a Nature-CNN of uint8 frames, as ``compute_scores`` computes it."""
    return is_nature(network) and network.observation_space.dtype == np.uint8
