"""What an agent is asked to do: its environments, its actions, the protocols it is scored under, reference scores.

Whoever trains, plays or scores agents asks a :class:`Task`, and knows no game. What is Atari's alone stands in
:mod:`~polydistill_agents.environments.atari`, ``games``, ``protocols`` and ``references``; :class:`AtariTask` brings it
together. Another kind of environment is another subclass, told apart by its names in :func:`open_task`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces

from polydistill_agents.environments.atari import SHAPE, AtariVecEnv
from polydistill_agents.environments.games import JOYSTICK, check_game, count_actions
from polydistill_agents.environments.protocols import AnyProtocol, Protocol, get_protocol
from polydistill_agents.environments.references import Reference, reference
from polydistill_agents.environments.seeded import SeededVecEnv

# what a protocol says about the games themselves
RULES = ("noop_max", "fire_on_reset", "fire_on_life_loss", "repeat_action_probability", "max_frames")


class Task(ABC):
    """What an agent sees and does, how it is scored, and what its scores are compared with.

    Asking opens no environment that plays; only :meth:`make_env` does.

    Attributes:
        name: as it stands in configs and summaries.
        default_protocol: the name of the one that agents are scored under where nothing else is asked for.
    """

    name: str
    default_protocol: ClassVar[str]

    @property
    @abstractmethod
    def observation_space(self) -> spaces.Space[Any]:
        """What an agent sees of one game."""

    @property
    @abstractmethod
    def action_counts(self) -> tuple[int, ...]:
        """Numbers of actions that agents may have, the task's own first."""

    @property
    @abstractmethod
    def reference(self) -> Reference | None:
        """Scores that others are measured against, where they are known."""

    @property
    def notes(self) -> list[str]:
        """What a user must be told before games are played, a line each."""
        return []

    @abstractmethod
    def protocol(self, name: str) -> AnyProtocol:
        """How agents are scored under that name.

        Raises:
            UserError: there is no such protocol; the message names the nearest.
        """

    @abstractmethod
    def make_env(
        self,
        n_envs: int,
        *,
        seed: int,
        n_threads: int = 0,
        n_actions: int | None = None,
        protocol: AnyProtocol | None = None,
    ) -> SeededVecEnv:
        """``n_envs`` games at once.

        Args:
            n_envs: >= 1.
            seed: of all their randomness.
            n_threads: of the emulator; 0: as many as there are cores.
            n_actions: how many the agent has, one of ``action_counts``; None: the task's own.
            protocol: under which agents are scored; None: games to learn from.
        """

    def for_teacher(self) -> Task:
        """The task as its teacher sees it, where that is another view than its student's; else itself."""
        return self

    def drawn(self) -> Task:
        """The task with games that draw what a person would see, where they can; else itself."""
        return self

    def actions_of(self, n_scores: int) -> spaces.Discrete:
        """The actions of an agent that gives so many scores; where none fit, the task's own: the likeliest meant."""
        counts = self.action_counts
        return spaces.Discrete(n_scores if n_scores in counts else counts[0])

    def human_normalized(self, score: float) -> float | None:
        r"""A score between random play (0) and a human (1).

        .. math:: (s - r) / (h - r)

        Args:
            score: mean unclipped score of full games, in points.

        Returns:
            Without unit, below 0 where the score is worse than random play's; None without reference scores.

        Example:
            >>> pong = open_task("pong")
            >>> pong.human_normalized(-20.7), pong.human_normalized(14.6)
            (0.0, 1.0)
        """
        row = self.reference
        return None if row is None else (score - row.random) / (row.human - row.random)

    def teacher_normalized(self, student: float, teacher: float, random: float | None = None) -> float | None:
        r"""The student's score between random play (0) and its teacher (1).

        .. math:: (s - r) / (t - r)

        Random play is subtracted, so that it is right for games with negative scores, where s / t is not: a student at
        -10 with a teacher at -5 would be "twice" the teacher.

        Args:
            student: mean unclipped score of full games, in points.
            teacher: likewise.
            random: likewise, as it was measured; None: that of the reference scores.

        Returns:
            Without unit; None without a score of random play, and for a teacher that is not better than that.
        """
        if random is None and self.reference is not None:
            random = self.reference.random
        if random is None or teacher <= random:
            return None
        return (student - random) / (teacher - random)


@dataclass(frozen=True)
class AtariTask(Task):
    """A game of Atari, seen as four grey frames; agents have its own actions, or all 18 of the joystick.

    Args:
        name: ROM id of ale-py, like ``"pong"``.
    """

    name: str

    default_protocol = "rusu"

    @property
    def observation_space(self) -> spaces.Box:
        """``(4, 84, 84)`` uint8."""
        return spaces.Box(0, 255, SHAPE, np.uint8)

    @property
    def action_counts(self) -> tuple[int, ...]:
        """Those that the game uses, and all of the joystick where they are more."""
        return tuple(dict.fromkeys((count_actions(self.name), JOYSTICK)))

    @property
    def reference(self) -> Reference | None:
        """The game's row among the 57 whose scores are published."""
        return reference(self.name)

    def protocol(self, name: str) -> Protocol:
        """One of ``PROTOCOLS``."""
        return get_protocol(name)

    def make_env(
        self,
        n_envs: int,
        *,
        seed: int,
        n_threads: int = 0,
        n_actions: int | None = None,
        protocol: AnyProtocol | None = None,
    ) -> AtariVecEnv:
        """Games of the emulator; those to learn from begin as :class:`AtariVecEnv` has it."""
        full = n_actions == JOYSTICK != self.action_counts[0]
        rules = {} if protocol is None else {name: getattr(protocol, name) for name in RULES}
        return AtariVecEnv(self.name, n_envs, seed=seed, n_threads=n_threads, full_action_space=full, **rules)


def open_task(name: str) -> AtariTask:
    """The game that goes by that name; nothing is loaded yet.

    Args:
        name: a game that :func:`~polydistill_agents.environments.games.check_game` knows.

    Raises:
        UserError: there is none; the message names the nearest.
    """
    return AtariTask(check_game(name))
