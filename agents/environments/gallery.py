"""The states of the largest regret, one of each stretch of a game, kept while the games are played."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from polydistill_agents.environments.evaluation import Compared
from polydistill_agents.networks.observations import Arrays, each, take

STRETCH = 30  # agent steps, two seconds of Atari: no two pictured states of one game are nearer to each other


@dataclass(frozen=True)
class Pictured:
    """A state.

    Attributes:
        game: its number, from 0.
        step: agent steps of the game before it, from 0.
        regret: of the agent's action, by the teacher's scores.
        teacher: ``(actions,)`` Q-values or probabilities of the teacher.
        agent: ``(actions,)`` likewise of the agent.
        observation: as the agent sees it, without the axis of games.
        screen: ``(height, width, 3)`` uint8, what a person would see; None where the environment does not draw it.
    """

    game: int
    step: int
    regret: float
    teacher: NDArray[np.float32]
    agent: NDArray[np.float32]
    observation: Arrays
    screen: NDArray[np.uint8] | None


class Gallery:
    """At most ``size`` states; only those that would get in are copied and drawn.

    The states of a game come in their order. One that is within ``STRETCH`` steps of one that is there takes its place
    if its regret is larger, and else stays out.

    Args:
        size: >= 0.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._states: list[Pictured] = []

    @property
    def states(self) -> list[Pictured]:
        """The largest regret first."""
        return sorted(self._states, key=lambda state: (-state.regret, state.game, state.step))

    @property
    def _bar(self) -> float:
        """A regret that gets in is above it."""
        return min(state.regret for state in self._states) if len(self._states) >= self.size else 0.0

    def look(self, met: Compared, lost: NDArray[Any], teacher: Tensor, agent: Tensor) -> None:
        """Take what belongs here of the states of one step.

        Args:
            met: the states.
            lost: ``(states,)`` regrets.
            teacher: ``(states, actions)`` values.
            agent: likewise.
        """
        if not self.size:
            return
        for k in np.flatnonzero(lost > self._bar):
            game, step, regret = int(met.games[k]), int(met.steps[k]), float(lost[k])
            near = next((s for s in self._states if s.game == game and abs(step - s.step) < STRETCH), None)
            if regret <= (self._bar if near is None else near.regret):
                continue
            if near is not None:
                self._states.remove(near)
            elif len(self._states) >= self.size:
                self._states.remove(self.states[-1])
            seen = each(np.copy, take(met.observations, k))
            theirs, own = (values[k].float().cpu().numpy() for values in (teacher, agent))
            screen = _screen(met.env, int(met.rows[k]))
            self._states.append(Pictured(game, step, regret, theirs, own, seen, screen))


def action_names(env: Any, n_actions: int) -> list[str]:
    """The buttons of Atari; elsewhere numbers, as environments do not name their actions."""
    names = getattr(env, "action_meanings", None)
    return [*names] if names is not None and len(names) == n_actions else [f"action {k}" for k in range(n_actions)]


def _screen(env: Any, row: int) -> NDArray[np.uint8] | None:
    """What the environment draws, where it was made with ``render_mode="rgb_array"``."""
    if getattr(env, "render_mode", None) != "rgb_array":
        return None
    with suppress(Exception):  # it may be any code, and the picture is an extra
        image = np.asarray(env.env_method("render", indices=[row])[0])
        if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
            return image.copy()
    return None
