"""Two networks side by side: do they share memory, which of them learns, in which mode are they?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from polydistill.losses.examination.findings import Finding
from polydistill.losses.examination.modes import ScoreFunction, examine_students_mode, examine_teachers_mode
from polydistill.losses.sharing import find_place, find_shared


def examine_networks(student: ScoreFunction, teacher: ScoreFunction, inputs: Any) -> Iterator[Finding]:
    """Findings that need no scores; ``inputs`` are for modules whose modes must be tried."""
    if student is teacher:
        yield Finding("wrong", "student and teacher are the same network: build another one")
    if not isinstance(teacher, nn.Module):
        yield Finding("fine", "the teacher is a function: whether it is frozen cannot be seen")
    elif student is not teacher:
        yield from _examine_teacher(student, teacher, inputs)
    if isinstance(student, nn.Module):
        yield from examine_students_mode(student, inputs)
        if not any(parameter.requires_grad for parameter in student.parameters()):
            yield Finding(
                "wrong",
                "no weight of the student requires a gradient: call student.requires_grad_(), or nothing is learned",
            )


def _examine_teacher(student: ScoreFunction, teacher: nn.Module, inputs: Any) -> Iterator[Finding]:
    of_mode = list(examine_teachers_mode(teacher, inputs))
    yield from of_mode
    if any(parameter.requires_grad for parameter in teacher.parameters()):
        text = (
            "the teacher's weights require gradients: call teacher.requires_grad_(False), and the teacher under no_grad"
        )
        yield Finding("suspicious", text)
    if not isinstance(student, nn.Module):
        return
    shared = list(_examine_memory(student, teacher))
    yield from shared
    if not of_mode and not shared:
        yield Finding("fine", "the teacher is another network, in evaluation mode")


def _examine_memory(student: nn.Module, teacher: nn.Module) -> Iterator[Finding]:
    """The memory that both networks share: weights and batch statistics must not be shared, constants may."""
    shared = find_shared(student, teacher)
    if shared.weights:
        text = f"student and teacher share weights ({shared.weights[0]}): deep-copy, or build another network"
        yield Finding("wrong", text)
    if shared.buffers:
        text = f"student and teacher share a buffer ({shared.buffers[0]}): sound only if nothing ever changes it"
        yield Finding("suspicious", text)


def examine_tensors(scores: Tensor, targets: Tensor) -> Iterator[Finding]:
    """One tensor as both scores, which two plain functions may return."""
    place = find_place(scores)
    if place is not None and place == find_place(targets):
        yield Finding("wrong", "student and teacher give one and the same tensor: the student is its own teacher")
