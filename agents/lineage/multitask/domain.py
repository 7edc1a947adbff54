"""The world of several tasks for a lineage: a teacher of each, and students that learn from all of them.

What is scored and reported of a task is what :class:`~polydistill_agents.lineage.domain.AgentDomain` does for one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from polydistill.lineage import Generation
from polydistill.lineage.keeper import Keeper
from polydistill_agents.distillation.multitask.seat import Seat
from polydistill_agents.files.multitask_file import read_multitask, write_multitask
from polydistill_agents.lineage.course_base import remove_recordings
from polydistill_agents.lineage.curve import curve_point
from polydistill_agents.lineage.domain import CHARTS, AgentDomain, run_of
from polydistill_agents.lineage.multitask.config import SeveralTasks
from polydistill_agents.lineage.multitask.course import MultitaskCourse
from polydistill_agents.lineage.multitask.opening import hash_of, require_same_teachers
from polydistill_agents.lineage.multitask.view import TASKS, TaskKeeper
from polydistill_agents.lineage.resuming import open_course
from polydistill_agents.networks.multitask import fits_stock
from polydistill_agents.networks.nature import count_parameters
from polydistill_agents.teachers import Teacher, as_teacher


class Member(NamedTuple):
    """A generation: of the first its teachers, of a student its heads.

    Attributes:
        network: all weights; None where a teacher has none.
        of: who plays, by task.
    """

    network: nn.Module | None
    of: dict[str, Teacher]


def teachers_of(networks: Mapping[str, Teacher]) -> Member:
    """Generation 0."""
    found = {name: teacher.network for name, teacher in networks.items()}
    whole = None if any(network is None for network in found.values()) else nn.ModuleDict(cast(Any, found))
    return Member(whole, dict(networks))


class MultitaskDomain:
    """A :class:`~polydistill.lineage.keeper.KeptDomain` of several tasks, in one process.

    Each student is kept as ``generation_<k>.safetensors``, and each of its heads, with the torso, as an ordinary zip
    ``generation_<k>_<task>.zip``, where stock Stable-Baselines3 has room for the torso.

    Args:
        config: resolved.
        teachers: of each task, see :func:`~polydistill_agents.lineage.multitask.opening.open_teachers`.
    """

    def __init__(self, config: SeveralTasks, teachers: Mapping[str, Teacher]) -> None:
        self.teachers = dict(teachers)
        self.worlds = {name: AgentDomain(config.of(name), teacher) for name, teacher in teachers.items()}
        self.device = torch.device(config.device)
        self._take_temperatures(config)

    def _take_temperatures(self, config: SeveralTasks) -> None:
        """Those that the worlds of the single tasks have found or were given."""
        found = {name: world.config.student.temperature for name, world in self.worlds.items()}
        self.config = config.tempered(found)

    @property
    def charts(self) -> Mapping[str, Sequence[str]]:
        """What TensorBoard shows first, task by task."""
        return {f"{n}: {title}": [f"{n}/{tag}" for tag in tags] for n in self.worlds for title, tags in CHARTS.items()}

    @property
    def objective(self) -> str:
        """Name of the students' objective."""
        return str(self.config.student.objective)

    def network(self, member: Member) -> nn.Module | None:
        """All weights."""
        return member.network

    @property
    def _first(self) -> Member:
        """Generation 0: the teachers, or where their files are not there what data sets tell of them."""
        return teachers_of({name: world.teacher for name, world in self.worlds.items()})

    def train(self, teacher: Member | None, begun: Mapping[str, Any] | None, keeper: Keeper[Member]) -> Member:
        """The given teachers for None, or the student of ``teacher``, read back from its file."""
        if teacher is None:
            return self._first
        if begun is None:  # else they were scored before it began
            self._score_ensembles(keeper)
        run, generation = run_of(cast(Any, keeper)), keeper.generation
        before = {name: _of_task(keeper, name) for name in self.worlds}
        labels = {name: world.who_labels(before[name]) for name, world in self.worlds.items()}

        def score_curve(task: str, seat: Seat, step: int) -> dict[str, float]:
            world, student = self.worlds[task], Teacher(seat.student_scores, kind=seat.score_kind)
            episodes, view = world.config.evaluation.curve_episodes, cast(Any, TaskKeeper(keeper, task))
            return curve_point(world.play(student, seat.student, episodes, f"curve {step}", view))

        def make() -> MultitaskCourse:
            return MultitaskCourse(self.config, labels, generation, run, score_curve)

        course = open_course(make, begun, keeper, run)
        keeper.follow(course)
        for name, world in self.worlds.items():
            world.save_play(course.played(name), labels[name], before[name])
            world.note_course(course.steps, course.curves[name])
        if fits_stock(self.config.torso()):
            for name, seat in course.model.seats.items():
                seat.save(run.out / f"generation_{generation}_{name}.zip")
        path = run.out / _file(generation)
        write_multitask(path, course.model.network, {name: s.score_kind for name, s in course.model.seats.items()})
        return self._read(generation, keeper)

    def _read(self, generation: int, keeper: Keeper[Member]) -> Member:
        path = run_of(cast(Any, keeper)).out / _file(generation)
        space = self.worlds[self.config.names[0]].config.task.observation_space
        network, kinds = read_multitask(path, space)
        heads = {}
        for name, kind in kinds.items():
            alone = network.alone(name).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            heads[name] = as_teacher(alone, kind=kind).to(self.device)
        return Member(network.to(self.device), heads)

    def evaluate(self, member: Member, teacher: Member | None, keeper: Keeper[Member]) -> dict[str, Any]:
        """Score ``member`` in each task; the metrics of summary.json: of each task, and their geometric means."""
        of_tasks = {}
        for name, world in self.worlds.items():
            view = cast(Any, TaskKeeper(keeper, name))
            of_tasks[name] = world.evaluate(member.of[name], None if teacher is None else teacher.of[name], view)
        if teacher is None:
            return {TASKS: {n: {**m, "sha256": hash_of(member.of[n])} for n, m in of_tasks.items()}}
        return compare(of_tasks, keeper.generations[0].metrics[TASKS])

    def _score_ensembles(self, keeper: Keeper[Member]) -> None:
        """Score those whose members are there in each task; each is saved, and not scored again."""
        for name, world in self.worlds.items():
            world.score_ensembles(cast(Any, TaskKeeper(keeper, name)))

    def state(self, generations: Sequence[Generation[Member]]) -> dict[str, Any]:
        """The temperature of each task's first lesson, and its ensembles so far."""
        temperatures = {name: world.config.student.temperature for name, world in self.worlds.items()}
        ensembles = {name: world.ensembles for name, world in self.worlds.items()}
        return {"temperatures": temperatures, **({"ensembles": ensembles} if any(ensembles.values()) else {})}

    def read_members(self, saved: Mapping[str, Any], keeper: Keeper[Member]) -> list[Member]:
        """The given teachers, and the students from their files.

        Raises:
            UserError: a teacher is another one, or a student's file is damaged.
        """
        for name, temperature in saved["temperatures"].items():
            self.worlds[name].temper(temperature)
        self._take_temperatures(self.config)
        for name, ensembles in saved.get("ensembles", {}).items():
            self.worlds[name].ensembles = list(ensembles)
        if not saved["generations"]:
            return []
        require_same_teachers(self.config, self.teachers, saved["generations"][0])
        return [self._first, *(self._read(k, keeper) for k in range(1, len(saved["generations"])))]

    def finish(self, keeper: Keeper[Member]) -> dict[str, Any]:
        """The ensembles of students; the recordings go."""
        self._score_ensembles(keeper)
        remove_recordings(run_of(cast(Any, keeper)).out)
        return {"ensembles": self._ensembles(keeper)}

    def _ensembles(self, keeper: Keeper[Member]) -> list[dict[str, Any]]:
        """Those of all tasks, as summary.json has them."""
        first, found = keeper.generations[0].metrics[TASKS], []
        for of_one in zip(*(world.ensembles for world in self.worlds.values()), strict=True):
            of_tasks = {name: dict(ensemble["metrics"]) for name, ensemble in zip(self.worlds, of_one, strict=True)}
            found.append({**of_one[0], "metrics": compare(of_tasks, first)})
        return found


def _of_task(keeper: Keeper[Member], task: str) -> Generation[Teacher]:
    """The last finished generation, as one of ``task`` alone."""
    last = TaskKeeper(keeper, task).generations[-1]
    network = last.member.network
    parameters = None if network is None else count_parameters(network)
    return last._replace(sha256=hash_of(last.member), parameters=parameters)


def _file(generation: int) -> str:
    return f"generation_{generation}.safetensors"


def percent(score: float, teacher: float) -> float | None:
    """A score as the paper gives it, in percent of the teacher's; None where that is not positive."""
    return 100.0 * score / teacher if teacher > 0 else None


def geometric_mean(values: Sequence[float | None]) -> float | None:
    """None where one is not positive, or not known.

    Example:
        >>> geometric_mean([1.0, 4.0]), geometric_mean([1.0, 0.0]), geometric_mean([1.0, None])
        (2.0, None, None)
    """
    known = [value for value in values if value is not None and value > 0]
    if not values or len(known) < len(values):
        return None
    return math.exp(math.fsum(map(math.log, known)) / len(known))


def compare(of_tasks: dict[str, dict[str, Any]], teachers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The metrics of a student of all tasks: those of each, in percent of the teacher's score too, and their means.

    Args:
        of_tasks: metrics of the student by task, which get ``percent_of_teacher``.
        teachers: metrics of the first teachers by task.
    """
    for name, metrics in of_tasks.items():
        metrics["percent_of_teacher"] = percent(metrics["score_mean"], teachers[name]["score_mean"])
    return {TASKS: of_tasks, **means(of_tasks)}


def means(of_tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """Geometric means over the tasks: of the scores between random play and the teacher, and of the percentages."""
    return {
        f"{name}_geometric_mean": geometric_mean([metrics[name] for metrics in of_tasks.values()])
        for name in ("teacher_normalized", "percent_of_teacher")
    }
