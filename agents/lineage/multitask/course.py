"""One generation's learning of several tasks: as :mod:`~polydistill_agents.lineage.course` has it of one.

Contract: what a course computes does not depend on when, or how often, it was stopped and gone on with: the games of
each task are played again from a recording of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from polydistill.runs import Run
from polydistill_agents.distillation.multitask.algorithm import MultitaskDistillation
from polydistill_agents.distillation.multitask.learner import MultitaskLearner
from polydistill_agents.distillation.multitask.seat import Seat
from polydistill_agents.environments.recording import Recording
from polydistill_agents.lineage.course import RunWriter
from polydistill_agents.lineage.course_base import CourseBase, Player
from polydistill_agents.lineage.curve import SCORE, Point
from polydistill_agents.lineage.datasets import Played
from polydistill_agents.lineage.multitask.config import SeveralTasks
from polydistill_agents.lineage.multitask.view import TaskRun
from polydistill_agents.lineage.students import make_checksums, make_env, seed_of_students, settings_of_play
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


class MultitaskCourse(CourseBase):
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
    """

    def __init__(
        self,
        config: SeveralTasks,
        teachers: Mapping[str, Teacher],
        generation: int,
        run: Run,
        score_curve: ScoreCurve,
    ) -> None:
        super().__init__(config.play.steps, config.evaluation.curve_every_steps, generation, run)
        self.config, self.score_curve = config, score_curve
        self.model = make_multitask_student(config, teachers, generation)
        self.recordings: dict[str, Recording] = {}
        for name, seat in self.model.seats.items():
            seat.set_logger(Logger(None, [RunWriter(cast(Any, TaskRun(run, name)), self.role)]))
            env: Any = seat.games
            checksums = make_checksums(config.of(name), teachers[name], env, generation)
            self.recordings[name] = Recording(self.folder / name, env, int(env.action_space.n), checksums)
        self.curves: dict[str, list[Point]] = {name: [] for name in config.names}

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

    def rates(self) -> dict[str, float]:
        """See :meth:`rates_of`; steps of play are those of all tasks."""
        samples = self.model.n_updates * self.config.student.batch_size
        return self.rates_of(samples, self.steps * len(self.config.names))

    def state(self) -> dict[str, Any]:
        """See :meth:`CourseBase.state`."""
        return {
            **self.shared_state(),
            "recordings": {name: recording.state() for name, recording in self.recordings.items()},
            "model": self.model.state(),
            "curves": self.curves,
        }

    def recorded(self, state: Mapping[str, Any]) -> Sequence[tuple[Recording, Any, Player]]:
        """Those of each task."""
        kept = state["recordings"]
        return [(recording, kept[name], self.model.seats[name]) for name, recording in self.recordings.items()]

    def load_learned(self, state: Mapping[str, Any], *, new_games: bool) -> None:
        """The student and its curves."""
        self.curves = {name: [Point(*point) for point in curve] for name, curve in state["curves"].items()}
        self.model.load_state(state["model"], new_games=new_games)

    def learn(self, due: Callable[[int], bool], save: Callable[[], None]) -> None:
        """See :meth:`~polydistill_agents.lineage.course.Course.learn`."""
        plays = f"plays {self.config.evaluation.curve_episodes} of each game for its curves"
        with self.begin() as bar:

            def between_rounds() -> None:
                bar.advance(self.steps - bar.done)
                self.between_rounds(bar, plays, due, save)

            callbacks = {name: _Recorder(recording) for name, recording in self.recordings.items()}
            self.model.learn(
                self.last_step - self.steps, callbacks, between_rounds=between_rounds, reset=not self.loaded
            )
            bar.advance(self.steps - bar.done)
        self.model.close()

    def score(self) -> None:
        """Score the student in every task, then log all points: a signal in between must not leave a part of them."""
        points = {name: self.score_curve(name, seat, self.steps) for name, seat in self.model.seats.items()}
        for name, point in points.items():
            TaskRun(self.run, name).log(self.role, self.steps, point)
            self.curves[name].append(Point(self.steps, point[SCORE]))


class _Recorder(BaseCallback):
    """Records the play of a task."""

    model: Seat

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self.recording = recording

    def _on_step(self) -> bool:
        self.recording.add(self.model.last_step)
        return True
