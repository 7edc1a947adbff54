"""One generation's learning of several tasks: as :mod:`~polydistill_agents.lineage.course` has it of one.

Contract: what a course computes does not depend on when, or how often, it was stopped and gone on with: the games of
each task are played again from a recording of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from polydistill.runs import Progress, Run
from polydistill_agents.distillation.multitask.algorithm import MultitaskDistillation
from polydistill_agents.distillation.multitask.learner import MultitaskLearner
from polydistill_agents.distillation.multitask.seat import Seat
from polydistill_agents.environments.recording import Recording
from polydistill_agents.environments.steps import Step
from polydistill_agents.lineage.course import (
    RECORDINGS,
    RunWriter,
    make_checksums,
    make_env,
    role_of,
    seed_of_students,
    settings_of_play,
)
from polydistill_agents.lineage.curve import SCORE, Point
from polydistill_agents.lineage.datasets import Played
from polydistill_agents.lineage.multitask.config import SeveralTasks
from polydistill_agents.lineage.multitask.view import TaskRun
from polydistill_agents.teachers import Teacher

ScoreCurve = Callable[[str, Seat, int], dict[str, float]]


def make_multitask_student(
    config: SeveralTasks, teachers: Mapping[str, Teacher], generation: int
) -> MultitaskDistillation:
    """The untrained student of ``generation``, watching games of all tasks."""
    envs = {name: make_env(config.learning(name), teachers[name], generation) for name in config.names}
    alone = {name: config.of(name) for name in config.names}
    one = alone[config.names[0]]
    return MultitaskDistillation(
        envs,
        teachers,
        config.torso(),
        controller=config.student.controller,
        outputs=config.outputs({name: int(env.action_space.n) for name, env in envs.items()}),  # type: ignore[attr-defined]
        temperatures={name: each.student.temperature or 1.0 for name, each in alone.items()},
        weighting=config.student.weighting,
        weights={name: entry["weight"] for name, entry in config.entries.items()},
        learning_rate=config.student.learning_rate,
        averaging=config.student.averaging,
        generation=generation,
        seed=seed_of_students(one),
        **settings_of_play(one),
    )


class MultitaskCourse:
    """The student of ``generation`` learns from ``teachers``.

    Args:
        config: resolved, with the temperature of each task.
        teachers: who play, by task.
        generation: of the student.
        run: gets the metrics; its folder gets the recordings of the play.
        score_curve: tags and numbers of the student in a task at a step, for its curve.

    Attributes:
        model: the student.
        curves: of mean scores so far, by task.
        seconds: of learning and of the curves so far, in all processes.
        curve_seconds: those of the curves alone.
    """

    def __init__(
        self,
        config: SeveralTasks,
        teachers: Mapping[str, Teacher],
        generation: int,
        run: Run,
        score_curve: ScoreCurve,
    ) -> None:
        self.config, self.generation, self.run, self.score_curve = config, generation, run, score_curve
        self.role = role_of(generation)
        self.model = make_multitask_student(config, teachers, generation)
        folder = run.out / RECORDINGS / self.role
        self.recordings: dict[str, Recording] = {}
        for name, seat in self.model.seats.items():
            seat.set_logger(Logger(None, [RunWriter(cast(Any, TaskRun(run, name)), self.role)]))
            env: Any = seat.games
            checksums = make_checksums(config.of(name), teachers[name], env, generation)
            self.recordings[name] = Recording(folder / name, env, int(env.action_space.n), checksums)
        self.began = run.position()
        self.next_curve = 0
        self.curves: dict[str, list[Point]] = {name: [] for name in config.names}
        self.curve_seconds, self._seconds_before, self._started = 0.0, 0.0, time.perf_counter()
        self._loaded = False

    def played(self, task: str) -> Played:
        """The games of a task, for a data set."""
        return Played(self.recordings[task], cast(Any, self.model.seats[task].games))

    @property
    def learner(self) -> MultitaskLearner:
        """What makes the updates."""
        return self.model.learner

    @property
    def steps(self) -> int:
        """Of play of each task, so far."""
        return self.model.steps

    @property
    def seconds(self) -> float:
        """Since the course began, without the time between two processes."""
        return self._seconds_before + time.perf_counter() - self._started

    def rates(self) -> dict[str, float]:
        """Samples learned from, and steps of play of all tasks, per second without the curves."""
        samples, seconds = self.model.n_updates * self.config.student.batch_size, self.seconds - self.curve_seconds
        steps = self.steps * len(self.config.names)
        return {"train_samples_per_second": samples / seconds, "steps_per_second": steps / seconds}

    def state(self) -> dict[str, Any]:
        """What :meth:`load` needs; the play since the last time is written beside. Between two rounds only."""
        return {
            "generation": self.generation,
            "began": self.began,
            "recordings": {name: recording.state() for name, recording in self.recordings.items()},
            "model": self.model.state(),
            "next_curve": self.next_curve,
            "curves": self.curves,
            "seconds": self.seconds,
            "curve_seconds": self.curve_seconds,
        }

    def load(self, state: Mapping[str, Any], on_step: Callable[[], None]) -> None:
        """Go on from :meth:`state`, in a new course; see :meth:`~polydistill_agents.lineage.course.Course.load`."""
        kept = state["recordings"]
        played = sum(recording.count(kept[name]) for name, recording in self.recordings.items())
        with self.run.progress(f"generation {self.generation} plays its games again", played, "steps") as bar:
            for name, recording in self.recordings.items():
                first, steps = recording.play_again(kept[name])
                self.model.seats[name].continue_play(first, self._counted(steps, bar, on_step))
        self._go_on(state, new_games=False)

    def load_into_new_games(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state` with what was learned, in new games and from empty replays."""
        self._go_on(state, new_games=True)

    def _go_on(self, state: Mapping[str, Any], *, new_games: bool) -> None:
        self.began, self.next_curve = state["began"], state["next_curve"]
        self.curves = {name: [Point(*point) for point in curve] for name, curve in state["curves"].items()}
        self.model.load_state(state["model"], new_games=new_games)
        self.curve_seconds = state["curve_seconds"]
        self._seconds_before, self._started, self._loaded = state["seconds"], time.perf_counter(), True

    def _counted(self, steps: Iterator[Step], bar: Progress, on_step: Callable[[], None]) -> Iterator[Step]:
        for step in steps:
            yield step
            bar.advance(len(step.actions))
            on_step()

    def learn(self, due: Callable[[int], bool], save: Callable[[], None]) -> None:
        """See :meth:`~polydistill_agents.lineage.course.Course.learn`."""
        steps = self.config.play.steps
        with self.run.progress(f"generation {self.generation} learns", steps, "steps", self.steps) as bar:

            def between_rounds() -> None:
                bar.advance(self.steps - bar.done)
                every = self.config.evaluation.curve_every_steps
                if every and self.steps >= self.next_curve:
                    bar.say(f"plays {self.config.evaluation.curve_episodes} of each game for its curves")
                    self.score()
                    self.next_curve += every
                if due(self.steps):
                    save()

            callbacks = {name: _Recorder(recording) for name, recording in self.recordings.items()}
            self.model.learn(steps - self.steps, callbacks, between_rounds=between_rounds, reset=not self._loaded)
            bar.advance(self.steps - bar.done)
        self.model.close()

    def score(self) -> None:
        """Score the student in every task, then log all points: a signal in between must not leave a part of them."""
        started = time.perf_counter()
        points = {name: self.score_curve(name, seat, self.steps) for name, seat in self.model.seats.items()}
        for name, point in points.items():
            TaskRun(self.run, name).log(self.role, self.steps, point)
            self.curves[name].append(Point(self.steps, point[SCORE]))
        self.curve_seconds += time.perf_counter() - started


class _Recorder(BaseCallback):
    """Records the play of a task."""

    model: Seat

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self.recording = recording

    def _on_step(self) -> bool:
        self.recording.add(self.model.last_step)
        return True
