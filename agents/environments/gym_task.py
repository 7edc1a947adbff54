"""A task from any environment of gymnasium with discrete actions, found by its id."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import Any

import gymnasium as gym
from gymnasium import spaces

from polydistill.errors import UserError, suggest
from polydistill_agents.environments.gym_env import GymVecEnv, wrap_game
from polydistill_agents.environments.gym_names import describe, find_id, missing_package
from polydistill_agents.environments.gym_spaces import check_actions, check_observations
from polydistill_agents.environments.gym_wrappers import NamedWrapper, find_wrappers
from polydistill_agents.environments.protocols import AnyProtocol, OwnProtocol
from polydistill_agents.environments.task import Task

LONGEST = 10_000  # steps of a game where neither the environment nor the user says when it ends
OWN = "own"
RENDER_MODE = "render_mode"


@dataclass(frozen=True)
class GymTask(Task):
    """An environment of gymnasium; :func:`open_environment` checks the names.

    One environment is opened when the spaces are first asked for.

    Args:
        name: a registered id.
        package: the module that registered it, if the user named one.
        wrappers: by name, see :func:`~polydistill_agents.environments.gym_wrappers.find_wrappers`.
        env_kwargs: of the environment.
        max_steps: games are cut after so many steps; None: the environment's own limit, else ``LONGEST``.
        teacher_wrappers: where the teacher sees another view than the student, through these; ``wrappers`` are the
            student's then, and so is the observation; the games have the teacher's as ``teacher_view``.
    """

    name: str
    package: str = ""
    wrappers: tuple[str, ...] = ()
    env_kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)
    max_steps: int | None = None
    teacher_wrappers: tuple[str, ...] = ()

    default_protocol = OWN

    @cached_property
    def _wrappers(self) -> tuple[tuple[NamedWrapper, ...], tuple[NamedWrapper, ...]]:
        """The student's, and the teacher's own."""
        return _find_both(self.wrappers, self.teacher_wrappers)

    @cached_property
    def _as_teacher(self) -> GymTask:
        return replace(self, wrappers=self.teacher_wrappers or self.wrappers, teacher_wrappers=())

    def for_teacher(self) -> GymTask:
        """The environment through the teacher's wrappers, where it has its own."""
        return self._as_teacher if self.teacher_wrappers else self

    def drawn(self) -> GymTask:
        """The environment with ``render_mode="rgb_array"``, where it says that it has that and can be made so."""
        drawn = replace(self, env_kwargs={**self.env_kwargs, RENDER_MODE: "rgb_array"})
        with suppress(UserError):
            game = self._make_one()
            game.close()
            if RENDER_MODE not in self.env_kwargs and "rgb_array" in (game.metadata.get("render_modes") or ()):
                if not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):  # SDL would complain of the missing screen
                    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
                drawn._make_one().close()
                return drawn
        return self

    @cached_property
    def _spaces(self) -> tuple[spaces.Space[Any], spaces.Discrete]:
        game = wrap_game(self._make_one(), *self._wrappers)
        actions = check_actions(self.name, game.action_space)
        check_observations(self.name, game.observation_space)
        game.close()
        games = self._open(1, seed=0)
        games.close()
        check_observations(self.name, games.observation_space)
        return games.observation_space, actions

    @property
    def observation_space(self) -> spaces.Space[Any]:
        """Of one game, as the student sees it; images have their channels first."""
        return self._spaces[0]

    @property
    def action_counts(self) -> tuple[int, ...]:
        """The environment's own."""
        return (int(self._spaces[1].n),)

    @property
    def reference(self) -> None:
        """No table holds scores of it: random play is measured."""

    @property
    def longest(self) -> int:
        """Games are cut after so many steps."""
        return self.max_steps or gym.registry[self.name].max_episode_steps or LONGEST

    @property
    def notes(self) -> list[str]:
        """What a user must be told: the cap of games without a limit of their own."""
        if self.max_steps or gym.registry[self.name].max_episode_steps:
            return []
        return [f"{self.name} is registered without a limit of steps: games are cut after {LONGEST:,} (env_max_steps)"]

    def protocol(self, name: str) -> OwnProtocol:
        """``"own"``: the environment as it is."""
        if name != OWN:
            hint = suggest(name, [OWN])
            raise UserError(f"{self.name} is played under the protocol {OWN!r} alone, not {name!r}{hint}")
        return OwnProtocol(self.longest)

    def make_env(
        self,
        n_envs: int,
        *,
        seed: int,
        n_threads: int = 0,
        n_actions: int | None = None,
        protocol: AnyProtocol | None = None,
    ) -> GymVecEnv:
        """``n_envs`` games, played in turn on one thread, alike for learning and for scores."""
        if n_actions not in (None, *self.action_counts):
            raise UserError(f"{self.name} has {self.action_counts[0]} actions, not {n_actions}")
        return self._open(n_envs, seed=seed)

    def _open(self, n_envs: int, *, seed: int) -> GymVecEnv:
        students, teachers = self._wrappers
        return GymVecEnv(
            self.name,
            self._make_one,
            n_envs,
            seed=seed,
            wrappers=students,
            teacher_wrappers=teachers,
            settings=self._settings,
            versions=_versions(gym.registry[self.name]),
        )

    def _make_one(self) -> gym.Env[Any, Any]:
        try:
            return gym.make(self.name, max_episode_steps=self.longest, disable_env_checker=True, **self.env_kwargs)
        except (gym.error.DependencyNotInstalled, ModuleNotFoundError) as error:
            raise missing_package(self.name, error) from error
        except Exception as error:  # it may be any code
            unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if unknown is not None and unknown[1] in self.env_kwargs:
                raise UserError(f"env_kwargs: {self.name} has no option {unknown[1]!r}") from error
            options = f" with {dict(self.env_kwargs)}" if self.env_kwargs else ""
            raise UserError(f"{self.name} cannot be made{options}: {describe(error)}") from error

    @cached_property
    def _settings(self) -> dict[str, Any]:
        return {
            "environment": self.name,
            "package": self.package,
            "wrappers": list(self.wrappers),
            "env_kwargs": dict(self.env_kwargs),
            "max_steps": self.longest,
            **({"teacher_wrappers": list(self.teacher_wrappers)} if self.teacher_wrappers else {}),
        }


def _find_both(
    wrappers: Sequence[str], teacher_wrappers: Sequence[str]
) -> tuple[tuple[NamedWrapper, ...], tuple[NamedWrapper, ...]]:
    students, teachers = find_wrappers(wrappers), find_wrappers(teacher_wrappers)
    of_all = next((wrapper.text for wrapper in (*students, *teachers) if wrapper.of_all_games), None)
    if teachers and of_all is not None:
        raise UserError(f"wrappers: {of_all} wraps both views alike: give each its own, as FrameStackObservation:4")
    return students, teachers


def _versions(spec: gym.envs.registration.EnvSpec) -> dict[str, str]:
    """Of gymnasium, and of the distributions that the environment comes from."""
    entry = spec.entry_point if isinstance(spec.entry_point, str) else getattr(spec.entry_point, "__module__", "")
    module = str(entry).partition(":")[0]
    names = {"gymnasium", *_distributions().get(module.partition(".")[0], ())}
    if ".box2d." in f"{module}.":
        names |= {"box2d", "box2d-py"}
    found = {}
    for name in sorted(names):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@cache  # it looks through all that is installed
def _distributions() -> Mapping[str, Sequence[str]]:
    return packages_distributions()


def open_environment(
    name: str,
    *,
    package: str = "",
    wrappers: Sequence[str] = (),
    env_kwargs: Mapping[str, Any] | None = None,
    max_steps: int | None = None,
    teacher_wrappers: Sequence[str] = (),
) -> GymTask:
    """The task of a gymnasium environment; nothing is made of it yet, but its package is imported.

    Args:
        name: its id; "module:id" has its package before it. An older version becomes the newest, with a notice on
            standard error.
        package: a module that registers it.
        wrappers: the innermost first: ``"FlattenObservation"``, ``"VecFrameStack:4"``, ``"module:function"``.
        env_kwargs: of the environment.
        max_steps: cut games after so many steps; None: the environment's own limit, else ``LONGEST``.
        teacher_wrappers: of the teacher's own view, where it sees another than the student.

    Raises:
        UserError: an unknown name of environment or wrapper, or a package that is missing.
        ValueError: ``max_steps`` below 1.

    Example:
        >>> open_environment("CartPole-v1").action_counts
        (2,)
    """
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")
    module = name.strip().rpartition(":")[0]
    if module and package not in ("", module):
        raise UserError(f"env {name} names the package {module}, env_package is {package}: leave one of them out")
    found = find_id(name, package)
    package = package or module
    _find_both(wrappers, teacher_wrappers)
    return GymTask(found, package, tuple(wrappers), dict(env_kwargs or {}), max_steps, tuple(teacher_wrappers))
