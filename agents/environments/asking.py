"""Agents that are asked about many games at once, with or without a memory of each game."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polydistill.device import few_rows
from polydistill.learning.rewind import NonFiniteError
from polydistill_agents.networks.kinds import ScoreFunction
from polydistill_agents.networks.observations import Arrays, count_rows, to_tensors


class Asked:
    """The agent that plays, and others that are asked what they would do. A context: memories are given back after.

    Args:
        agents: functions of observations; those with ``has_memory`` have ``begin``, ``label``, ``memory`` and
            ``remember``, see :class:`polydistill_agents.teachers.Teacher`.
        n_games: that memories are kept of.
        device: where the agents compute.
    """

    def __init__(self, agents: Sequence[ScoreFunction], n_games: int, device: torch.device | str) -> None:
        self.agents, self.n_games, self.device = agents, n_games, device
        self._before: list[tuple[Any, Any]] = []

    def __enter__(self) -> Self:
        remembering: dict[int, Any] = {id(agent): agent for agent in self.agents if _has_memory(agent)}
        self._before = [(agent, agent.memory()) for agent in remembering.values()]
        for agent in remembering.values():
            agent.begin(self.n_games)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for agent, state in self._before:
            agent.remember(state)

    def __call__(
        self, views: Sequence[Arrays], starts: NDArray[np.bool_], rows: NDArray[np.integer[Any]]
    ) -> list[Tensor]:
        """Scores ``(rows, actions)`` of each agent.

        Args:
            views: observations of the games ``rows``, as each of the agents sees them.
            starts: ``(rows,)`` where they are the first of a game.
            rows: which of the ``n_games`` they are of.

        Raises:
            NonFiniteError: the best score of a state is not finite.
        """

        def ask(agent: Any, seen: Any) -> Tensor:
            scores: Tensor = agent.label(seen, starts, rows) if _has_memory(agent) else agent(seen)
            return scores

        return _scores(self.agents, views, self.device, ask)


def ask_once(agents: Sequence[ScoreFunction], views: Sequence[Arrays], device: torch.device | str) -> list[Tensor]:
    """Scores of each agent as at the beginning of a game; no memory changes."""
    return _scores(agents, views, device, lambda agent, seen: agent(seen))


@torch.no_grad()
def _scores(
    agents: Sequence[ScoreFunction], views: Sequence[Arrays], device: torch.device | str, ask: Any
) -> list[Tensor]:
    tensors = {id(view): to_tensors(view, device) for view in views}
    seen = [tensors[id(view)] for view in views]
    with few_rows(count_rows(views[0])):
        told: dict[int, Tensor] = {}
        for agent, view in zip(agents, seen, strict=True):  # one that plays and is asked, too, remembers the step once
            if id(agent) not in told:
                told[id(agent)] = ask(agent, view)
    asked = [told[id(agent)] for agent in agents]
    for index, scores in enumerate(asked):
        if not bool(scores.amax(dim=1).isfinite().all()):
            whose = "the teacher that is asked" if index else "the agent that plays"
            batch = {"observations": seen[index], "scores": scores, "of_reference": index > 0}
            raise NonFiniteError(f"the scores of {whose} are not finite", batch)
    return asked


def _has_memory(agent: Any) -> bool:
    return bool(getattr(agent, "has_memory", False))
