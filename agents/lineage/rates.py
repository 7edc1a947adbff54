"""The three rates that bound a distillation, each measured alone: emulator, teacher's labels, student's updates.

Steps of play and samples are counted per second of wall clock. A rate is the median of several short rounds, since
other work on the machine only ever slows a round down.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from polydistill_agents.distillation.algorithm import PolicyDistillation
from polydistill_agents.environments.seeded import SeededVecEnv
from polydistill_agents.networks.observations import to_tensors
from polydistill_agents.teachers import Teacher

ROUNDS = 5


class Rates(NamedTuple):
    """Per second: steps of the emulator, observations labelled by the teacher, samples trained by the student."""

    environment: float
    labels: float
    training: float

    def loop_bound(self, steps_per_sample: float) -> float:
        """Samples per second of a loop that does the three one after another, and nothing else."""
        return 1 / (steps_per_sample * (1 / self.environment + 1 / self.labels) + 1 / self.training)


def measure_rate(work: Callable[[], int], seconds: float, device: torch.device | str = "cpu") -> float:
    """Units per second of ``work``, which does some and returns how many; the median of rounds of equal time.

    Args:
        work: called again and again; its first call is not counted.
        seconds: time to spend in all, after the first call.
        device: waited for at the end of each round.
    """

    def wait() -> None:
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)

    work()
    rates = []
    for _ in range(ROUNDS):
        wait()
        units, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds / ROUNDS or not units:
            units += work()
        wait()
        rates.append(units / (time.perf_counter() - started))
    return statistics.median(rates)


def measure_environment(env: SeededVecEnv, seconds: float = 1.0) -> float:
    """Agent steps per second of all games together, at random play."""
    generator = np.random.default_rng(0)
    env.reset()

    def work() -> int:
        env.step(generator.integers(env.action_space.n, size=env.num_envs))  # type: ignore[attr-defined]
        return env.num_envs

    return measure_rate(work, seconds)


def measure_labels(teacher: Teacher, env: SeededVecEnv, device: torch.device | str, seconds: float = 1.0) -> float:
    """Observations per second that ``teacher`` scores, in batches of one step of all games, ending in actions."""
    observations, view = env.reset(), getattr(env, "teacher_view", None)
    observations = observations if view is None else view

    def work() -> int:
        teacher(to_tensors(observations, device)).argmax(dim=1).cpu()
        return env.num_envs

    return measure_rate(work, seconds, device)


def measure_training(model: PolicyDistillation, seconds: float = 2.0, updates: int = 4) -> float:
    """Samples per second that the student learns from, from a replay of a little play. Changes the student."""
    if model.replay is None:
        with warnings.catch_warnings():  # it may be no more than the beginning of a warm-up
            warnings.filterwarnings("ignore", "learn made no update")
            model.learn(min(20, model.teacher.n_rows if model.teacher else 0) * model.n_envs)

    def work() -> int:
        model.train(updates, model.batch_size)
        return updates * model.batch_size

    return measure_rate(work, seconds, model.device)


def measure_rates(model: PolicyDistillation, env: SeededVecEnv, seconds: float = 4.0) -> Rates:
    """All three, of a student and the environment that it watches; a quarter, a quarter and half of the time.

    The teacher of a data set labels for nothing: the student's own labels, in the games that score it, are measured.
    """
    assert model.teacher is not None
    labels = Teacher(model.student_scores, kind=model.score_kind) if model.teacher.recorded else model.teacher
    return Rates(
        measure_environment(env, seconds / 4),
        measure_labels(labels, env, model.device, seconds / 4),
        measure_training(model, seconds / 2),
    )
