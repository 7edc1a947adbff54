"""Two views of one environment: what the teacher sees, and what its student sees, each through wrappers of its own.

The environment is played once. Each of its steps is put before the teacher's wrappers, too, around a stand-in that
shows it again: so any wrapper of observations works, also one with a memory, as a stack of frames. Both views go
through Stable-Baselines3's games in one table of arrays, under ``"student"`` and ``"teacher"``, or ``"student.NAME"``
where a view is a table itself; :class:`~polydistill_agents.environments.gym_env.GymVecEnv` takes them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, SupportsFloat

import gymnasium as gym
from gymnasium import spaces

from polydistill.errors import UserError
from polydistill_agents.environments.gym_wrappers import NamedWrapper

Who = Literal["student", "teacher"]
Transition = tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]


def view_of(table: Any, who: Who) -> Any:
    """One of the two views: its array or tensor, or a table of them; of a ``Dict`` space likewise its space."""
    parts = dict(table.items())
    if who in parts:
        return parts[who]
    own = {name.removeprefix(f"{who}."): part for name, part in parts.items() if name.startswith(f"{who}.")}
    return spaces.Dict([*own.items()]) if isinstance(table, spaces.Dict) else own  # in its order, not sorted


def _named(who: Who, view: Any) -> dict[str, Any]:
    if isinstance(view, dict | spaces.Dict):
        return {f"{who}.{name}": part for name, part in view.items()}
    return {who: view}


class _StandIn(gym.Wrapper[Any, Any, Any, Any]):
    """Shows the last step of the environment again, once."""

    shown: Any = None

    def take(self) -> Any:
        if self.shown is None:
            raise UserError("it plays by itself: the teacher's wrappers may change what is seen, and nothing else")
        shown, self.shown = self.shown, None
        return shown

    def step(self, action: Any) -> Transition:
        transition: Transition = self.take()
        return transition

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        first: tuple[Any, dict[str, Any]] = self.take()
        return first


class Shown(gym.Wrapper[Any, Any, Any, Any]):
    """The environment below the student's wrappers, which shows each step to the teacher's as well.

    Attributes:
        teachers: the teacher's wrappers around a stand-in.
        view: what they last showed.
    """

    def __init__(self, env: gym.Env[Any, Any], wrappers: Sequence[NamedWrapper]) -> None:
        super().__init__(env)
        self._stand_in = _StandIn(env)
        self.teachers: gym.Env[Any, Any] = self._stand_in
        for wrapper in wrappers:
            self.teachers = wrapper.apply(self.teachers)
        self.view: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        first: tuple[Any, dict[str, Any]] = self.env.reset(seed=seed, options=options)
        self._stand_in.shown = (first[0], dict(first[1]))
        self.view = self.teachers.reset(seed=seed, options=options)[0]
        return first

    def step(self, action: Any) -> Transition:
        transition: Transition = self.env.step(action)
        self._stand_in.shown = (*transition[:4], dict(transition[4]))
        self.view = self.teachers.step(action)[0]
        return transition


class TwoViews(gym.Wrapper[Any, Any, Any, Any]):
    """A game that shows both views; its rewards and ends are those of the student's wrappers.

    Args:
        env: with the student's wrappers, around ``shown``.
        shown: has the teacher's view.
    """

    def __init__(self, env: gym.Env[Any, Any], shown: Shown) -> None:
        super().__init__(env)
        self._shown = shown
        both = _named("student", env.observation_space) | _named("teacher", shown.teachers.observation_space)
        self.observation_space = spaces.Dict([*both.items()])

    def _both(self, view: Any) -> dict[str, Any]:
        return _named("student", view) | _named("teacher", self._shown.view)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        view, info = self.env.reset(seed=seed, options=options)
        return self._both(view), info

    def step(self, action: Any) -> Transition:
        view, *rest = self.env.step(action)
        return (self._both(view), *rest)  # type: ignore[return-value]
