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

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger

from polydistill.runs import Progress, Run
from polydistill_agents.distillation.algorithm import PolicyDistillation
from polydistill_agents.distillation.q_learning import QLearning
from polydistill_agents.environments.recording import Recording
from polydistill_agents.lineage.course_base import CourseBase, Player
from polydistill_agents.lineage.curve import SCORE, Point
from polydistill_agents.lineage.students import (
    AnyConfig,
    make_checksums,
    make_control,
    make_env,
    make_student,
)
from polydistill_agents.teachers import Teacher

ScoreCurve = Callable[[PolicyDistillation | QLearning, int], dict[str, float]]


class Course(CourseBase):
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
    """

    def __init__(self, config: AnyConfig, teacher: Teacher, generation: int, run: Run, score_curve: ScoreCurve) -> None:
        super().__init__(config.play.steps, config.evaluation.curve_every_steps, generation, run)
        self.config, self.score_curve = config, score_curve
        self.env = make_env(config, teacher, generation)
        make = make_student if config.student.has_teacher else make_control
        self.model: PolicyDistillation | QLearning = make(config, teacher, self.env, generation)
        self.model.set_logger(Logger(None, [RunWriter(run, self.role)]))
        n_scores = int(self.model.action_space.n) if config.student.has_teacher else 0  # type: ignore[attr-defined]
        checksums = make_checksums(config, teacher, self.env, generation)
        self.recording = Recording(self.folder, self.env, n_scores, checksums)
        self.curve: list[Point] | None = []

    @property
    def learner(self) -> PolicyDistillation | QLearning:
        """The student."""
        return self.model

    @property
    def steps(self) -> int:
        """Of play, so far."""
        return self.model.num_timesteps

    def rates(self) -> dict[str, float]:
        """See :meth:`rates_of`."""
        return self.rates_of(self.model._n_updates * self.config.student.batch_size, self.steps)

    def state(self) -> dict[str, Any]:
        """See :meth:`CourseBase.state`."""
        return {
            **self.shared_state(),
            "recording": self.recording.state(),
            "model": self.model.state(),
            "curve": self.curve,
        }

    def recorded(self, state: Mapping[str, Any]) -> Sequence[tuple[Recording, Any, Player]]:
        """That of its games."""
        return [(self.recording, state["recording"], self.model)]

    def load_learned(self, state: Mapping[str, Any], *, new_games: bool) -> None:
        """The student and its curve."""
        curve = state.get("curve")
        self.curve = None if curve is None else [Point(*point) for point in curve]
        self.model.load_state(state["model"], new_games=new_games)

    def learn(self, due: Callable[[int], bool], save: Callable[[], None]) -> None:
        """Learn, from the beginning or from where the loaded state stands, to the end.

        Args:
            due: asked between two rounds, with the steps so far, whether to save.
            save: called there, when :meth:`state` can be asked for. It may raise to stop the course.
        """
        with self.begin() as bar:
            watch = _Watch(self, bar, due, save)
            self.model.learn(self.last_step - self.steps, watch, reset_num_timesteps=not self.loaded)
        self.env.close()

    def score(self) -> None:
        """A point of the student's curve. The last, at the end, is that of the table: whoever teaches scores it."""
        point = self.score_curve(self.model, self.steps)
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
        episodes = self.course.config.evaluation.curve_episodes
        plays = f"plays {episodes} game{'s' * (episodes != 1)} for its curve"
        self.course.between_rounds(self.bar, plays, self.due, self.save)
