"""What may come after a distillation: the student learns on from rewards, as a stock DQN of Stable-Baselines3.

``DQN.load`` opens the student's file, and ``learn`` goes on, as with a user who has nothing of this project. One thing
differs from a bare ``learn``: there, ``learning_starts`` is a time of random actions, which a student that can play
does not need. Here it is a time of its own play without updates, so that the first batches are of states that it meets.

Contract: what is learned depends on the file, the games, the settings and the seed alone; Stable-Baselines3 seeds the
global generators and draws from them, and afterwards they are as they were. Nothing is saved on the way: whoever was
stopped begins it again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from polydistill.config.fields import check_fields
from polydistill.errors import require_at_least
from polydistill_agents.environments.seeded import SeededVecEnv

DEFAULTS: dict[str, Any] = {
    "learning_rate": 1e-4,
    "epsilon": 0.05,
    "gamma": 0.99,
    "batch_size": 128,
    "buffer_size": 50_000,
    "learning_starts": 1_000,
    "train_freq": 4,
    "gradient_steps": 1,
    "target_update_interval": 1_000,
    "curve_every_steps": 1_000,
}


@dataclass(frozen=True)
class LearningOnConfig:
    """What the last student does after it was scored: it learns on, as DQN.load(student.zip, env=env).learn() does, and
    is scored again. Settings of Stable-Baselines3's DQN, by its names; null: the default that is named.

    Args:
        steps: of play; null: it does not learn on.
        learning_rate: of Adam; null: 1e-4.
        epsilon: probability of a random action; null: 0.05.
        gamma: discount per step, best that of the teacher; null: 0.99.
        batch_size: samples per update; null: 128.
        buffer_size: steps that the replay holds; null: 50,000.
        learning_starts: steps of its own play before the first update; null: 1,000.
        train_freq: steps between two updates, or several (gradient_steps); null: 4.
        gradient_steps: updates made then; null: 1.
        target_update_interval: steps of play between two copies to the target network; null: 1,000.
        curve_every_steps: steps between two points of its curve, each of evaluation.curve_episodes games; 0: no curve;
            null: 1,000.
    """

    left_out = True  # of a config whose student does not learn on, see ``to_mapping``

    steps: int | None = None
    learning_rate: float | None = None
    epsilon: float | None = None
    gamma: float | None = None
    batch_size: int | None = None
    buffer_size: int | None = None
    learning_starts: int | None = None
    train_freq: int | None = None
    gradient_steps: int | None = None
    target_update_interval: int | None = None
    curve_every_steps: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        given = self.given
        if self.steps is None:
            for name in given:
                raise ValueError(f"{name} says how a student learns on, and it does not: give steps, too")
            return
        counts = ("steps", "batch_size", "buffer_size", "train_freq", "gradient_steps", "target_update_interval")
        require_at_least(1, self, *(name for name in counts if name in given))
        require_at_least(0, self, *(name for name in ("learning_starts", "curve_every_steps") if name in given))
        if self.learning_rate is not None and self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        for name in ("gamma", "epsilon"):
            if name in given and not 0 <= given[name] <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {given[name]}")
        starts = {**DEFAULTS, **given}["learning_starts"]
        if starts >= self.steps:
            raise ValueError(f"steps = {self.steps} must be more than learning_starts = {starts}: it would not learn")

    @property
    def given(self) -> dict[str, Any]:
        """What is not null."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    def filled(self) -> LearningOnConfig:
        """With the defaults in the place of null, where there are steps."""
        return self if self.steps is None else LearningOnConfig(**{**DEFAULTS, **self.given})

    @property
    def of_dqn(self) -> dict[str, Any]:
        """Options of ``DQN``, of a config that is filled. Nobody acts at random before the first update."""
        own = ("steps", "epsilon", "learning_starts", "curve_every_steps")
        options = {name: value for name, value in self.given.items() if name not in own}
        exploration = {"exploration_initial_eps": self.epsilon, "exploration_final_eps": self.epsilon}
        return {**options, **exploration, "learning_starts": 0}


def learn_on(
    path: Path,
    env: SeededVecEnv,
    settings: LearningOnConfig,
    *,
    seed: int,
    device: str,
    logger: Logger,
    watch: BaseCallback,
) -> DQN:
    """The DQN that a student's file becomes.

    Args:
        path: the student's zip, which this project has just written: ``DQN.load`` unpickles parts of it.
        env: the games, with a seed of their own.
        settings: filled, with steps.
        seed: of the exploration and of the order of the data.
        device: where it learns.
        logger: for what Stable-Baselines3 records.
        watch: called with each step.
    """
    with generators_restored(device):
        model = DQN.load(path, env=env, device=device, seed=seed % 2**31, **settings.of_dqn)
        env.seed(env.own_seed)  # the seed above is that of learning
        model.set_logger(logger)
        model.num_timesteps = 0
        told = settings.given
        for until, updates in ((told["learning_starts"], 0), (told["steps"], told["gradient_steps"])):
            model.gradient_steps = updates
            if until > model.num_timesteps:
                model.learn(until - model.num_timesteps, watch, reset_num_timesteps=False)
    return model


class Watch(BaseCallback):
    """Calls what it is given, after each step and at each point of the curve.

    Args:
        every: steps between two points, from the first step on; 0: there are none.
        on_step: with the steps so far; it may raise to leave.
        on_point: with the DQN, between two rounds.
    """

    def __init__(self, every: int, on_step: Callable[[int], None], on_point: Callable[[DQN], None]) -> None:
        super().__init__()
        self.every, self.next, self._tell_step, self._tell_point = every, 0, on_step, on_point

    def _on_step(self) -> bool:
        self._tell_step(self.num_timesteps)
        return True

    def _on_rollout_start(self) -> None:
        if self.every and self.num_timesteps >= self.next:
            assert isinstance(self.model, DQN)
            self._tell_point(self.model)
            self.next += self.every


@contextlib.contextmanager
def generators_restored(device: str) -> Iterator[None]:
    """Afterwards the global generators of Python, numpy and torch are as they were before."""
    plain, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[] if device == "cpu" else [torch.device(device)]):
        try:
            yield
        finally:
            random.setstate(plain)
            np.random.set_state(numpy)
