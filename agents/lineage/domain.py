"""The world of agents for a lineage: an environment, a teacher who plays in it, students that watch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from polydistill.learning.rewind import NonFiniteError
from polydistill.lineage import Generation
from polydistill.lineage.ensembles import growing_ensembles, name_members
from polydistill.lineage.keeper import Keeper
from polydistill.runs import Progress, Run
from polydistill.streams import derive_seed
from polydistill_agents.distillation.algorithm import PolicyDistillation
from polydistill_agents.distillation.q_learning import QLearning
from polydistill_agents.environments.evaluation import Evaluation, evaluate
from polydistill_agents.files.compact import ENDING
from polydistill_agents.lineage.agent_config import AgentConfig
from polydistill_agents.lineage.baseline import Baseline, expected_score
from polydistill_agents.lineage.course import Course
from polydistill_agents.lineage.course_base import remove_recordings
from polydistill_agents.lineage.curve import AGREEMENT, SCORE, Point, curve_point, steps_to_level
from polydistill_agents.lineage.datasets import Played, save_play
from polydistill_agents.lineage.learning_on import score_after
from polydistill_agents.lineage.metrics import measured
from polydistill_agents.lineage.opening import (
    DATASET,
    choose_play,
    measure_temperature,
    require_same_teacher,
    tempered,
)
from polydistill_agents.lineage.resuming import open_course
from polydistill_agents.lineage.shared_games import SharedGames
from polydistill_agents.lineage.student_file import copy_files, read_student, write_files
from polydistill_agents.lineage.students import AnyConfig, role_of, role_of_ensemble
from polydistill_agents.networks.architecture import architecture_of
from polydistill_agents.networks.nature import Size, fits_stock
from polydistill_agents.teachers import Teacher
from polydistill_agents.teachers.recorded import RecordedTeacher
from polydistill_agents.teachers.several import mean_policy

CHARTS = {  # of TensorBoard, in their order
    "score of teacher, random play and students": [SCORE],
    "agreement with the teacher: in its play, and at the end in the student's": ["distill/replay_agreement", AGREEMENT],
    "regret of the student's actions by its teacher's scores": ["distill/replay_regret"],
    "loss": ["distill/loss"],
}


def run_of(keeper: Keeper[Teacher]) -> Run:
    """The run of a keeper of agents, which learn in one process."""
    assert keeper.run is not None
    return keeper.run


class AgentDomain:
    """Generation 0 is the given teacher; students are trained by :class:`PolicyDistillation`, or, as a control, by
    :class:`QLearning`.

    A :class:`~polydistill.lineage.keeper.KeptDomain`, in one process. Each student is kept in files of its own
    (:mod:`~polydistill_agents.lineage.student_file`): ``student`` is the last generation, earlier ones are
    ``generation_<k>``.

    Args:
        config: resolved.
        teacher: see :func:`~polydistill_agents.lineage.opening.open_teacher`.

    Attributes:
        ensembles: of students, scored so far, as summary.json has them.
    """

    charts = CHARTS

    def __init__(self, config: AnyConfig, teacher: Teacher) -> None:
        self.config, self.teacher = config, teacher
        self._recorded = teacher if isinstance(teacher, RecordedTeacher) else None
        if self._recorded is not None and self._recorded.original is not None:
            self.teacher = self._recorded.original
        self.device = torch.device(config.device)
        torch.set_num_threads(config.threads)
        self._learned_steps = 0  # of the student that was taught last
        self._curve: list[Point] | None = None  # its points so far
        self.ensembles: list[dict[str, Any]] = []
        self._play = choose_play(config, teacher)
        self._choose_temperature()

    def _choose_temperature(self) -> None:
        """Where the config names none, the one that the teacher's play asks for."""
        config = self.config
        if config.student.temperature is None and config.student.has_teacher:
            if self.teacher.kind == "logits":
                self.config = tempered(config, 1.0)
            elif self._recorded is not None:
                temperature = self._recorded.data.header.temperature
                print(f"temperature {temperature:.2g}: that of {self._recorded.path}", flush=True)
                self.config = tempered(config, temperature)
            else:
                chosen = measure_temperature(config, self.teacher)
                print(chosen, flush=True)
                self.config = tempered(config, chosen.temperature)

    def temper(self, temperature: float | None) -> None:
        """Take the temperature that was found before; None: none was."""
        if temperature is not None:
            self.config = tempered(self.config, temperature)

    @property
    def objective(self) -> str:
        """Name of the students' objective."""
        return self.config.student.objective

    def network(self, member: Teacher) -> nn.Module | None:
        """The network behind the scores."""
        return member.network

    def train(self, teacher: Teacher | None, begun: Mapping[str, Any] | None, keeper: Keeper[Teacher]) -> Teacher:
        """The given teacher for None, or the student of ``teacher``, read back from its file."""
        if teacher is None:
            return self.teacher
        if begun is None:  # else they were scored before it began
            self.score_ensembles(keeper)
        first = keeper.generations[-1]
        course = self._open_course(self.who_labels(first), begun, keeper)
        keeper.follow(course)
        self.save_play(Played(course.recording, course.env), teacher, first)
        self.note_course(course.steps, course.curve)
        path = write_files(course.model, run_of(keeper).out / self._stem(keeper.generation))
        return read_student(path, course.model.widths).to(self.device)

    def who_labels(self, generation: Generation[Teacher]) -> Teacher:
        """Who says what the student of ``generation`` learns: it does itself, or a data set in its place."""
        return generation.member if self._recorded is None or generation.generation else self._recorded

    def save_play(self, played: Played, teacher: Teacher, first: Generation[Teacher]) -> None:
        """Write the play of a finished course, where it was generation 1's and is to be saved."""
        if first.generation == 0 and self.config.save_dataset is not None:
            print(f"data set: {save_play(self.config, played, teacher, first, self._play)}", flush=True)

    def note_course(self, steps: int, curve: list[Point] | None) -> None:
        """Note what the student that was taught last has learned from, and its curve, for its evaluation."""
        self._learned_steps, self._curve = steps, curve

    def _open_course(self, teacher: Teacher, begun: Mapping[str, Any] | None, keeper: Keeper[Teacher]) -> Course:
        generation, run = keeper.generation, run_of(keeper)

        def score_curve(model: PolicyDistillation | QLearning, step: int) -> dict[str, float]:
            student = Teacher(model.student_scores, kind=model.score_kind)
            episodes = self.config.evaluation.curve_episodes
            return curve_point(self.play(student, model.student, episodes, f"curve {step}", keeper))

        def make() -> Course:
            return Course(self.config, teacher, generation, run, score_curve)

        return open_course(make, begun, keeper, run)

    def evaluate(self, member: Teacher, teacher: Teacher | None, keeper: Keeper[Teacher]) -> dict[str, Any]:
        """Score ``member`` under the configured protocol; the metrics of summary.json."""
        generation, run = keeper.generation, run_of(keeper)
        who = f"generation {generation}" if generation else "the teacher"
        result, masked = self._score(member, who, teacher, keeper)
        if generation == 0:
            baseline = Baseline.of_task(self.config, result.scores, self._shared_games)
            baseline.check_expected(expected_score(self.config, member), result)
            self._draw_levels({"teacher": result.mean, "random_play": baseline.random}, run)
            further: dict[str, Any] = {"has_memory": True} if self.teacher.has_memory else {}
            if self._recorded is not None:
                further[DATASET] = self._recorded.content_sha256
            return measured(self.config, result, masked, baseline) | baseline.metrics() | further
        run.log(role_of(generation), self._learned_steps, curve_point(result))  # the last point of the student's curve
        baseline = Baseline.of_metrics(self.config, keeper.generations[0].metrics)
        metrics = measured(self.config, result, masked, baseline) | self._how_soon(result.mean, baseline)
        return metrics | self._learn_on(member, keeper)

    def _learn_on(self, student: Teacher, keeper: Keeper[Teacher]) -> dict[str, Any]:
        """What becomes of the last student, where it is to learn on; else nothing."""
        config, last = self.config, keeper.generation == self.config.lineage.generations
        if not isinstance(config, AgentConfig) or config.learn_on.steps is None or not last:
            return {}
        run = run_of(keeper)

        def play(agent: Teacher, episodes: int, stream: str) -> Evaluation:
            return self.play(agent, agent.network, episodes, stream, keeper)

        path = run.out / f"{self._stem(keeper.generation)}.zip"
        return score_after(config, path, student, run, play, keeper.heed)

    def _score(
        self, member: Teacher, who: str, teacher: Teacher | None, keeper: Keeper[Teacher], members: Sequence[int] = ()
    ) -> tuple[Evaluation, Evaluation | None]:
        """The games of the table, and those without invalid actions where the environment tells them."""
        if isinstance(member, RecordedTeacher):
            return member.teacher_games()
        episodes = self.config.evaluation.episodes
        with run_of(keeper).progress(f"{who} plays", episodes, "games") as bar:
            result = self.play(member, member.network, episodes, "evaluation", keeper, teacher, bar, members=members)
            bar.advance(episodes - bar.done)  # where another run has played them
        masked = None if result.invalid_share is None else self.play(
            member, member.network, episodes, "evaluation, masked", keeper, masked=True, members=members
        )  # fmt: skip
        return result, masked

    @property
    def _shared_games(self) -> SharedGames:
        return SharedGames(self.config, self.teacher, self._play)

    def _how_soon(self, last: float, baseline: Baseline) -> dict[str, float]:
        """When the student that was taught last had reached 0.95 of the teacher, by its curve and its ``last`` score.

        Empty where there is no curve, or nothing between random play and the teacher.
        """
        random, teacher = baseline.random, float(baseline.teacher.mean())
        if not self.config.evaluation.curve_every_steps or self._curve is None or random is None or not baseline.apart:
            return {}
        points = [*self._curve, Point(self._learned_steps, last)]
        return steps_to_level(points, teacher, random)

    def _draw_levels(self, scores: Mapping[str, float | None], run: Run) -> None:
        """The score of each role, where it is known, at every step where a student may have a point.

        A chart that leaves out outliers then never takes the untrained student, or the others, for some.
        """
        settings, end = self.config.evaluation, self.config.play.steps
        for step in [*range(0, end, settings.curve_every_steps or end), end]:
            for role, score in scores.items():
                if score is not None:
                    run.log(role, step, {SCORE: score})

    def score_ensembles(self, keeper: Keeper[Teacher]) -> None:
        """Score the ensembles whose members are there, one after another; each is saved, and not scored again."""
        students = len(keeper.generations) - 1
        for members in growing_ensembles(students)[len(self.ensembles) :]:
            self.ensembles.append(self._score_ensemble(members, keeper))
            keeper.save()

    def _score_ensemble(self, members: tuple[int, ...], keeper: Keeper[Teacher]) -> dict[str, Any]:
        """The mean of the policies of ``members``, in the games of the last of them; agreement is with the teacher."""
        ensemble = mean_policy([keeper.generations[k].member for k in members], self.config.student.temperature or 1.0)
        who = f"the ensemble of {name_members(members)}"
        result, masked = self._score(ensemble, who, self.teacher, keeper, members)
        self._draw_levels({role_of_ensemble(members): result.mean}, run_of(keeper))
        baseline = Baseline.of_metrics(self.config, keeper.generations[0].metrics)
        metrics = measured(self.config, result, masked, baseline)
        return {"members": list(members), "reference": 0, "metrics": metrics}

    def _stem(self, generation: int) -> str:
        return "student" if generation == self.config.lineage.generations else f"generation_{generation}"

    def state(self, generations: Sequence[Generation[Teacher]]) -> dict[str, Any]:
        """File of each student, the widths of a Nature-CNN, the temperature of the first lesson, ensembles so far."""
        files = []
        for student in generations[1:]:
            own = architecture_of(student.member.network)
            size = None if own is None else own.size
            widths = None if size is None else [list(size.channels), size.hidden]
            ending = ".zip" if size is None or fits_stock(size) else ENDING
            files.append({"file": self._stem(student.generation) + ending, "size": widths})
        ensembles = {"ensembles": self.ensembles} if self.ensembles else {}
        return {"files": files, "temperature": self.config.student.temperature, **ensembles}

    def read_members(self, saved: Mapping[str, Any], keeper: Keeper[Teacher]) -> list[Teacher]:
        """The given teacher, and the students from their files.

        Raises:
            UserError: the teacher is another one, or a student's file is damaged.
        """
        self.temper(saved.get("temperature"))
        self.ensembles = list(saved.get("ensembles", []))
        if not saved["generations"]:
            return []
        require_same_teacher(self.config, self._recorded or self.teacher, saved["generations"][0])
        out = run_of(keeper).out
        return [self.teacher, *(self._read(out, k, **record) for k, record in enumerate(saved["files"], 1))]

    def _read(self, out: Path, generation: int, file: str, size: Sequence[Any] | None) -> Teacher:
        widths = None if size is None else Size(tuple(size[0]), size[1])
        member = read_student(out / file, widths).to(self.device)
        if Path(file).stem != self._stem(generation):  # it was the last one, and the lineage has grown
            copy_files(out / file, out / self._stem(generation))
        return member

    def finish(self, keeper: Keeper[Teacher]) -> dict[str, Any]:
        """The ensembles of students; the recordings go."""
        self.score_ensembles(keeper)
        remove_recordings(run_of(keeper).out)
        return {"ensembles": self.ensembles}

    def play(
        self,
        member: Teacher,
        network: nn.Module | None,
        episodes: int,
        stream: str,
        keeper: Keeper[Teacher],
        teacher: Teacher | None = None,
        bar: Progress | None = None,
        masked: bool = False,
        members: Sequence[int] = (),
    ) -> Evaluation:
        """``episodes`` games of ``member`` in the random stream ``stream``; ``teacher`` is asked for the agreement.

        Those of generation 0 may be another run's, see :class:`SharedGames`.

        Args:
            member: who plays.
            network: behind it, for what a failure leaves.
            episodes: games.
            stream: name of the random stream.
            keeper: of the run.
            teacher: who is asked, too.
            bar: counts the games.
            masked: without the actions that the environment calls invalid.
            members: generations of which ``member`` is the ensemble, which plays the games of the last of them; none:
                it is the generation in progress.

        Raises:
            FloatingPointError: scores are not finite; the weights that gave them and the states are in a file.
        """
        generation = members[-1] if members else keeper.generation
        asked = None if teacher is None or teacher.recorded else teacher  # one that is not there has no answer

        def on_step(games: int) -> None:
            keeper.heed("games were scored")
            if bar is not None:
                bar.advance(games - bar.done)

        def played() -> Evaluation:
            return evaluate(
                member,
                self.config.task if generation else self.config.task.for_teacher(),
                protocol=self.config.evaluation.protocol,
                episodes=episodes,
                seed=derive_seed(self.config.seed, stream, generation),
                n_threads=self.config.threads,
                device=self.device,
                reference=asked,
                on_step=on_step,
                play=self._play if generation == 0 or self.config.student.has_teacher else "greedy",
                temperature=self.config.student.temperature or 1.0,
                masked=masked,
            )

        try:
            return played() if generation else self._shared_games.of_teacher(stream, played)
        except NonFiniteError as error:
            if error.batch["of_reference"] and teacher is not None:
                network = teacher.network
            who = f"generation {generation} ({self.objective})" if generation else "the teacher"
            who = f"the ensemble of {name_members(members)}" if members else who
            named = NonFiniteError(f"{error}: {who}, {stream}", error.batch)
            raise keeper.keep_failure(named, None if network is None else network.state_dict()) from error
