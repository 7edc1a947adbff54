"""What is found before a lineage of several tasks begins: their teachers, and whether one student can have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polydistill.errors import UserError
from polydistill.learning.lesson import learned_kind
from polydistill.losses import get_objective
from polydistill.provenance import weights_sha256
from polydistill_agents.distillation.settings import check_same_observations
from polydistill_agents.lineage.multitask.config import SeveralTasks
from polydistill_agents.lineage.multitask.view import TASKS
from polydistill_agents.lineage.opening import DATASET, open_teacher
from polydistill_agents.teachers import Teacher
from polydistill_agents.teachers.recorded import RecordedTeacher


def open_teachers(config: SeveralTasks) -> dict[str, Teacher]:
    """The teacher of each task, on the configured device.

    Raises:
        UserError: one is missing, damaged, does not fit its task, or no student could learn from it; the message names
            the task. Or the tasks do not show the same, or one head would have to give two kinds of scores.
    """
    try:
        check_same_observations({name: config.of(name).task.observation_space for name in config.names})
    except ValueError as error:
        raise UserError(str(error)) from None
    found = {}
    for name in config.names:
        try:
            found[name] = open_teacher(config.of(name))
        except UserError as error:
            raise UserError(f"{config.field_name}.{name}: {error}") from error
    objective = get_objective(config.student.objective)
    kinds = {name: learned_kind(objective, teacher.kind) for name, teacher in found.items()}
    if config.student.heads == "one" and len(set(kinds.values())) > 1:
        told = ", ".join(f"{kind} in {name}" for name, kind in kinds.items())
        raise UserError(f"student.heads one: a head gives scores of one kind, {objective.name} would teach it {told}")
    return found


def hash_of(teacher: Teacher) -> str | None:
    """Of its weights; None of a bare function."""
    return None if teacher.network is None else weights_sha256(teacher.network.state_dict())


def require_same_teachers(config: SeveralTasks, teachers: Mapping[str, Teacher], first: Mapping[str, Any]) -> None:
    """Compare the teachers' weights with those that a run began with: where they lie does not matter.

    Args:
        config: names their files.
        teachers: that there are.
        first: generation 0 in summary.json or in a checkpoint.

    Raises:
        UserError: one has other weights.
    """
    for name, teacher in teachers.items():
        began_with, recorded = first["metrics"][TASKS][name], None
        if isinstance(teacher, RecordedTeacher):
            recorded = teacher
        if began_with.get(DATASET) != (None if recorded is None else recorded.content_sha256):
            raise UserError(
                f"{config.field_name}.{name}: the run began with other play than dataset names now; give --out another "
                "folder"
            )
        original = teacher if recorded is None else recorded.original
        began, here = began_with["sha256"], None if original is None else hash_of(original)
        if here != began and (here is not None or recorded is not None):
            raise UserError(
                f"{config.field_name}.{name}.teacher {config.entries[name]['teacher']} holds other weights than those "
                "that this run began with; give --out another folder"
            )
