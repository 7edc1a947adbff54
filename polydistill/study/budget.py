"""What the ensembles of a study cost: how many networks answer, and which were trained for it.

An ensemble of students is compared with one of independent networks at an equal budget only where both are the same.
Contract: a network that teaches a member is paid for where the member learns from it; a given teacher is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from polydistill.config.plain_yaml import flatten
from polydistill.study.plan import Arm, Plan
from polydistill.study.records import TEACHER
from polydistill.study.worlds import EnsembleWorld, open_world

EPOCHS = "training.epochs"  # key of worlds in which teacher and student have the same


@dataclass(frozen=True)
class Budget:
    """The cost of an ensemble in one seed.

    Args:
        networks: that each answer takes.
        trained: arms whose runs made them, :data:`TEACHER` among them where it taught one.
        training: of all of those runs together, in ``unit``.
        unit: like "epochs of training".
    """

    networks: int
    trained: tuple[str, ...]
    training: int
    unit: str


def budgets(plan: Plan) -> dict[str, Budget]:
    """The budget of each ensemble of a plan."""
    if not any(arm.members for arm in plan.arms):
        return {}
    world = open_world(plan.world).ensemble
    return {} if world is None else {arm.name: _budget(plan, arm, world) for arm in plan.arms if arm.members}


def _budget(plan: Plan, arm: Arm, world: EnsembleWorld) -> Budget:
    configs: dict[str, Mapping[str, object]] = {} if plan.teacher is None else {TEACHER: plan.teacher}
    configs |= {other.name: other.config for other in plan.arms}
    trained: list[str] = []
    waiting = list(arm.members)
    while waiting:
        name = waiting.pop(0)
        if name in trained:
            continue
        trained.append(name)
        if name != TEACHER and world.is_taught(configs[name]) and plan.arm(name).teacher:
            waiting.append(plan.arm(name).teacher)
    ordered = tuple(name for name in configs if name in trained)
    training = sum(world.training_of(configs[name]) for name in ordered)
    return Budget(len(arm.members), ordered, training, world.training)


def unequal_epochs(plan: Plan) -> list[str]:
    """One line for each arm with epochs of its own that are not those of a seed's teacher and student together."""
    if plan.teacher is None:
        return []
    teacher, student = (dict(flatten(config)) for config in (plan.teacher, plan.base))
    if EPOCHS not in student or student.get("lineage.generations") != 1:
        return []
    both = teacher[EPOCHS] + student[EPOCHS]
    return [
        f"arm {arm.name} has {arm.overrides[EPOCHS]:,} epochs, teacher and student of the base together have {both:,}: "
        f"an equal budget is --arms.{arm.name}.{EPOCHS} {both}"
        for arm in plan.arms
        if arm.overrides.get(EPOCHS, both) not in (both, student[EPOCHS])
    ]


def unequal_ensembles(plan: Plan) -> list[str]:
    """One line for each contrast named beforehand of two ensembles that differ in size or training."""
    costs = budgets(plan)
    lines = []
    for first, second in plan.contrasts:
        if first in costs and second in costs:
            one, other = costs[first], costs[second]
            if one.networks != other.networks:
                lines.append(f"{first} has {one.networks} networks and {second} {other.networks}: a larger is better")
            elif one.training != other.training:
                lines.append(
                    f"{first} takes {one.training:,} {one.unit} ({', '.join(one.trained)}) and {second} "
                    f"{other.training:,} ({', '.join(other.trained)}): budgets are not equal"
                )
    return lines
