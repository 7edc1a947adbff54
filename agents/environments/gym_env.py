"""Games of any gymnasium environment as a Stable-Baselines3 ``VecEnv`` that repeats itself from its seeds.

Contract: every full reset gives each game a fresh seed; the resets between are continuations without a seed, so that
seeds and actions decide everything where the environment itself repeats. Images come with their channels first.
``info["episode"]`` holds the unchanged score of whole games. An environment that fails, or shows numbers that are
not finite, is one line that names it, its game and the step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecTransposeImage

from polydistill.errors import UserError
from polydistill_agents.environments.gym_names import describe
from polydistill_agents.environments.gym_wrappers import NamedWrapper
from polydistill_agents.environments.seeded import SeededVecEnv
from polydistill_agents.environments.views import Shown, TwoViews, view_of
from polydistill_agents.networks.observations import Arrays, leaves


class GameError(UserError):
    """An environment failed while it was played."""


class _Watched(gym.Wrapper[Any, Any, Any, Any]):
    """The outermost wrapper of one game: its failures say where, and each game that ends is scored.

    A wrapper may cut a game that goes on inside; the :class:`Monitor` within, which is reset then, has not scored it.
    """

    def __init__(self, env: gym.Env[Any, Any], monitor: Monitor, where: str) -> None:
        super().__init__(env)
        self.monitor, self.where, self.n_steps = monitor, where, 0
        self._info: dict[str, Any] = {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        rewards, ended = self.monitor.rewards, len(self.monitor.episode_returns)
        goes_on = bool(rewards) and not self.monitor.needs_reset
        try:
            first: tuple[Any, dict[str, Any]] = self.env.reset(seed=seed, options=options)
        except Exception as error:  # it may be any code
            raise GameError(f"{self.where} fails in reset, after step {self.n_steps:,}: {describe(error)}") from error
        if goes_on and self.monitor.rewards is not rewards:  # else a wrapper only pretends: the game is not over
            self._score(self.monitor.episode_returns[ended:] or [sum(rewards)], len(rewards))
        self._info = {}
        return first

    def _score(self, returns: list[float], length: int) -> None:
        """Of a game that ended or was cut within a reset, into what was said of the step before."""
        seconds = round(time.time() - self.monitor.t_start, 6)
        self._info["episode"] = {"r": round(returns[0], 6), "l": length, "t": seconds}

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        self.n_steps += 1
        try:
            stepped = self.env.step(action)
        except Exception as error:
            raise GameError(f"{self.where} fails in step {self.n_steps:,}: {describe(error)}") from error
        self._info = stepped[-1]
        return stepped


def wrap_game(
    game: gym.Env[Any, Any], wrappers: Sequence[NamedWrapper], teacher_wrappers: Sequence[NamedWrapper] = ()
) -> gym.Env[Any, Any]:
    """One game with its own wrappers; with those of a teacher, it shows two views."""
    shown = game = Shown(game, teacher_wrappers) if teacher_wrappers else game
    for wrapper in wrappers:
        game = game if wrapper.of_all_games else wrapper.apply(game)
    return TwoViews(game, shown) if isinstance(shown, Shown) else game


class GymVecEnv(VecEnvWrapper, SeededVecEnv):
    """``n_envs`` games of one environment, one after the other in this process.

    Attributes:
        teacher_view: what the teacher sees of the same state, where that is another view; else None.
        teacher_space: its space, likewise.

    Args:
        name: of the environment, for messages.
        make: the environment of one game.
        n_envs: >= 1.
        seed: root of all seeds; each game and each full reset gets its own from ``numpy.random.SeedSequence``. None:
            from the operating system.
        wrappers: the innermost first; those of all games last.
        teacher_wrappers: of the teacher's view, where it sees another, see
            :mod:`~polydistill_agents.environments.views`.
        settings: what else decides the observations, in plain values.
        versions: of the packages that do.

    Raises:
        UserError: the environment cannot be made; while it is played, it fails or is not finite (:class:`GameError`).
    """

    teacher_view: Arrays | None = None
    teacher_space: spaces.Space[Any] | None = None

    def __init__(
        self,
        name: str,
        make: Callable[[], gym.Env[Any, Any]],
        n_envs: int,
        *,
        seed: int | None = None,
        wrappers: Sequence[NamedWrapper] = (),
        teacher_wrappers: Sequence[NamedWrapper] = (),
        settings: dict[str, Any] | None = None,
        versions: dict[str, str] | None = None,
    ) -> None:
        if n_envs < 1:
            raise ValueError(f"out of range: {n_envs=}")
        self.name, self._n_steps = name, 0
        self._settings, self._versions = dict(settings or {}), dict(versions or {})

        def make_game(index: int) -> gym.Env[Any, Any]:
            monitor = Monitor(make())
            game = wrap_game(monitor, wrappers, teacher_wrappers)
            return _Watched(game, monitor, f"{name}: game {index}")

        try:
            games = DummyVecEnv([lambda index=index: make_game(index) for index in range(n_envs)])  # type: ignore[misc]
        except (ValueError, TypeError, NotImplementedError, AssertionError) as error:
            raise UserError(f"{name} cannot be played many games at once: {describe(error)}") from error
        outer: VecEnv = games
        for wrapper in wrappers:
            outer = wrapper.apply(outer) if wrapper.of_all_games else outer
        super().__init__(_ChannelsFirst(outer) if _has_channels_last(outer.observation_space) else outer)
        self._games = games
        self._faults = [_fault_of(part) for part in leaves(_parts(self.observation_space))]
        if teacher_wrappers:
            both = self.observation_space
            self.observation_space, self.teacher_space = view_of(both, "student"), view_of(both, "teacher")
        self.start_seeds(seed)

    def settings(self) -> dict[str, Any]:
        """See :meth:`SeededVecEnv.settings`."""
        return {**self._settings, "n_envs": self.num_envs}

    def versions(self) -> dict[str, str]:
        """See :meth:`SeededVecEnv.versions`."""
        return self._versions

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Restart the random streams from ``seed``; takes effect at the next :meth:`reset`."""
        return SeededVecEnv.seed(self, seed)

    def reset(self) -> Arrays:
        """Start new games, every one with a fresh seed."""
        self._games._seeds = self.draw_seeds().tolist()  # seed() would give neighbours s, s + 1, ...
        where = f"reset, after step {self._n_steps:,}"
        with self._said(where):
            observations: Arrays = self.venv.reset()  # type: ignore[assignment]
        self._check(observations, None, where)
        return self._part(observations)

    def step_wait(self) -> tuple[Arrays, NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Observations, rewards, dones and infos of the actions that were sent."""
        self._n_steps += 1
        where = f"step {self._n_steps:,}"
        observations: Any
        with self._said(where):
            observations, rewards, dones, infos = self.venv.step_wait()
        self._check(observations, rewards, where)
        for info in infos if self.teacher_space is not None else ():
            if "terminal_observation" in info:
                info["terminal_observation"] = view_of(info["terminal_observation"], "student")
        return self._part(observations), rewards, dones, infos

    def _part(self, observations: Arrays) -> Arrays:
        """What the student sees of it; what its teacher sees is put aside."""
        if self.teacher_space is None:
            return observations
        self.teacher_view = view_of(observations, "teacher")
        part: Arrays = view_of(observations, "student")
        return part

    @contextmanager
    def _said(self, where: str) -> Iterator[None]:
        """What fails around the games is said in one line, too, such as an observation of another shape."""
        try:
            yield
        except GameError:
            raise
        except Exception as error:
            raise GameError(
                f"{self.name}: what it gives in {where} is not what it announced: {describe(error)}"
            ) from error

    def _check(self, observations: Arrays, rewards: NDArray[np.float32] | None, where: str) -> None:
        shown = [] if rewards is None else [(rewards, NOT_FINITE, "a reward")]
        shown += [
            (values, fault, "an observation")
            for values, fault in zip(leaves(observations), self._faults, strict=True)
            if fault is not None
        ]
        for values, fault, what in shown:
            faulty = fault.find(values)
            if faulty.any():
                game = np.flatnonzero(faulty.reshape(self.num_envs, -1).any(axis=1))[0]
                raise GameError(f"{self.name}: game {game} gives {what} that {fault.words} in {where}")


class _Fault(NamedTuple):
    """What values must not be: where they are, and in words."""

    find: Callable[[NDArray[Any]], NDArray[np.bool_]]
    words: str


NOT_FINITE = _Fault(lambda values: ~np.isfinite(values), "is not finite (NaN or inf)")


def _fault_of(space: spaces.Space[Any]) -> _Fault | None:
    """What one array of that space must not be; None: it can hold nothing wrong that a network would trip over."""
    match space:
        case spaces.Box() if np.issubdtype(space.dtype, np.floating):
            return NOT_FINITE
        case spaces.Discrete(n=most) | spaces.MultiDiscrete(nvec=most):
            return _Fault(lambda values: (values < 0) | (values >= most), "its space does not hold")
    return None


def _parts(space: spaces.Space[Any]) -> Any:
    return space.spaces if isinstance(space, spaces.Dict) else space


class _ChannelsFirst(VecTransposeImage):
    """As Stable-Baselines3's, but a table may hold images of both kinds."""

    def __init__(self, games: VecEnv) -> None:
        space = games.observation_space
        if not isinstance(space, spaces.Dict):
            super().__init__(games)
            return
        self.skip = False
        self.image_space_keys = [name for name, part in space.items() if _has_channels_last(part)]
        turned = {name: self.transpose_space(space[name], name) for name in self.image_space_keys}  # type: ignore[arg-type]
        in_order = [(name, turned.get(name, part)) for name, part in space.items()]  # a plain dict would be sorted
        VecEnvWrapper.__init__(self, games, observation_space=spaces.Dict(in_order))


def _has_channels_last(space: spaces.Space[Any]) -> bool:
    """Whether it is an image that Stable-Baselines3 would transpose, or a table with one."""
    if isinstance(space, spaces.Dict):
        return any(map(_has_channels_last, space.values()))
    return is_image_space(space) and not is_image_space_channels_first(space)  # type: ignore[arg-type]
