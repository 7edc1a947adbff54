"""The world of Atari for a lineage: a game, a teacher who plays it, students that watch."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from polydistill.disk import atomic_write, disk_errors
from polydistill.errors import Interrupted, UserError
from polydistill.learning.rewind import NonFiniteError
from polydistill.lineage import Generation
from polydistill.provenance import weights_sha256
from polydistill.runs import Progress, Run
from polydistill.runs.checkpoint import Pace
from polydistill.runs.interruption import StopSignals
from polydistill.statistics import bootstrap_normalized_interval
from polydistill.streams import derive_seed
from polydistill_agents.distillation.algorithm import PolicyDistillation
from polydistill_agents.environments.evaluation import Evaluation, evaluate
from polydistill_agents.environments.protocols import sampling_temperature
from polydistill_agents.environments.segments import DamagedSegment
from polydistill_agents.lineage.config import AtariConfig
from polydistill_agents.lineage.course import Course, rehearse, remove_recordings, role_of
from polydistill_agents.lineage.student_file import is_student, read_student
from polydistill_agents.networks.nature import Size, size_of
from polydistill_agents.teachers import Teacher, as_teacher
from polydistill_agents.teachers.zoo import find_teacher

SCORE, AGREEMENT = "eval/mean_reward", "eval/agreement"
CHARTS = {  # of TensorBoard, in their order
    "score of teacher, random play and students": [SCORE],
    "agreement with the teacher: in its play, and at the end in the student's": ["distill/replay_agreement", AGREEMENT],
    "loss": ["distill/loss"],
}


def curve_point(played: Evaluation) -> dict[str, float]:
    """The tags of a student's curve: mean score, and, where the teacher was asked, agreement in these games."""
    point = {SCORE: played.mean}
    return point if played.agreement is None else point | {AGREEMENT: played.agreement}


def open_teacher(config: AtariConfig) -> Teacher:
    """The configured teacher, or the project's own, on the configured device.

    Raises:
        UserError: there is none, the file is damaged, it does not fit the game, or no student could learn from it.
    """
    teacher = as_teacher(config.teacher.path or find_teacher(config.game)).to(config.device)
    teacher.count_actions(config.task)
    rehearse(config, teacher)
    return teacher


def choose_play(config: AtariConfig, teacher: Teacher) -> str:
    """How all agents of a lineage act while they are scored, "greedy" or "sample": as the protocol has it for the first
    teacher, so that its students, which are DQNs in their files, compare with it.
    """
    settings, path = config.evaluation, config.teacher.path
    play = "greedy" if settings.play == "protocol" and path and is_student(path) else settings.play
    temperature = config.student.temperature
    sampled = sampling_temperature(play, config.task.protocol(settings.protocol), teacher.kind, temperature)
    return "greedy" if sampled is None else "sample"


def require_same_teacher(config: AtariConfig, teacher: Teacher, sha256: str | None) -> None:
    """Compare the teacher's weights with the sha256 of generation 0: where it lies does not matter.

    Raises:
        UserError: they are not those that the run began with.
    """
    if teacher.network is not None and weights_sha256(teacher.network.state_dict()) != sha256:
        where = f"teacher.path {config.teacher.path} holds" if config.teacher.path else "the project's teacher has"
        raise UserError(f"{where} other weights than those that this run began with; give --out another folder")


class AtariDomain:
    """Generation 0 is the given teacher; students are trained by :class:`PolicyDistillation`.

    Args:
        config: resolved, see :meth:`AtariConfig.resolve`.
        teacher: see :func:`open_teacher`.
        run: where metrics, checkpoints and the students' zips go: ``student.zip`` is the last generation, earlier ones
            are ``generation_<k>.zip``.
        stop: whether to stop; asked between two rounds, and while games are scored.

    Attributes:
        seconds: wall clock of each generation so far, training and evaluation.
        throughput: rates by name, for summary.json.
    """

    def __init__(self, config: AtariConfig, teacher: Teacher, run: Run, stop: StopSignals | None = None) -> None:
        self.config, self.teacher, self.run = config, teacher, run
        self.stop = StopSignals() if stop is None else stop
        self.device = torch.device(config.device)
        torch.set_num_threads(config.threads)
        self.seconds: list[float] = []
        self.throughput: dict[str, float] = {}
        self._done: list[dict[str, Any]] = []
        self._lesson: dict[str, Any] | None = None  # of the checkpoint, until it is gone on with
        self._learned_steps = 0  # of the student that was taught last
        self._pace = Pace(config.checkpoint)
        self._play = choose_play(config, teacher)
        run.show_first(CHARTS)

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

    def resume(self) -> list[Generation[Teacher]]:
        """The generations that an earlier process has finished, for :class:`Lineage`; none: begin.

        Raises:
            UserError: no checkpoint is good, or a student's file is damaged.
        """
        state = self.run.resume()
        if state is None:
            remove_recordings(self.run.out)
            return []
        self._done, self._lesson = state["done"], state["lesson"]
        self.seconds, self.throughput = state["seconds"], state["throughput"]
        if self._done:
            require_same_teacher(self.config, self.teacher, self._done[0]["summary"]["sha256"])
        return [Generation(member=self._reopen(record), **record["summary"]) for record in self._done]

    def _reopen(self, record: dict[str, Any]) -> Teacher:
        generation = record["summary"]["generation"]
        if generation == 0:
            return self.teacher
        path = self.run.out / record["file"]
        member = read_student(path, Size(tuple(record["size"][0]), record["size"][1])).to(self.device)
        if record["file"] != self._file(generation):  # it was the last one, and the lineage has grown
            record["file"] = self._file(generation)
            with disk_errors(path, "read"):
                atomic_write(self.run.out / record["file"], path.read_bytes())
        return member

    def _file(self, generation: int) -> str:
        return "student.zip" if generation == self.config.lineage.generations else f"generation_{generation}.zip"

    def keep(self, generation: Generation[Teacher]) -> None:
        """Remember a finished generation in a checkpoint: it is not trained or scored again."""
        member, k = generation.member, generation.generation
        self._done.append(
            {
                "summary": generation.summary(),
                "file": None if k == 0 else self._file(k),
                "size": None if k == 0 or member.size is None else [list(member.size.channels), member.size.hidden],
            }
        )
        self._save(None)

    def _save(self, lesson: Course | None) -> None:
        started = time.perf_counter()
        steps = 0 if lesson is None else lesson.model.num_timesteps
        state = {
            "done": self._done,
            "lesson": None if lesson is None else lesson.state(),
            "seconds": self.seconds,
            "throughput": self.throughput,
        }
        self.run.save(state, steps)
        self._pace.saved(steps, time.perf_counter() - started)

    def _save_if_due(self, lesson: Course) -> None:
        self.stop.raise_if_received("")
        if self._pace.due(lesson.model.num_timesteps):
            self._save(lesson)

    def teach(self, teacher: Teacher, generation: int) -> Teacher:
        """Train the student of ``generation``, or go on with it, and write its zip."""
        lesson = self._open_lesson(teacher, generation)
        try:
            model = lesson.learn(lambda: self._save_if_due(lesson))
        except Interrupted as end:  # between two rounds, or while the student was scored there
            self._save(lesson)
            where = f"step {lesson.model.num_timesteps:,} of generation {generation}"
            line = f"stopped at {where}, and saved: the same command goes on from there"
            raise Interrupted(end.signal, line) from None
        except NonFiniteError as error:
            path = self.run.keep_failure(generation, error, lesson.model.state(), error.batch)
            raise FloatingPointError(f"{error}; the student before it and the batch are in {path}") from error
        self._save(lesson)  # scoring it takes minutes, which may end otherwise
        self._learned_steps = model.num_timesteps
        self.seconds.append(lesson.seconds)
        learning_seconds = self.seconds[-1] - lesson.curve_seconds
        samples = model._n_updates * self.config.student.batch_size
        self.throughput[f"{lesson.role}_train_samples_per_second"] = round(samples / learning_seconds, 1)
        self.throughput[f"{lesson.role}_steps_per_second"] = round(model.num_timesteps / learning_seconds, 1)
        path = self.run.out / self._file(generation)
        model.save(path)
        return read_student(path, size_of(model.student)).to(self.device)

    def _open_lesson(self, teacher: Teacher, generation: int) -> Course:
        """That of the checkpoint where it was; a new one where there is none, or its recording is damaged."""

        def score_curve(model: PolicyDistillation, step: int) -> dict[str, float]:
            student = Teacher(model.student_scores, kind=model.score_kind)
            episodes = self.config.evaluation.curve_episodes
            return curve_point(self.play(student, model.student, episodes, f"curve {step}", generation))

        state, self._lesson = self._lesson, None
        lesson = Course(self.config, teacher, generation, self.run, score_curve)
        if state is None or state["generation"] != generation:
            return lesson
        try:
            lesson.load(state, self._heed_while_played_again)
        except DamagedSegment as error:
            print(f"{error}: generation {generation} starts over", file=sys.stderr)
            self.run.rewind(state["began"])
            return Course(self.config, teacher, generation, self.run, score_curve)
        return lesson

    def _heed_while_played_again(self) -> None:
        self.stop.raise_if_received("stopped while the games were played again: the same command begins there anew")

    def evaluate(self, member: Teacher, teacher: Teacher | None, generation: int) -> dict[str, Any]:
        """Score ``member`` under the configured protocol; the metrics of summary.json."""
        settings = self.config.evaluation
        who = "the teacher" if generation == 0 else f"generation {generation}"
        with self.run.progress(f"{who} plays", settings.episodes, "games") as bar:
            result = self.play(member, member.network, settings.episodes, "evaluation", generation, teacher, bar)
        self.seconds[-1] += result.seconds
        if generation == 0:
            self._draw_level_lines(result.mean)
        else:  # the last point of the student's curve
            self.run.log(role_of(generation), self._learned_steps, curve_point(result))
        first = None if generation == 0 else np.array(self._done[0]["summary"]["metrics"]["scores"])
        return self._metrics(result, first)

    def scores_of(self, generation: int) -> list[float]:
        """Of the games that a finished generation played; none where it is not finished."""
        if not 0 <= generation < len(self._done):
            return []
        scores: list[float] = self._done[generation]["summary"]["metrics"]["scores"]
        return scores

    def _draw_level_lines(self, teacher: float) -> None:
        """The teacher's score, and random play's, at every step where a student may have a point.

        A chart that leaves out outliers then never takes the untrained student, or the others, for some.
        """
        row, settings = self.config.task.reference, self.config.evaluation
        end = self.config.play.steps
        for step in [*range(0, end, settings.curve_every_steps or end), end]:
            self.run.log("teacher", step, {SCORE: teacher})
            if row is not None:
                self.run.log("random_play", step, {SCORE: row.random})

    def finish(self) -> None:
        """Write summary.json; what only an unfinished run needs is removed."""
        remove_recordings(self.run.out)
        self.run.finish(
            {
                "generations": [record["summary"] for record in self._done],
                "ensembles": [],
                "throughput": self.throughput,
                "seconds": [round(seconds, 1) for seconds in self.seconds],
            }
        )

    def play(
        self,
        member: Teacher,
        network: nn.Module | None,
        episodes: int,
        stream: str,
        generation: int,
        teacher: Teacher | None = None,
        bar: Progress | None = None,
    ) -> Evaluation:
        """``episodes`` games of ``member`` in the random stream ``stream``; ``teacher`` is asked for the agreement.

        Raises:
            FloatingPointError: scores are not finite; the weights that gave them and the states are in a file.
        """

        def on_step(games: int) -> None:
            self.stop.raise_if_received("stopped while games were scored: the same command goes on before them")
            if bar is not None:
                bar.advance(games - bar.done)

        try:
            return evaluate(
                member,
                self.config.task,
                protocol=self.config.evaluation.protocol,
                episodes=episodes,
                seed=derive_seed(self.config.seed, stream, generation),
                n_threads=self.config.threads,
                device=self.device,
                reference=teacher,
                on_step=on_step,
                play=self._play,
                temperature=self.config.student.temperature,
            )
        except NonFiniteError as error:
            if error.batch["of_reference"] and teacher is not None:
                network = teacher.network
            state = None if network is None else network.state_dict()
            path = self.run.keep_failure(generation, error, state, error.batch)
            who = f"generation {generation} ({self.objective})" if generation else "the teacher"
            text = f"{error}: {who}, {stream}; its weights and what it saw are in {path}"
            raise FloatingPointError(text) from error

    def _metrics(self, result: Evaluation, first: NDArray[np.float64] | None) -> dict[str, Any]:
        task = self.config.task
        of_teacher = None if first is None else task.teacher_normalized(result.mean, float(first.mean()))
        metrics: dict[str, Any] = {
            "score_mean": result.mean,
            "score_iqm": result.iqm,
            "score_ci95": result.interval(self.config.seed),
            "episodes": len(result.scores),
            "truncated": result.truncated,
            "n_actions": result.n_actions,
            "game_actions": result.game_actions,
            "protocol": self.config.evaluation.protocol,
            "human_normalized": task.human_normalized(result.mean),
            "teacher_normalized": of_teacher,
            "teacher_normalized_ci95": None,
            "agreement": result.agreement,
            "scores": result.scores.tolist(),
        }
        if first is not None and task.reference is not None and of_teacher is not None:
            metrics["teacher_normalized_ci95"] = bootstrap_normalized_interval(
                result.scores, first, task.reference.random, generator=np.random.default_rng(self.config.seed)
            )
        return metrics
