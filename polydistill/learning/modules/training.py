"""The training of one module of one's own: epochs of updates on batches of one's own.

Contract: one wait for the device in each epoch, and one at the end; with an objective of one's own and ``ignore_index``
one in each batch. (Labels are checked where they are on the CPU.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from polydistill.learning.lesson import Lesson
from polydistill.learning.modules.batches import device_of, no_autocast, read_batch, score
from polydistill.learning.modules.trial import check_labels
from polydistill.learning.update import Update


def train(
    student: nn.Module,
    lesson: Lesson,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Any],
    epochs: int,
    ignore_index: int | None,
    n_classes: int | None,
) -> None:
    """Let the student learn, in place.

    Args:
        student: on its device.
        lesson: objective and teacher; its generation is the student's.
        optimizer: of the student's parameters.
        batches: iterated once per epoch.
        epochs: >= 1.
        ignore_index: label of positions that do not count; None: all do.
        n_classes: of the scores; None: not known, and labels are not checked.

    Raises:
        ValueError: an epoch without batches, or a label that is no class.
        FloatingPointError: at the end of an epoch in which a loss was not finite, or at the end of all where a weight
            is not.
    """
    whose = f"the loss {lesson.objective} of generation {lesson.generation}"
    update = Update(student, lesson, optimizer, score=score)
    student.train()
    step = 0
    for epoch in range(epochs):
        losses: list[Tensor] = []
        for batch in batches:
            where = f"batch {len(losses) + 1} of epoch {epoch + 1}"
            try:
                losses.append(_step(update, batch, step, where, ignore_index, n_classes))
            except Exception as error:  # of the user's code, perhaps, which knows no batches
                error.add_note(f"in {where} of generation {lesson.generation}")
                raise
            step += 1
        if not losses:
            raise ValueError(f"no batches in epoch {epoch + 1}: `batches` must be iterable once per epoch, like a list")
        _require_finite(losses, whose, epoch)
    if not torch.stack([parameter.isfinite().all() for parameter in student.parameters()]).all():
        raise FloatingPointError(f"{whose} leads to weights that are not finite in its last step")
    student.zero_grad(set_to_none=True)


def _step(update: Update, given: Any, step: int, where: str, ignore_index: int | None, n_classes: int | None) -> Tensor:
    batch = read_batch(given)
    if n_classes is not None and batch.labels.device.type == "cpu":  # a GPU would have to be waited for
        check_labels(batch.labels, n_classes, where, ignore_index)
    batch = batch.to(device_of(update.student))
    n_counted: int | Tensor = max(1, len(batch.labels))
    if ignore_index is not None:
        n_counted = (batch.labels != ignore_index).sum().clamp(min=1)
    rows = torch.arange(len(batch.labels), device=batch.labels.device)  # a permutation of its own for each sample
    with no_autocast(update.student):
        _, _, loss = update(batch, batch.labels, n_counted, update.lesson.draw_permutation(rows, step))
    return loss


def _require_finite(losses: list[Tensor], whose: str, epoch: int) -> None:
    """Refuse an epoch one of whose losses is not finite; the one time in it that the device is waited for."""
    for batch, loss in enumerate(torch.stack(losses).tolist()):
        if not math.isfinite(loss):
            raise FloatingPointError(f"{whose} is {loss} at batch {batch + 1} of epoch {epoch + 1}")
