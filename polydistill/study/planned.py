"""The runs of a plan, and the order in which they start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from polydistill.study.plan import Plan
from polydistill.study.records import TEACHER

Key = tuple[str, int]  # arm and seed


class PlannedRun(NamedTuple):
    """A run of the plan.

    Args:
        arm: its name, or :data:`TEACHER`.
        seed: of it.
        config: of its arm.
        teacher: the run whose student teaches it; None: its config names a teacher, or it is one.
        members: the runs whose students are measured together; none: it trains a student.
    """

    arm: str
    seed: int
    config: Mapping[str, Any]
    teacher: Key | None
    members: tuple[Key, ...] = ()

    @property
    def key(self) -> Key:
        """Arm and seed."""
        return self.arm, self.seed

    @property
    def name(self) -> str:
        """In words, and as the end of a path."""
        return f"{self.arm}/seed{self.seed}"

    @property
    def folder(self) -> str:
        """Relative to the study's."""
        return f"runs/{self.name}"


def name_of(runs: Sequence[PlannedRun]) -> str:
    """The name of a job that makes several runs of an arm; of one run, its own. It may be too long for a file's."""
    return f"{runs[0].arm}/seed{'+'.join(str(run.seed) for run in runs)}"


def file_of(runs: Sequence[PlannedRun]) -> str:
    """The same for the end of a path: the first seed, and of how many."""
    return runs[0].name if len(runs) == 1 else f"{runs[0].name}x{len(runs)}"


def keys_of(name: str) -> list[Key]:
    """The runs of a job, from its :func:`name_of`."""
    arm, _, seeds = name.rpartition("/seed")
    return [(arm, int(seed)) for seed in seeds.split("+")]


def planned_runs(plan: Plan) -> list[PlannedRun]:
    """All runs, seed by seed: its teacher, then its arms."""
    runs = []
    for seed in plan.all_seeds:
        if plan.teacher is not None:
            runs.append(PlannedRun(TEACHER, seed, plan.teacher, None))
        for arm in plan.arms:
            teacher = (arm.teacher, seed) if arm.teacher else None
            members = tuple((member, seed) for member in arm.members)
            runs.append(PlannedRun(arm.name, seed, arm.config, teacher, members))
    return runs


def in_order_of_start(plan: Plan) -> list[PlannedRun]:
    """All runs, in the order in which a core takes the first that is ready.

    It is seed by seed, so that a study that is stopped has whole seeds; but a run for which generations of others wait
    starts as many seeds ahead, so that near the end no core waits for the last teacher.
    """
    ahead = {name: _count_waiting(plan, name) for name in (TEACHER, *plan.names)}
    index = {seed: number for number, seed in enumerate(plan.all_seeds)}
    return sorted(planned_runs(plan), key=lambda run: (index[run.seed] - ahead[run.arm], -ahead[run.arm]))


def _count_waiting(plan: Plan, name: str) -> int:
    """How many generations of arms learn from the arm, one after another."""
    return max((1 + _count_waiting(plan, arm.name) for arm in plan.arms if arm.teacher == name), default=0)
