"""Anything as a teacher: a zip of Stable-Baselines3, a model of it, or a callable from observations to scores.

:func:`as_teacher` turns each of them into a :class:`Teacher`: frozen, in eval mode, outside the graph, in
float32, with the kind of its scores known (Q-values are sharpened with a low temperature, logits are taken
at temperature 1).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.dqn.policies import QNetwork
from torch import Tensor, nn

from agents.networks import Size, compute_scores, is_nature, size_of
from agents.sb3_zip import SCORE_KINDS, kind_of, read_agent, rebuild_network
from polydistill.errors import UserError

ScoreFunction = Callable[[Tensor], Tensor]


class Teacher:
    """A frozen source of scores.

    Args:
        function: from ``(batch, stack, height, width)`` uint8 to ``(batch, n_actions)`` scores.
        kind: "q_values" or "logits".
        network: the network behind ``function``, where there is one. It is frozen and put in eval mode.

    Attributes:
        kind: as given.
        network: hashed, counted, and copied in shape by an identical student. None for a bare function.
        size: widths of the network if it is a Nature-CNN, else None.
    """

    def __init__(self, function: ScoreFunction, *, kind: str = "q_values", network: nn.Module | None = None) -> None:
        if kind not in SCORE_KINDS:
            raise ValueError(f"kind must be one of {SCORE_KINDS}, got {kind!r}")
        self._function, self.kind, self.network = function, kind, network
        self._device = torch.device("cpu")
        if network is not None:
            network.eval().requires_grad_(False)
            self._device = next((parameter.device for parameter in network.parameters()), self._device)
        self.size: Size | None = size_of(network) if isinstance(network, QNetwork) and is_nature(network) else None

    @torch.no_grad()
    def __call__(self, observations: Tensor) -> Tensor:
        """Scores ``(batch, n_actions)`` float32 of observations ``(batch, stack, height, width)`` uint8."""
        if self.network is not None and any(module.training for module in self.network.modules()):
            self.network.eval()  # someone switched it on
        with torch.autocast(observations.device.type, enabled=False):
            return self._function(observations).float()

    def to(self, device: torch.device | str) -> Teacher:
        """Move the network, where there is one, to ``device``, where observations will come from."""
        self._device = torch.device(device)
        if self.network is not None:
            self.network.to(device)
        return self

    def check_fits(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        """Compare the teacher's inputs and outputs with those of a game, and ask it once.

        Raises:
            UserError: they differ, or the teacher fails.
        """
        if not isinstance(action_space, spaces.Discrete) or not isinstance(observation_space, spaces.Box):
            raise UserError(f"a teacher of Atari needs discrete actions and frames, not {action_space}")
        shown = observation_space.shape
        taught = getattr(self.network, "observation_space", None)
        if isinstance(taught, spaces.Space) and (taught.shape, taught.dtype) != (shown, observation_space.dtype):
            raise UserError(
                f"the teacher sees {taught.dtype} {taught.shape}, the game shows {observation_space.dtype} {shown}"
            )
        try:
            scores = self(torch.zeros((2, *shown), dtype=torch.uint8, device=self._device))
        except Exception as error:  # the teacher may be any code
            reason = (str(error).splitlines() or [""])[0]
            raise UserError(f"the teacher fails on observations {shown}: {type(error).__name__}: {reason}") from error
        n_actions = int(action_space.n)
        if scores.dim() != 2 or len(scores) != 2:
            raise UserError(
                f"the teacher must give one row of scores per observation, gave {tuple(scores.shape)} for 2"
            )
        if scores.shape[1] != n_actions:
            raise UserError(
                f"the teacher scores {scores.shape[1]} actions, the game has {n_actions}: "
                "was it trained on another game, or on the full set of 18 actions?"
            )
        if bool(scores.isnan().any()):
            raise UserError("the teacher's scores are not numbers (NaN)")


def as_teacher(source: str | Path | BaseAlgorithm | Teacher | QNetwork | ScoreFunction, **options: Any) -> Teacher:
    """Turn ``source`` into a :class:`Teacher`.

    Networks are copied: training one on does not move the teacher, and freezing the teacher does not freeze it.

    Args:
        source: the path of a DQN zip; a Stable-Baselines3 model (DQN, QR-DQN, PPO, A2C); a Q-network or another
            module; or a bare function from ``(batch, stack, height, width)`` uint8 to scores.
        options: ``kind`` for a function or a module ("q_values" by default); a zip and a model know their own.

    Raises:
        UserError: the file does not open, or holds no network that is known; a model without discrete actions.
        TypeError: an option that ``source`` does not take.
    """
    if isinstance(source, nn.Module) or (callable(source) and not isinstance(source, (Teacher, BaseAlgorithm))):
        return _from_callable(source, **options)
    if options:
        raise TypeError(f"a {type(source).__name__} knows its own {', '.join(options)}")
    if isinstance(source, Teacher):
        return source
    if isinstance(source, (str, Path)):
        agent = read_agent(source)
        return _from_callable(rebuild_network(agent, source), kind=agent.scores)
    if isinstance(source, BaseAlgorithm):
        return _from_model(source)
    raise UserError(
        f"no teacher: expected a path, a Stable-Baselines3 model or a callable, got {type(source).__name__}"
    )


def _from_callable(source: ScoreFunction, kind: str = "q_values") -> Teacher:
    if not isinstance(source, nn.Module):
        return Teacher(source, kind=kind)
    network = copy.deepcopy(source)
    if isinstance(network, QNetwork) and is_nature(network):
        return Teacher(lambda observations: compute_scores(network, observations), kind=kind, network=network)
    return Teacher(network, kind=kind, network=network)


def _from_model(model: BaseAlgorithm) -> Teacher:
    if not isinstance(model.action_space, spaces.Discrete):
        raise UserError(
            f"a teacher of Atari needs discrete actions, this {type(model).__name__} has {model.action_space}"
        )
    student = getattr(model, "student", None)
    if isinstance(student, QNetwork):  # our own algorithm; not imported, since it imports this module
        return _from_callable(student, getattr(model, "scores", "q_values"))
    if isinstance(model, DQN):
        return _from_callable(model.q_net, kind_of(vars(model)))
    policy: Any = copy.deepcopy(model.policy)
    if isinstance(model, (PPO, A2C)):
        return Teacher(lambda obs: policy.get_distribution(obs).distribution.logits, kind="logits", network=policy)
    if hasattr(policy, "quantile_net"):  # sb3-contrib's QR-DQN: (batch, quantiles, actions)
        return Teacher(lambda obs: policy.quantile_net(obs).mean(dim=1), kind="q_values", network=policy)
    raise UserError(f"{type(model).__name__} is no teacher that is known; pass a callable from observations to scores")


__all__ = ["Teacher", "as_teacher"]
