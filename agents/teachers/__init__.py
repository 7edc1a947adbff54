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

from agents.networks import Size, compute_scores, size_of
from agents.sb3_zip import SCORE_KINDS, read_agent, rebuild_network
from polydistill.config import UserError

ScoreFunction = Callable[[Tensor], Tensor]


class Teacher:
    """A frozen source of scores.

    Attributes:
        kind: "q_values" or "logits".
        network: the network behind the scores, where there is one: hashed, counted, and copied in shape by an
            identical student. None for a bare callable.
        size: widths of the network if it is a Nature-CNN, else None.
    """

    def __init__(self, function: ScoreFunction, *, kind: str = "q_values", network: nn.Module | None = None) -> None:
        if kind not in SCORE_KINDS:
            raise ValueError(f"kind must be one of {SCORE_KINDS}, got {kind!r}")
        self._function, self.kind, self.network = function, kind, network
        if network is not None:
            network.eval().requires_grad_(False)
        self.size: Size | None = size_of(network) if isinstance(network, QNetwork) and _is_nature(network) else None

    @torch.no_grad()
    def __call__(self, observations: Tensor) -> Tensor:
        """Scores ``(batch, n_actions)`` float32 of observations ``(batch, stack, height, width)`` uint8."""
        if self.network is not None and self.network.training:
            self.network.eval()  # someone switched it on
        with torch.autocast(observations.device.type, enabled=False):
            return self._function(observations).float()

    def to(self, device: torch.device | str) -> Teacher:
        """Move the network, where there is one, to ``device``."""
        if self.network is not None:
            self.network.to(device)
        return self

    def check_fits(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        """Compare the teacher's inputs and outputs with those of a game.

        Raises:
            UserError: they differ.
        """
        if not isinstance(action_space, spaces.Discrete) or not isinstance(observation_space, spaces.Box):
            raise UserError(f"a teacher of Atari needs discrete actions and frames, not {action_space}")
        taught = getattr(self.network, "observation_space", None)
        if taught is not None and taught.shape != observation_space.shape:
            raise UserError(f"the teacher sees {taught.shape}, the game shows {observation_space.shape}")
        device = next((p.device for p in self.network.parameters()), None) if self.network is not None else None
        try:
            scores = self(torch.zeros((1, *observation_space.shape), dtype=torch.uint8, device=device))
        except RuntimeError as error:
            raise UserError(f"the teacher cannot see {observation_space.shape}: {str(error).splitlines()[0]}") from None
        if scores.shape != (1, action_space.n):
            raise UserError(
                f"the teacher scores {scores.shape[-1]} actions, the game has {action_space.n}: "
                "was it trained on another game, or on the full set of 18 actions?"
            )


def as_teacher(source: str | Path | BaseAlgorithm | Teacher | QNetwork | ScoreFunction, **options: Any) -> Teacher:
    """Turn ``source`` into a :class:`Teacher`.

    Args:
        source: the path of a DQN zip; a Stable-Baselines3 model (DQN, QR-DQN, PPO, A2C; its network is copied, so
            that training it on does not move the teacher); a Q-network; or a callable from ``(batch, stack, height,
            width)`` uint8 to scores.
        options: ``kind`` for a callable or a network ("q_values" by default); a zip and a model know their own.

    Raises:
        UserError: the file does not open, or holds no network that is known.
    """
    if isinstance(source, Teacher):
        return source
    if isinstance(source, (str, Path)):
        agent = read_agent(source)
        return _from_network(rebuild_network(agent, source), agent.scores)
    if isinstance(source, BaseAlgorithm):
        return _from_model(source)
    if isinstance(source, QNetwork):
        return _from_network(copy.deepcopy(source), options.get("kind", "q_values"))
    if callable(source):
        return Teacher(source, network=source if isinstance(source, nn.Module) else None, **options)
    raise UserError(f"no teacher: expected a path, a Stable-Baselines3 model or a callable, got {type(source).__name__}")


def _is_nature(network: QNetwork) -> bool:
    names = set(network.state_dict())
    return {"features_extractor.cnn.4.weight", "features_extractor.linear.0.weight", "q_net.0.weight"} == {
        name for name in names if name.endswith("weight")
    } - {"features_extractor.cnn.0.weight", "features_extractor.cnn.2.weight"}


def _from_network(network: QNetwork, kind: str) -> Teacher:
    if _is_nature(network):
        return Teacher(lambda observations: compute_scores(network, observations), kind=kind, network=network)
    return Teacher(network, kind=kind, network=network)


def _from_model(model: BaseAlgorithm) -> Teacher:
    if isinstance(model, DQN):
        card = getattr(model, "polydistill", {})
        return _from_network(copy.deepcopy(model.q_net), card.get("scores", "q_values"))
    policy = copy.deepcopy(model.policy)
    if isinstance(model, (PPO, A2C)):
        return Teacher(lambda obs: policy.get_distribution(obs).distribution.logits, kind="logits", network=policy)
    quantile_net = getattr(policy, "quantile_net", None)  # sb3-contrib's QR-DQN: (batch, quantiles, actions)
    if quantile_net is not None:
        return Teacher(lambda obs: quantile_net(obs).mean(dim=1), kind="q_values", network=policy)
    student = getattr(model, "student", None)
    if isinstance(student, QNetwork):
        return _from_network(copy.deepcopy(student), getattr(model, "scores", "q_values"))
    raise UserError(f"{type(model).__name__} is no teacher that is known; pass a callable from observations to scores")


__all__ = ["Teacher", "as_teacher"]
