"""One generation's learning: a teacher plays, a student watches, and both can be stopped between two rounds. (Or, as a
control, a DQN of the student's architecture plays and learns from rewards, and the teacher is not asked.)

What TensorBoard shows, over the steps of play: ``teacher/ep_rew_mean``, the games that it watches, whoever acts in
them; ``eval/mean_reward``, whole games that the student plays, the last point is the table's; there alone, since the
teacher must be asked too, ``eval/agreement``: in which share of the states that it meets the student's greedy action is
its teacher's; ``distill/replay_agreement``, that share in the batches it learns from; ``distill/replay_regret``, what
its greedy actions there cost by its teacher's scores, so that a disagreement counts as much as the teacher minds it.

Contract: what a course computes does not depend on when, or how often, it was stopped and gone on with.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger

from polydistill.disk import disk_errors
from polydistill.errors import UserError
from polydistill.learning.rewind import NonFiniteError
from polydistill.runs import Progress, Run
from polydistill.streams import derive_seed
from polydistill_agents.distillation.algorithm import PolicyDistillation
from polydistill_agents.distillation.q_learning import QLearning
from polydistill_agents.distillation.settings import fitting_policy
from polydistill_agents.distillation.student_policy import choose_architecture
from polydistill_agents.environments.atari import AtariVecEnv
from polydistill_agents.environments.checksums import Checksums
from polydistill_agents.environments.recording import Recording
from polydistill_agents.environments.seeded import SeededVecEnv
from polydistill_agents.environments.steps import Step
from polydistill_agents.lineage.agent_config import AgentConfig
from polydistill_agents.lineage.config import SAME_SIZE, AtariConfig
from polydistill_agents.lineage.curve import SCORE, Point
from polydistill_agents.networks.observations import take, to_tensors
from polydistill_agents.teachers import Teacher
from polydistill_agents.teachers.recorded import RecordedTeacher

REHEARSED = 256  # samples of a rehearsal at most
REHEARSED_GAMES = 4  # a game takes a tenth of a second to begin

RECORDINGS = "recordings"  # folder of the play, within that of the run

AnyConfig = AtariConfig | AgentConfig
ScoreCurve = Callable[[PolicyDistillation | QLearning, int], dict[str, float]]


def role_of(generation: int) -> str:
    """The name under which a student's numbers are logged."""
    return f"generation_{generation}"


def role_of_ensemble(members: Sequence[int]) -> str:
    """The name under which the score of an ensemble is logged; those of a lineage are generations in a row."""
    return f"ensemble_{members[0]}_{members[-1]}"


def seed_of_students(config: AnyConfig) -> int:
    """Root of the random streams of learning: the seed, or of a student repeated another for each number.

    What is scored, and how, stays the seed's: teachers and students of a seed meet the same games.
    """
    repeat = config.student.repeat
    return derive_seed(config.seed, "repeated student", repeat) if repeat else config.seed


def make_env(config: AnyConfig, teacher: Teacher, generation: int) -> SeededVecEnv:
    """The games that ``teacher`` plays for the student of ``generation``, with its actions."""
    seed = derive_seed(seed_of_students(config), "environments of play", generation)
    n_actions = teacher.count_actions(config.task)
    env = config.task.make_env(config.play.n_envs, seed=seed, n_threads=config.threads, n_actions=n_actions)
    if isinstance(teacher, RecordedTeacher):
        teacher.prepare(env)
    return env


def make_checksums(config: AnyConfig, teacher: Teacher, env: SeededVecEnv, generation: int) -> Checksums | None:
    """Those of the play of ``generation``, where it is to be saved, or is that of a data set; else None."""
    if isinstance(teacher, RecordedTeacher):
        return teacher.checksums(env)
    saved = config.save_dataset is not None and generation == 1
    return Checksums(sliding=isinstance(env, AtariVecEnv)) if saved else None


def student_network(config: AnyConfig, space: spaces.Space[Any]) -> tuple[str, dict[str, Any]]:
    """The student's policy for observations of ``space``, and what a ``PolicyDistillation`` is told of its network."""
    if isinstance(config, AtariConfig):
        return "CnnPolicy", {"size": None if config.student.size == SAME_SIZE else config.student.size}
    network: dict[str, Any] = {} if config.student.size is None else {"size": config.student.size}
    if config.student.net_arch is not None:
        network["policy_kwargs"] = {"net_arch": list(config.student.net_arch)}
    return fitting_policy(space), network


def make_student(config: AnyConfig, teacher: Teacher, env: SeededVecEnv, generation: int) -> PolicyDistillation:
    """The untrained student of ``generation``, watching ``env``."""
    policy, network = student_network(config, env.observation_space)
    return PolicyDistillation(
        policy,
        env,
        teacher,
        learning_rate=config.student.learning_rate,
        averaging=config.student.averaging,
        temperature=config.student.temperature or 1.0,
        **network,
        **settings_of_play(config),
        generation=generation,
        seed=seed_of_students(config),
    )


def settings_of_play(config: AnyConfig) -> dict[str, Any]:
    """What a student is told of its play, and of what it learns from it."""
    beta, end = config.play.beta, config.play.beta_end
    return {
        "buffer_size": config.play.replay_steps,
        "learning_starts": config.play.warmup_steps,
        "batch_size": config.student.batch_size,
        "samples_per_step": config.student.samples_per_step,
        "train_freq": config.play.train_freq,
        "objective": config.student.objective,
        "objective_kwargs": config.student.options(),
        "exploration_rate": config.teacher.epsilon,
        "play": config.teacher.play,
        "beta": beta if end is None else (beta, end),
        "precision": "bfloat16" if config.precision == "bfloat16" else "float32",
        "device": config.device,
    }


def make_control(config: AnyConfig, teacher: Teacher, env: SeededVecEnv, generation: int) -> QLearning:
    """The untrained DQN that plays ``env`` itself: of the architecture that a student of ``teacher`` would have."""
    policy, network = student_network(config, env.observation_space)
    td = config.student.td
    return QLearning(
        env,
        choose_architecture(policy, network.get("size"), teacher, network.get("policy_kwargs", {})),
        samples_per_step=config.student.samples_per_step,
        learning_starts=config.play.warmup_steps,
        log_every=config.play.train_freq,
        seed=derive_seed(seed_of_students(config), "control", generation),
        learning_rate=config.student.learning_rate,
        buffer_size=config.play.replay_steps,
        batch_size=config.student.batch_size,
        device=config.device,
        **td.given,
    )


def rehearse(config: AnyConfig, teacher: Teacher) -> None:
    """One update of a throw-away student from the first states of play: what only a batch shows, shown before hours.

    Raises:
        UserError: the teacher's scores, the loss or the weights after the update are not finite.
    """
    if not config.student.has_teacher:
        return  # nobody learns from its scores
    if not teacher.recorded:
        few = dataclasses.replace(config.play, n_envs=min(REHEARSED_GAMES, config.play.n_envs))
        config = dataclasses.replace(config, play=few)
    env = make_env(config, teacher, generation=1)
    model = make_student(config, teacher, env, generation=1)
    first = env.reset()
    if isinstance(teacher, RecordedTeacher):
        teacher.checksums(env).begin(first)
    observations = to_tensors(first, config.device)
    teacher.begin(env.num_envs)
    try:
        targets = model.label(env, observations, np.ones(env.num_envs, dtype=bool))
    except NonFiniteError:
        raise UserError("the teacher's scores of the first states are not finite: it cannot teach") from None
    env.close()
    rows = torch.arange(min(config.student.batch_size, REHEARSED), device=targets.device) % len(targets)
    for _ in range(2):  # the second shows what the first has made of the student
        loss, scores = model.learner.update(take(observations, rows), targets[rows])
    if not bool(loss.isfinite() & scores.isfinite().all()):
        raise UserError(
            f"the first update of a student is not finite with student.objective = {config.student.objective} and "
            f"student.learning_rate = {config.student.learning_rate:g}: choose others"
        )


def remove_recordings(out: Path) -> None:
    """Remove the recordings of all courses of the run folder ``out``."""
    with disk_errors(out / RECORDINGS, "remove"):
        if (out / RECORDINGS).is_dir():
            shutil.rmtree(out / RECORDINGS)


class Course:
    """The student of ``generation`` learns from ``teacher``.

    Args:
        config: resolved.
        teacher: who plays.
        generation: of the student.
        run: gets the metrics; its folder gets the recording of the play.
        score_curve: tags and numbers of a student at a step, for its curve.

    Attributes:
        model: the student.
        curve: of mean scores, so far; None: an older version began the course and did not keep them.
        seconds: of learning and of the curve so far, in all processes.
        curve_seconds: those of the curve alone.
    """

    def __init__(self, config: AnyConfig, teacher: Teacher, generation: int, run: Run, score_curve: ScoreCurve) -> None:
        self.config, self.generation, self.run, self.score_curve = config, generation, run, score_curve
        self.role = role_of(generation)
        self.env = make_env(config, teacher, generation)
        make = make_student if config.student.has_teacher else make_control
        self.model: PolicyDistillation | QLearning = make(config, teacher, self.env, generation)
        self.model.set_logger(Logger(None, [RunWriter(run, self.role)]))
        folder = run.out / RECORDINGS / self.role
        n_scores = int(self.model.action_space.n) if config.student.has_teacher else 0  # type: ignore[attr-defined]
        self.recording = Recording(folder, self.env, n_scores, make_checksums(config, teacher, self.env, generation))
        self.began = run.position()
        self.next_curve = 0
        self.curve: list[Point] | None = []
        self.curve_seconds, self._seconds_before, self._started = 0.0, 0.0, time.perf_counter()
        self._loaded = False

    @property
    def learner(self) -> PolicyDistillation | QLearning:
        """The student."""
        return self.model

    @property
    def steps(self) -> int:
        """Of play, so far."""
        return self.model.num_timesteps

    @property
    def seconds(self) -> float:
        """Since the course began, without the time between two processes."""
        return self._seconds_before + time.perf_counter() - self._started

    def rates(self) -> dict[str, float]:
        """Samples learned from, and steps of play, per second without the curve."""
        samples, seconds = self.model._n_updates * self.config.student.batch_size, self.seconds - self.curve_seconds
        return {"train_samples_per_second": samples / seconds, "steps_per_second": self.steps / seconds}

    def state(self) -> dict[str, Any]:
        """What :meth:`load` needs; the play since the last time is written beside. Between two rounds only."""
        return {
            "generation": self.generation,
            "began": self.began,
            "recording": self.recording.state(),
            "model": self.model.state(),
            "next_curve": self.next_curve,
            "curve": self.curve,
            "seconds": self.seconds,
            "curve_seconds": self.curve_seconds,
        }

    def load(self, state: Mapping[str, Any], on_step: Callable[[], None]) -> None:
        """Go on from :meth:`state`, in a new course.

        Args:
            state: of a course with the same arguments.
            on_step: called after each step that is played again; it may raise to leave.

        Raises:
            UserError: the emulator is another one.
            DamagedSegment, DoesNotRepeat: the recording is damaged, or the environment does not repeat itself. Then
                this course must not be used.
        """
        played = self.recording.count(state["recording"])
        with self.run.progress(f"generation {self.generation} plays its games again", played, "steps") as bar:
            first, steps = self.recording.play_again(state["recording"])
            self.model.continue_play(first, self._counted(steps, bar, on_step))
        self._go_on(state, new_games=False)

    def load_into_new_games(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state` with what was learned, in new games and from an empty replay."""
        self._go_on(state, new_games=True)

    def _go_on(self, state: Mapping[str, Any], *, new_games: bool) -> None:
        self.began, self.next_curve = state["began"], state["next_curve"]
        curve = state.get("curve")
        self.curve = None if curve is None else [Point(*point) for point in curve]
        self.model.load_state(state["model"], new_games=new_games)
        self.curve_seconds = state["curve_seconds"]
        self._seconds_before, self._started, self._loaded = state["seconds"], time.perf_counter(), True

    def _counted(self, steps: Iterator[Step], bar: Progress, on_step: Callable[[], None]) -> Iterator[Step]:
        for step in steps:
            yield step
            bar.advance(self.env.num_envs)
            on_step()

    def learn(self, due: Callable[[int], bool], save: Callable[[], None]) -> None:
        """Learn, from the beginning or from where the loaded state stands, to the end.

        Args:
            due: asked between two rounds, with the steps so far, whether to save.
            save: called there, when :meth:`state` can be asked for. It may raise to stop the course.
        """
        steps = self.config.play.steps
        with self.run.progress(f"generation {self.generation} learns", steps, "steps", self.steps) as bar:
            watch = _Watch(self, bar, due, save)
            self.model.learn(steps - self.steps, watch, reset_num_timesteps=not self._loaded)
        self.env.close()

    def score(self) -> None:
        """A point of the student's curve. The last, at the end, is that of the table: whoever teaches scores it."""
        started = time.perf_counter()
        point = self.score_curve(self.model, self.steps)
        self.curve_seconds += time.perf_counter() - started
        self.run.log(self.role, self.steps, point)
        if self.curve is not None:
            self.curve.append(Point(self.steps, point[SCORE]))


class RunWriter(KVWriter):
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
    """Records the play, moves the progress bar, scores the student for its curve, and saves between two rounds."""

    model: PolicyDistillation | QLearning

    def __init__(self, course: Course, bar: Progress, due: Callable[[int], bool], save: Callable[[], None]) -> None:
        super().__init__()
        self.course, self.bar, self.due, self.save = course, bar, due, save

    def _on_step(self) -> bool:
        model = self.model
        step = model.read_step(self.locals) if isinstance(model, QLearning) else model.last_step
        self.course.recording.add(step)
        self.bar.advance(self.training_env.num_envs)
        return True

    def _on_rollout_start(self) -> None:
        every = self.course.config.evaluation.curve_every_steps
        if every and self.model.num_timesteps >= self.course.next_curve:
            episodes = self.course.config.evaluation.curve_episodes
            self.bar.say(f"plays {episodes} game{'s' * (episodes != 1)} for its curve")
            self.course.score()
            self.course.next_curve += every
        if self.due(self.course.steps):
            self.save()
