"""Small games for students to watch: a bright square in one of three places."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from polydistill_agents.distillation.algorithm import PolicyDistillation

N_ACTIONS = 3
SMALL = (4, 36, 36)  # the smallest that a Nature-CNN takes: a fifth of the work of Atari's 84 x 84
SPACE = spaces.Box(0, 255, SMALL, np.uint8)


class Squares(VecEnv):
    """Games of 12 steps whose frames show a bright square in one of three places; a reward of 1 at each step.

    Args:
        n_envs: games at once.
        seed: of the frames.
        shape: of an observation, ``(planes, height, width)``.
        n_actions: of which the first three have a place.
        slides: whether the planes are the last frames; else all are new in each step, as colours are.
    """

    def __init__(
        self,
        n_envs: int = 4,
        seed: int = 0,
        shape: tuple[int, int, int] = SMALL,
        n_actions: int = N_ACTIONS,
        slides: bool = True,
    ) -> None:
        super().__init__(n_envs, spaces.Box(0, 255, shape, np.uint8), spaces.Discrete(n_actions))
        self.generator = np.random.default_rng(seed)
        self.slides = slides
        self.ages = np.zeros(n_envs, dtype=np.int64)

    def _frame(self, place: int) -> np.ndarray:
        height, width = self.observation_space.shape[1:]  # type: ignore[index]
        frame = self.generator.integers(0, 60, size=(height, width), dtype=np.uint8)
        third = width // N_ACTIONS
        frame[height // 4 : 3 * height // 4, third * place : third * place + third] = 220
        return frame

    def _planes(self, stack: np.ndarray | None) -> np.ndarray:
        """The observation after ``stack``, or a game's first."""
        place, n_planes = int(self.generator.integers(N_ACTIONS)), self.observation_space.shape[0]  # type: ignore[index]
        if not self.slides:
            return np.stack([self._frame(place) for _ in range(n_planes)])
        frame = self._frame(place)
        return np.stack([frame] * n_planes if stack is None else [*stack[1:], frame])

    def reset(self) -> np.ndarray:
        self.ages[:] = 0
        self.stacks = np.stack([self._planes(None) for _ in range(self.num_envs)])
        return self.stacks.copy()

    def step_async(self, actions: np.ndarray) -> None:
        assert actions.shape == (self.num_envs,)
        assert ((actions >= 0) & (actions < self.action_space.n)).all()  # type: ignore[attr-defined]

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        self.ages += 1
        dones = self.ages >= 12
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in range(self.num_envs):
            planes = self._planes(self.stacks[i])
            if dones[i]:
                infos[i] = {"terminal_observation": planes, "episode": {"r": 12.0, "l": 12, "t": 0.0}}
                planes, self.ages[i] = self._planes(None), 0
            self.stacks[i] = planes
        return self.stacks.copy(), np.ones(self.num_envs, dtype=np.float32), dones, infos

    def close(self) -> None: ...

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [None for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None: ...

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        return []

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [True for _ in self._get_indices(indices)]


def look(observations: Tensor) -> Tensor:
    """Q-values of a player who goes where the newest frame is bright; gaps as small as in Atari."""
    height, width = observations.shape[2:]
    newest = observations[:, -1, height // 4 : 3 * height // 4].float() / 255
    thirds = newest[:, :, : width // 3 * 3].split(width // 3, dim=2)
    return torch.stack([part.mean(dim=(1, 2)) for part in thirds], dim=1) * 0.05


def make(teacher: Any = look, **options: Any) -> PolicyDistillation:
    """A small student before its first step."""
    defaults: dict[str, Any] = {
        "size": "net3",
        "buffer_size": 2_000,
        "learning_starts": 64,
        "batch_size": 32,
        "samples_per_step": 4.0,
        "train_freq": 8,
        "seed": 0,
        "device": "cpu",
    }
    env = options.pop("env", None) or Squares()
    return PolicyDistillation("CnnPolicy", env, teacher, **(defaults | options))
