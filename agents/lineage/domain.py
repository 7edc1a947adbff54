"""The world of Atari for a lineage: a game, a teacher who plays it, students that watch."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from polydistill.disk import atomic_write, disk_errors
from polydistill.errors import UserError
from polydistill.learning.rewind import NonFiniteError
from polydistill.lineage import Generation
from polydistill.lineage.keeper import Keeper
from polydistill.provenance import weights_sha256
from polydistill.runs import Progress, Run
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


def run_of(keeper: Keeper[Teacher]) -> Run:
    """The run of a keeper of agents, which learn in one process."""
    assert keeper.run is not None
    return keeper.run


class AtariDomain:
    """Generation 0 is the given teacher; students are trained by :class:`PolicyDistillation`.

    A :class:`~polydistill.lineage.keeper.KeptDomain`, in one process. Each student is kept as a zip: ``student.zip`` is
    the last generation, earlier ones are ``generation_<k>.zip``.

    Args:
        config: resolved, see :meth:`AtariConfig.resolve`.
        teacher: see :func:`open_teacher`.
    """

    charts = CHARTS

    def __init__(self, config: AtariConfig, teacher: Teacher) -> None:
        self.config, self.teacher = config, teacher
        self.device = torch.device(config.device)
        torch.set_num_threads(config.threads)
        self._learned_steps = 0  # of the student that was taught last
        self._play = choose_play(config, teacher)

    @property
    def objective(self) -> str:
        """Name of the students' objective."""
        return self.config.student.objective

    def network(self, member: Teacher) -> nn.Module | None:
        """The network behind the scores."""
        return member.network

    def train(self, teacher: Teacher | None, begun: Mapping[str, Any] | None, keeper: Keeper[Teacher]) -> Teacher:
        """The given teacher for None, or the student of ``teacher``, read back from its zip."""
        if teacher is None:
            return self.teacher
        course = self._open_course(teacher, begun, keeper)
        keeper.follow(course)
        self._learned_steps = course.steps
        path = run_of(keeper).out / self._file(keeper.generation)
        course.model.save(path)
        return read_student(path, size_of(course.model.student)).to(self.device)

    def _open_course(self, teacher: Teacher, begun: Mapping[str, Any] | None, keeper: Keeper[Teacher]) -> Course:
        """The one that was begun; a new one where there is none, or its recording is damaged."""
        generation, run = keeper.generation, run_of(keeper)

        def score_curve(model: PolicyDistillation, step: int) -> dict[str, float]:
            student = Teacher(model.student_scores, kind=model.score_kind)
            episodes = self.config.evaluation.curve_episodes
            return curve_point(self.play(student, model.student, episodes, f"curve {step}", keeper))

        course = Course(self.config, teacher, generation, run, score_curve)
        if begun is None:
            return course
        try:
            course.load(begun, lambda: keeper.heed("the games were played again"))
        except DamagedSegment as error:
            print(f"{error}: generation {generation} starts over", file=sys.stderr)
            run.rewind(begun["began"])
            return Course(self.config, teacher, generation, run, score_curve)
        return course

    def evaluate(self, member: Teacher, teacher: Teacher | None, keeper: Keeper[Teacher]) -> dict[str, Any]:
        """Score ``member`` under the configured protocol; the metrics of summary.json."""
        episodes, generation, run = self.config.evaluation.episodes, keeper.generation, run_of(keeper)
        who = f"generation {generation}" if generation else "the teacher"
        with run.progress(f"{who} plays", episodes, "games") as bar:
            result = self.play(member, member.network, episodes, "evaluation", keeper, teacher, bar)
        if generation == 0:
            self._draw_level_lines(result.mean, run)
            return self._metrics(result, None)
        run.log(role_of(generation), self._learned_steps, curve_point(result))  # the last point of the student's curve
        return self._metrics(result, np.array(keeper.generations[0].metrics["scores"]))

    def _draw_level_lines(self, teacher: float, run: Run) -> None:
        """The teacher's score, and random play's, at every step where a student may have a point.

        A chart that leaves out outliers then never takes the untrained student, or the others, for some.
        """
        row, settings = self.config.task.reference, self.config.evaluation
        end = self.config.play.steps
        for step in [*range(0, end, settings.curve_every_steps or end), end]:
            run.log("teacher", step, {SCORE: teacher})
            if row is not None:
                run.log("random_play", step, {SCORE: row.random})

    def _file(self, generation: int) -> str:
        return "student.zip" if generation == self.config.lineage.generations else f"generation_{generation}.zip"

    def state(self, generations: Sequence[Generation[Teacher]]) -> dict[str, Any]:
        """File and widths of each student."""
        files = []
        for student in generations[1:]:
            assert student.member.size is not None  # students are Nature-CNNs
            channels, hidden = student.member.size
            files.append({"file": self._file(student.generation), "size": [list(channels), hidden]})
        return {"files": files}

    def read_members(self, saved: Mapping[str, Any], keeper: Keeper[Teacher]) -> list[Teacher]:
        """The given teacher, and the students from their zips.

        Raises:
            UserError: the teacher is another one, or a student's file is damaged.
        """
        if not saved["generations"]:
            return []
        require_same_teacher(self.config, self.teacher, saved["generations"][0]["sha256"])
        out = run_of(keeper).out
        return [self.teacher, *(self._read(out, k, **record) for k, record in enumerate(saved["files"], 1))]

    def _read(self, out: Path, generation: int, file: str, size: Sequence[Any]) -> Teacher:
        member = read_student(out / file, Size(tuple(size[0]), size[1])).to(self.device)
        if file != self._file(generation):  # it was the last one, and the lineage has grown
            with disk_errors(out / file, "read"):
                atomic_write(out / self._file(generation), (out / file).read_bytes())
        return member

    def finish(self, keeper: Keeper[Teacher]) -> dict[str, Any]:
        """Nothing is added; the recordings go."""
        remove_recordings(run_of(keeper).out)
        return {}

    def play(
        self,
        member: Teacher,
        network: nn.Module | None,
        episodes: int,
        stream: str,
        keeper: Keeper[Teacher],
        teacher: Teacher | None = None,
        bar: Progress | None = None,
    ) -> Evaluation:
        """``episodes`` games of ``member`` in the random stream ``stream``; ``teacher`` is asked for the agreement.

        Raises:
            FloatingPointError: scores are not finite; the weights that gave them and the states are in a file.
        """
        generation = keeper.generation

        def on_step(games: int) -> None:
            keeper.heed("games were scored")
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
            who = f"generation {generation} ({self.objective})" if generation else "the teacher"
            named = NonFiniteError(f"{error}: {who}, {stream}", error.batch)
            raise keeper.keep_failure(named, None if network is None else network.state_dict()) from error

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
