"""The kernels as custom operators, which ``torch.compile`` calls and does not trace.

The contract: the same values as :mod:`polydistill.kernels.autograd` launches without this detour. Their gradient is
:class:`polydistill.kernels.autograd._Loss`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from polydistill.kernels.launch import Rows, launch, launch_confidence
from polydistill.kernels.numbers import Numbers
from polydistill.kernels.plan import KINDS, N_DIAGNOSTICS


def compute_loss(kind: str, numbers: Numbers, temperature: float, rows: Rows) -> tuple[Tensor, Tensor]:
    """The loss, and its diagnostics at ``temperature``; with a temperature of 0 an empty tensor instead."""
    found = launch(kind, numbers, rows, loss=True, diagnostics_temperature=temperature or None)
    assert found.loss is not None
    diagnosed = found.diagnostics
    return found.loss, found.loss.new_empty((0, N_DIAGNOSTICS)) if diagnosed is None else diagnosed


def compute_gradient(kind: str, numbers: Numbers, upstream: Tensor, rows: Rows, sums: Tensor | None = None) -> Tensor:
    """Gradient of the student's scores, times ``upstream``; ``sums``: those that the launch for the loss kept."""
    gradient = launch(kind, numbers, rows, gradient=True, upstream=upstream, sums=sums).gradient
    assert gradient is not None
    return gradient


@torch.library.custom_op("polydistill::loss", mutates_args=())
def _loss_operator(
    kind: str,
    numbers: Sequence[float],
    temperature: float,
    student: Tensor,
    teacher: Tensor | None,
    labels: Tensor | None,
    mask: Tensor | None,
    permutation: Tensor | None,
    values: Tensor | None,
) -> tuple[Tensor, Tensor]:
    rows = Rows(student, teacher, labels, mask, permutation, values)
    return compute_loss(kind, KINDS[kind].numbers(*numbers), temperature, rows)


@_loss_operator.register_fake
def _(kind: Any, numbers: Any, temperature: Any, student: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    n_rows = student.shape[0]
    loss = student.new_empty(n_rows, dtype=torch.float32)
    return loss, student.new_empty((n_rows if temperature else 0, N_DIAGNOSTICS), dtype=torch.float32)


@torch.library.custom_op("polydistill::gradient", mutates_args=())
def _gradient_operator(
    kind: str,
    numbers: Sequence[float],
    upstream: Tensor,
    student: Tensor,
    teacher: Tensor | None,
    labels: Tensor | None,
    mask: Tensor | None,
    permutation: Tensor | None,
    values: Tensor | None,
) -> Tensor:
    rows = Rows(student, teacher, labels, mask, permutation, values)
    return compute_gradient(kind, KINDS[kind].numbers(*numbers), upstream, rows)


@_gradient_operator.register_fake
def _(kind: Any, numbers: Any, upstream: Tensor, student: Tensor, *rest: Any) -> Tensor:
    return torch.empty(student.shape, dtype=student.dtype, device=student.device)


@torch.library.custom_op("polydistill::confidence", mutates_args=())
def _confidence_operator(teacher: Tensor) -> Tensor:
    return launch_confidence(teacher)


@_confidence_operator.register_fake
def _(teacher: Tensor) -> Tensor:
    return teacher.new_empty(teacher.shape[-2], dtype=torch.float32)
