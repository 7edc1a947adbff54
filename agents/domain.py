"""The world of Atari for a lineage: a game, a teacher who plays it, students that watch."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.utils import LinearSchedule
from torch import nn

from agents.atari import AtariVecEnv
from agents.config import SAME_SIZE, AtariConfig
from agents.distillation import PolicyDistillation
from agents.evaluation import Evaluation, evaluate, get_protocol
from agents.scores import human_normalized, reference, teacher_normalized
from agents.teachers import ScoreFunction, Teacher, as_teacher
from agents.zoo import find_teacher
from polydistill.statistics import bootstrap_normalized_interval
from polydistill.streams import derive_seed
from polydistill.tracking import Progress, Run


def open_teacher(config: AtariConfig) -> Teacher:
    """The configured teacher, or the project's own, on the configured device.

    Raises:
        UserError: there is none, the file is damaged, or it does not fit the game.
    """
    teacher = as_teacher(config.teacher.path or find_teacher(config.game)).to(config.device)
    env = get_protocol(config.evaluation.protocol).make_env(config.game, 1, seed=0, n_threads=1)
    teacher.check_fits(env.observation_space, env.action_space)
    env.close()
    return teacher


def make_env(config: AtariConfig, generation: int) -> AtariVecEnv:
    """The games that the teacher plays for the student of ``generation``."""
    seed = derive_seed(config.seed, "environments of play", generation)
    return AtariVecEnv(config.game, config.play.n_envs, seed=seed, n_threads=config.threads)


def make_student(config: AtariConfig, teacher: Teacher, env: AtariVecEnv, generation: int) -> PolicyDistillation:
    """The untrained student of ``generation``, watching ``env``."""
    return PolicyDistillation(
        "CnnPolicy",
        env,
        teacher,
        learning_rate=LinearSchedule(config.student.learning_rate, 0.0, 1.0),
        buffer_size=config.play.replay_steps,
        learning_starts=config.play.warmup_steps,
        batch_size=config.student.batch_size,
        samples_per_step=config.student.samples_per_step,
        train_freq=config.play.train_freq,
        objective=config.student.objective,
        temperature=config.student.temperature,
        exploration_rate=config.teacher.epsilon,
        size=None if config.student.size == SAME_SIZE else config.student.size,
        precision="bfloat16" if config.precision == "bfloat16" else "float32",
        generation=generation,
        seed=config.seed,
        device=config.device,
    )


class AtariDomain:
    """Generation 0 is the given teacher; students are trained by :class:`PolicyDistillation`.

    Args:
        config: resolved, see :meth:`AtariConfig.resolve`.
        teacher: see :func:`open_teacher`.
        run: where metrics and the students' zips go: ``student.zip`` is the last generation, earlier ones are
            ``generation_<k>.zip``.

    Attributes:
        seconds: wall clock of each generation so far, training and evaluation.
        throughput: rates by name, for summary.json.
    """

    def __init__(self, config: AtariConfig, teacher: Teacher, run: Run) -> None:
        self.config, self.teacher, self.run = config, teacher, run
        self.device = torch.device(config.device)
        torch.set_num_threads(config.threads)
        self.evaluations: list[Evaluation] = []
        self.seconds: list[float] = []
        self.throughput: dict[str, float] = {}

    @property
    def objective(self) -> str:
        """Name of the students' objective."""
        return self.config.student.objective

    def first(self) -> Teacher:
        """The teacher."""
        self.seconds.append(0.0)
        return self.teacher

    def network(self, member: Teacher) -> nn.Module | None:
        """The network behind the scores."""
        return member.network

    def teach(self, teacher: Teacher, generation: int) -> Teacher:
        """Train the student of ``generation`` and write its zip."""
        config, started = self.config, time.perf_counter()
        role = f"generation_{generation}"
        env = make_env(config, generation)
        model = make_student(config, teacher, env, generation)
        model.set_logger(Logger(None, [_RunWriter(self.run, role)]))
        with self.run.progress(f"generation {generation} learns", config.play.steps, "steps") as bar:
            watch = _Watch(self, bar, role, generation)
            model.learn(config.play.steps, watch)
        env.close()
        self.seconds.append(time.perf_counter() - started)
        learning_seconds = self.seconds[-1] - watch.seconds
        samples = model._n_updates * config.student.batch_size
        self.throughput[f"{role}_train_samples_per_second"] = round(samples / learning_seconds, 1)
        self.throughput[f"{role}_steps_per_second"] = round(model.num_timesteps / learning_seconds, 1)
        model.save(self.run.out / ("student.zip" if generation == config.lineage.generations else f"{role}.zip"))
        return as_teacher(model)

    def evaluate(self, member: Teacher, teacher: Teacher | None, generation: int) -> dict[str, Any]:
        """Score ``member`` under the configured protocol; the metrics of summary.json."""
        settings = self.config.evaluation
        who = "the teacher" if generation == 0 else f"generation {generation}"
        with self.run.progress(f"{who} plays", settings.episodes, "games") as bar:
            result = self.play(member, settings.episodes, "evaluation", generation, teacher, bar)
        self.evaluations.append(result)
        self.seconds[-1] += result.seconds
        if generation == 0:
            for step in (0, self.config.play.steps):  # a level line beside the students' curves
                self.run.log("teacher", step, {"eval/mean_reward": result.mean})
        return self._metrics(result, None if generation == 0 else self.evaluations[0])

    def play(
        self,
        member: ScoreFunction,
        episodes: int,
        stream: str,
        generation: int,
        teacher: Teacher | None = None,
        bar: Progress | None = None,
    ) -> Evaluation:
        """``episodes`` games of ``member`` in the random stream ``stream``; ``teacher`` is asked for the agreement."""
        return evaluate(
            member,
            self.config.game,
            protocol=self.config.evaluation.protocol,
            episodes=episodes,
            seed=derive_seed(self.config.seed, stream, generation),
            n_threads=self.config.threads,
            device=self.device,
            reference=teacher,
            on_step=None if bar is None else lambda games: bar.advance(games - bar.done),
        )

    def _metrics(self, result: Evaluation, first: Evaluation | None) -> dict[str, Any]:
        game, row = self.config.game, reference(self.config.game)
        metrics: dict[str, Any] = {
            "score_mean": result.mean,
            "score_iqm": result.iqm,
            "score_ci95": list(result.interval(self.config.seed)),
            "episodes": len(result.scores),
            "protocol": self.config.evaluation.protocol,
            "human_normalized": human_normalized(result.mean, game),
            "teacher_normalized": None,
            "teacher_normalized_ci95": None,
            "agreement": result.agreement,
            "scores": result.scores.tolist(),
        }
        if first is not None and row is not None and first.mean > row.random:
            metrics["teacher_normalized"] = teacher_normalized(result.mean, first.mean, game)
            metrics["teacher_normalized_ci95"] = list(
                bootstrap_normalized_interval(
                    result.scores, first.scores, row.random, generator=np.random.default_rng(self.config.seed)
                )
            )
        return metrics


class _RunWriter(KVWriter):
    """Stable-Baselines3's records go to the run: clock values apart, since metrics must not depend on the machine."""

    def __init__(self, run: Run, role: str) -> None:
        self.run, self.role = run, role

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        values = {key: float(value) for key, value in key_values.items() if "tensorboard" not in key_excluded[key]}
        clock = {key: value for key, value in values.items() if key.startswith("time/")}
        self.run.log(self.role, step, {key: value for key, value in values.items() if key not in clock})
        self.run.log_timing(self.role, step, clock)

    def close(self) -> None:
        """The run closes its own files."""


class _Watch(BaseCallback):
    """Moves the progress bar, and scores the student every so many steps for its curve."""

    model: PolicyDistillation

    def __init__(self, domain: AtariDomain, bar: Progress, role: str, generation: int) -> None:
        super().__init__()
        self.domain, self.bar, self.role, self.generation = domain, bar, role, generation
        self.next_curve, self.seconds = 0, 0.0

    def _on_step(self) -> bool:
        self.bar.advance(self.training_env.num_envs)
        return True

    def _on_rollout_start(self) -> None:
        every = self.domain.config.evaluation.curve_every_steps
        if every and self.num_timesteps >= self.next_curve:
            self._score()
            self.next_curve += every

    def _on_training_end(self) -> None:
        if self.domain.config.evaluation.curve_every_steps:
            self._score()

    def _score(self) -> None:
        episodes = self.domain.config.evaluation.curve_episodes
        result = self.domain.play(self.model.student_scores, episodes, f"curve {self.num_timesteps}", self.generation)
        self.seconds += result.seconds
        self.domain.run.log(self.role, self.num_timesteps, {"eval/mean_reward": result.mean})
