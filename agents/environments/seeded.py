"""Games that repeat themselves from the seeds of a reset and the actions since, as a Stable-Baselines3 ``VecEnv``."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from polydistill_agents.networks.observations import Arrays


class SeededVecEnv(VecEnv):
    """A ``VecEnv`` whose every full reset gives each game a fresh seed; resets between are continuations.

    Attributes:
        own_seed: that it was made with; a ``PolicyDistillation`` with ``seed=`` leaves it alone. None: it has none.
        reset_seeds: ``(n_envs,)`` of the last full reset, non-negative and below 2**31.
    """

    own_seed: int | None
    reset_seeds: NDArray[np.int64]
    _seed_sequence: np.random.SeedSequence
    _given_seeds: NDArray[np.int64] | None = None

    def start_seeds(self, seed: int | None) -> None:
        """Begin with ``seed``; None: from the operating system."""
        self.own_seed = seed
        self._seed_sequence = np.random.SeedSequence(seed)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Restart the random streams from ``seed``; takes effect at the next :meth:`reset`."""
        self._seed_sequence = np.random.SeedSequence(seed)
        return [seed] * self.num_envs

    def start_from(self, reset_seeds: NDArray[np.int64]) -> None:
        """The next full reset gives the games these seeds, ``(n_envs,)``, in the place of fresh ones."""
        self._given_seeds = reset_seeds

    def draw_seeds(self) -> NDArray[np.int64]:
        """The seeds of a full reset, one of each game."""
        if self._given_seeds is not None:
            self.reset_seeds, self._given_seeds = self._given_seeds, None
            return self.reset_seeds
        (child,) = self._seed_sequence.spawn(1)
        seeds = child.generate_state(self.num_envs) & np.uint32(0x7FFFFFFF)  # ale-py takes a non-negative int32
        self.reset_seeds = seeds.astype(np.int64)
        return self.reset_seeds

    @abstractmethod
    def reset(self) -> Arrays:
        """Start new games, every one with a fresh seed."""

    def step(
        self, actions: NDArray[np.integer[Any]]
    ) -> tuple[Any, NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """:meth:`step_async`, then :meth:`step_wait`: observations, rewards, dones and infos."""
        self.step_async(actions)
        return self.step_wait()

    def recipe(self) -> dict[str, Any]:
        """What, with the seeds of a reset and the actions since, decides every observation; plain values."""
        return {**self.versions(), **self.settings()}

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What was asked for, of :meth:`recipe`."""

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Of the packages that play, of :meth:`recipe`."""
