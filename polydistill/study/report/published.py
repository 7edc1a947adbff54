"""What the literature has beside the arms of a study, and their teachers: the world's own report knows it."""

from __future__ import annotations

from importlib import import_module

from polydistill._environment import REPORTS
from polydistill.study.plan import Plan
from polydistill.study.records import TEACHER


def published_values(plan: Plan) -> dict[str, float]:
    """Arm -> the published value of the plan's metric; arms without one are left out.

    A world whose report has no ``published(metric, config, generation)`` has published values of nothing.
    """
    look_up = getattr(import_module(REPORTS[plan.world]), "published", None)
    if look_up is None:
        return {}
    students = [arm for arm in plan.arms if not arm.members]
    found = {arm.name: look_up(plan.metric, arm.config, count_teachers(plan, arm.name)) for arm in students}
    if plan.teacher is not None:
        found[TEACHER] = look_up(plan.metric, plan.teacher, 0)
    return {arm: value for arm, value in found.items() if value is not None}


def count_teachers(plan: Plan, name: str) -> int:
    """How many arms stand between an arm and the seed's own teacher, and itself: 1 for a student of that teacher."""
    others, count = set(plan.names), 1
    while (teacher := plan.arm(name).teacher) in others:
        others.discard(teacher)  # ends where a plan's arms teach each other in a circle
        name, count = teacher, count + 1
    return count
