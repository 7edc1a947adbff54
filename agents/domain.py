"""The world of Atari for a lineage: a game, a teacher who plays it, students that watch."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from torch import nn

from agents.atari import AtariVecEnv, check_game
from agents.distillation import PolicyDistillation
from agents.evaluation import Evaluation, evaluate, get_protocol
from agents.networks import SIZES
from agents.scores import human_normalized, teacher_normalized
from agents.teachers import Teacher, as_teacher
from agents.zoo import find_teacher
from polydistill.config import UserError, suggest
from polydistill.lineage import LineageConfig
from polydistill.losses import OBJECTIVES
from polydistill.statistics import bootstrap_normalized_interval
from polydistill.streams import derive_seed
from polydistill.tracking import Run


@dataclass(frozen=True)
class TeacherConfig:
    """Who teaches generation 1.

    Args:
        path: a DQN zip of Stable-Baselines3; empty: the project's own teacher of the game.
        epsilon: probability of a random action while the teacher plays.
    """

    path: str = ""
    epsilon: float = 0.05


@dataclass(frozen=True)
class StudentConfig:
    """Who learns, and how.

    Args:
        size: widths of the network: nature, net1, net2, net3 (Rusu et al. 2016), or "teacher": the same as its own.
        objective: policy_kl, policy_nll, policy_mse or policy_huber.
        temperature: of the teacher's Q-values, for policy_kl; in their unit.
        learning_rate: of Adam at the start; it falls linearly to zero.
        batch_size: samples per update.
        samples_per_step: samples learned from per step of play.
    """

    size: str = "teacher"
    objective: str = "policy_kl"
    temperature: float = 0.01
    learning_rate: float = 5e-4
    batch_size: int = 128
    samples_per_step: float = 12.0


@dataclass(frozen=True)
class PlayConfig:
    """The teacher's play from which a student learns.

    Args:
        steps: agent steps per generation (1 step = 4 frames).
        replay_steps: steps that the replay holds, 7 KiB each.
        warmup_steps: steps before the first update.
        n_envs: games at once.
        train_freq: steps of all games between two rounds of updates.
    """

    steps: int = 64_000
    replay_steps: int = 64_000
    warmup_steps: int = 8_000
    n_envs: int = 16
    train_freq: int = 64


@dataclass(frozen=True)
class EvaluationConfig:
    """How teacher and students are scored.

    Args:
        protocol: rusu, machado or zoo.
        episodes: full games for the table.
        curve_every_steps: steps between two points of the student's curve; 0: no curve.
        curve_episodes: games per point of the curve.
    """

    protocol: str = "rusu"
    episodes: int = 30
    curve_every_steps: int = 16_000
    curve_episodes: int = 8


@dataclass(frozen=True)
class AtariConfig:
    """Distil an agent of an Atari game into generations of students.

    Args:
        game: ROM id of ale-py, like pong.
        seed: root of every random stream.
        device: auto, cpu or cuda.
        threads: processor threads of torch and of the emulator; 0: as many as there are cores.
        precision: of the student's convolutions while it learns: float32 or bfloat16.
        teacher: who teaches.
        student: who learns.
        play: the teacher's play.
        evaluation: how all are scored.
        lineage: how many generations.
    """

    game: str = "pong"
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    play: PlayConfig = field(default_factory=PlayConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    lineage: LineageConfig = field(default_factory=LineageConfig)

    def __post_init__(self) -> None:
        for name, value in (("play.steps", self.play.steps), ("play.replay_steps", self.play.replay_steps)):
            if value < self.play.n_envs:
                raise ValueError(f"{name} must be at least play.n_envs = {self.play.n_envs}, got {value}")
        positive = {
            "play.n_envs": self.play.n_envs,
            "play.train_freq": self.play.train_freq,
            "student.batch_size": self.student.batch_size,
            "evaluation.episodes": self.evaluation.episodes,
            "evaluation.curve_episodes": self.evaluation.curve_episodes,
        }
        for name, count in positive.items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        rates = {
            "student.temperature": self.student.temperature,
            "student.learning_rate": self.student.learning_rate,
            "student.samples_per_step": self.student.samples_per_step,
        }
        for name, rate in rates.items():
            if not rate > 0:
                raise ValueError(f"{name} must be positive, got {rate}")
        if not 0 <= self.teacher.epsilon <= 1:
            raise ValueError(f"teacher.epsilon is a probability, got {self.teacher.epsilon}")
        if self.seed < 0 or self.threads < 0:
            raise ValueError(f"seed and threads must not be negative, got {self.seed} and {self.threads}")
        for name, choice, choices in (
            ("student.size", self.student.size, [*SIZES, "teacher"]),
            ("student.objective", self.student.objective, list(OBJECTIVES)),
        ):
            if choice not in choices:
                raise ValueError(f"unknown {name} {choice!r}{suggest(choice, choices)} (there are {', '.join(choices)})")


class AtariDomain:
    """Generation 0 is the configured teacher; students are trained by :class:`PolicyDistillation`.

    Raises:
        UserError: unknown game or protocol, a missing or damaged teacher, or one that does not fit the game.
    """

    def __init__(self, config: AtariConfig, run: Run) -> None:
        self.config, self.run = config, run
        check_game(config.game)
        get_protocol(config.evaluation.protocol)
        if config.device == "cuda" and not torch.cuda.is_available():
            raise UserError("device is cuda, but torch sees no GPU here; use --device cpu")
        automatic = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(automatic if config.device == "auto" else config.device)
        if config.threads:
            torch.set_num_threads(config.threads)
        self.evaluations: list[Evaluation] = []
        self.throughput: dict[str, float] = {}
        self.seconds: list[float] = []

    @property
    def objective(self) -> str:
        return self.config.student.objective

    def first(self) -> Teacher:
        path = self.config.teacher.path or find_teacher(self.config.game)
        started = time.perf_counter()
        teacher = as_teacher(path).to(self.device)
        env = get_protocol(self.config.evaluation.protocol).make_env(self.config.game, 1, seed=0, n_threads=1)
        teacher.check_fits(env.observation_space, env.action_space)
        self.seconds.append(time.perf_counter() - started)
        return teacher

    def network(self, member: Teacher) -> nn.Module | None:
        return member.network

    def teach(self, teacher: Teacher, generation: int) -> Teacher:
        config, started = self.config, time.perf_counter()
        role = f"generation_{generation}"
        env_seed = derive_seed(config.seed, "environments of play", generation)
        env = AtariVecEnv(config.game, config.play.n_envs, seed=env_seed, n_threads=config.threads)
        model = PolicyDistillation(
            "CnnPolicy",
            env,
            teacher,
            learning_rate=_linear(config.student.learning_rate),
            buffer_size=config.play.replay_steps,
            learning_starts=config.play.warmup_steps,
            batch_size=config.student.batch_size,
            samples_per_step=config.student.samples_per_step,
            train_freq=config.play.train_freq,
            objective=config.student.objective,
            temperature=config.student.temperature,
            exploration_rate=config.teacher.epsilon,
            size=None if config.student.size == "teacher" else config.student.size,
            precision=config.precision,
            generation=generation,
            seed=config.seed,
            device=self.device,
        )
        model.set_logger(Logger(None, [_RunWriter(self.run, role)]))
        with self.run.progress(f"generation {generation} learns", config.play.steps, "steps") as bar:
            model.learn(config.play.steps, _Watch(self, bar, role, generation))
        self.seconds.append(time.perf_counter() - started)
        self.throughput[f"generation_{generation}_train_samples_per_second"] = round(
            model._n_updates * model.batch_size / self.seconds[-1], 1
        )
        model.save(self.run.path / ("student.zip" if generation == config.lineage.generations else f"{role}.zip"))
        return as_teacher(model)

    def evaluate(self, member: Teacher, teacher: Teacher | None, generation: int) -> dict[str, Any]:
        settings = self.config.evaluation
        who = "the teacher" if generation == 0 else f"generation {generation}"
        with self.run.progress(f"{who} plays", settings.episodes, "games") as bar:
            result = self.play(member, settings.episodes, "evaluation", generation, teacher, bar)
        self.evaluations.append(result)
        if generation == 0:
            for step in (0, self.config.play.steps):  # a level line beside the students' curves
                self.run.log("teacher", step, {"eval/mean_reward": result.mean})
        return self._metrics(result, None if generation == 0 else self.evaluations[0])

    def play(
        self, member: Any, episodes: int, stream: str, generation: int, teacher: Teacher | None = None, bar: Any = None
    ) -> Evaluation:
        """Score ``member`` under the configured protocol in games of the random stream ``stream``."""
        shown = 0

        def show(done: int) -> None:
            nonlocal shown
            if bar is not None and done > shown:
                bar.advance(done - shown)
                shown = done

        return evaluate(
            member,
            self.config.game,
            protocol=self.config.evaluation.protocol,
            episodes=episodes,
            seed=derive_seed(self.config.seed, stream, generation),
            n_threads=self.config.threads,
            device=self.device,
            reference=teacher,
            on_step=show,
        )

    def _metrics(self, result: Evaluation, first: Evaluation | None) -> dict[str, Any]:
        game = self.config.game
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
        if first is not None:
            metrics["teacher_normalized"], metrics["teacher_normalized_ci95"] = _against(
                result, first, game, self.config.seed
            )
        return metrics


def _against(result: Evaluation, first: Evaluation, game: str, seed: int) -> tuple[float | None, list[float] | None]:
    """Teacher-normalised score with its interval; None for a game without a row, or a teacher no better than random."""
    from agents.scores import reference

    row = reference(game)
    if row is None or first.mean <= row.random:
        return None, None
    interval = bootstrap_normalized_interval(
        result.scores, first.scores, row.random, generator=np.random.default_rng(seed)
    )
    return teacher_normalized(result.mean, first.mean, game), list(interval)


def _linear(start: float) -> Any:
    from stable_baselines3.common.utils import LinearSchedule

    return LinearSchedule(start, 0.0, 1.0)


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

    def __init__(self, domain: AtariDomain, bar: Any, role: str, generation: int) -> None:
        super().__init__()
        self.domain, self.bar, self.role, self.generation = domain, bar, role, generation
        self.next_curve = 0

    def _on_step(self) -> bool:
        self.bar.advance(self.training_env.num_envs)
        return True

    def _on_rollout_start(self) -> None:
        every = self.domain.config.evaluation.curve_every_steps
        if every and self.num_timesteps >= self.next_curve:
            self.score()
            self.next_curve += every

    def _on_training_end(self) -> None:
        if self.domain.config.evaluation.curve_every_steps:
            self.score()

    def score(self) -> None:
        episodes = self.domain.config.evaluation.curve_episodes
        result = self.domain.play(self.model.student_scores, episodes, f"curve {self.num_timesteps}", self.generation)
        self.domain.run.log(self.role, self.num_timesteps, {"eval/mean_reward": result.mean})
