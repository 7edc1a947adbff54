"""The kernels as functions that autograd, ``torch.func`` and ``torch.compile`` understand.

Symbols: L the loss of each row, u its upstream gradient. The forward pass computes L, the backward pass u dL/dz from
the scores themselves: nothing of the size of the scores is kept, and a bfloat16 gradient is rounded once.

The contract: only the student's side has a gradient, and only a first one. ``vmap`` joins its dimension to the rows.
While compiling, the kernels are custom operators, which the compiler does not look into; otherwise they are launched
without that detour.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polydistill.kernels.launch import N_DIAGNOSTICS, Rows, launch, launch_confidence

N_TENSORS = len(Rows._fields)


@dataclass
class Extras:
    """What a caller wants of a loss besides its values, and what it got.

    Attributes:
        with_gradient: compute the gradient along, without autograd.
        row_weights: ``(batch,)`` float32, the upstream gradient for it; None: 1.
        diagnostics_temperature: of the teacher's side; None: no diagnostics.
        teacher: for diagnostics of a loss that has none.
        labels: for diagnostics of a loss that has none.
        gradient: as the student's scores.
        diagnostics: ``(..., batch, 5)`` float32.
    """

    with_gradient: bool = False
    row_weights: Tensor | None = None
    diagnostics_temperature: float | None = None
    teacher: Tensor | None = None
    labels: Tensor | None = None
    gradient: Tensor | None = None
    diagnostics: Tensor | None = None


class _Asked(threading.local):
    extras: Extras | None = None


_asked = _Asked()


@contextlib.contextmanager
def asking_for(extras: Extras) -> Iterator[Extras]:
    """While this lasts, a fused loss in this thread fills ``extras``."""
    _asked.extras = extras
    try:
        yield extras
    finally:
        _asked.extras = None


def fused_loss(
    kind: str,
    numbers: Sequence[float],
    student: Tensor,
    teacher: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    permutation: Tensor | None = None,
    values: Tensor | None = None,
) -> Tensor:
    """The loss of each sample by one kernel; arguments are checked already.

    Args:
        kind: name in :data:`polydistill.kernels.launch.KINDS`.
        numbers: the kernel's own arguments.
        student: ``(..., batch, classes)`` float32, bfloat16 or float16. Gradient flows.
        teacher: the same shape and type, or None.
        labels: ``(..., batch)`` int64, or None.
        mask: bool, broadcasts to the student's shape; True takes the class out.
        permutation: ``(..., batch, classes - 1)`` int64.
        values: ``(..., batch)`` float32, a number of each row.

    Returns:
        ``(..., batch)`` float32.
    """
    classes = student.shape[-1]
    rows = Rows(
        student.reshape(-1, classes),
        None if teacher is None else teacher.reshape(-1, classes),
        None if labels is None else labels.reshape(-1),
        None if mask is None else _broadcast(mask, student),
        None if permutation is None else permutation.reshape(-1, classes - 1),
        None if values is None else values.reshape(-1),
    )
    extras = None if torch.compiler.is_compiling() else _asked.extras
    if extras is not None:
        rows = _complete(rows, extras)
    loss: Tensor
    if extras is None:
        loss, _ = _Loss.apply(kind, tuple(numbers), 0.0, *rows)  # type: ignore[no-untyped-call]
    elif extras.with_gradient:
        loss = _fill(extras, kind, tuple(numbers), rows, student)
    else:
        temperature = extras.diagnostics_temperature or 0.0
        loss, diagnosed = _Loss.apply(kind, tuple(numbers), temperature, *rows)  # type: ignore[no-untyped-call]
        extras.diagnostics = diagnosed.view(*student.shape[:-1], N_DIAGNOSTICS)
    return loss.view(student.shape[:-1])


def confidence(teacher: Tensor) -> Tensor:
    """``max softmax(teacher)``, ``(..., batch)`` float32, of ``(..., batch, classes)`` scores; no gradient."""
    rows = teacher.detach().reshape(-1, teacher.shape[-1])
    found: Tensor = _Confidence.apply(rows)  # type: ignore[no-untyped-call]
    return found.view(teacher.shape[:-1])


def _fill(extras: Extras, kind: str, numbers: tuple[float, ...], rows: Rows, student: Tensor) -> Tensor:
    """Everything that was asked for, from one launch."""
    weights = None if extras.row_weights is None else extras.row_weights.reshape(-1)
    found = launch(
        kind,
        numbers,
        rows,
        loss=True,
        gradient=True,
        upstream=weights,
        diagnostics_temperature=extras.diagnostics_temperature,
    )
    assert found.loss is not None
    assert found.gradient is not None
    extras.gradient = found.gradient.view(student.shape)
    if found.diagnostics is not None:
        extras.diagnostics = found.diagnostics.view(*student.shape[:-1], N_DIAGNOSTICS)
    return found.loss


def _complete(rows: Rows, extras: Extras) -> Rows:
    """With what the diagnostics need besides the loss."""
    if rows.teacher is None and extras.teacher is not None:
        rows = rows._replace(teacher=extras.teacher.reshape(rows.student.shape))
    if rows.labels is None and extras.labels is not None:
        rows = rows._replace(labels=extras.labels.reshape(-1))
    return rows


def _broadcast(mask: Tensor, student: Tensor) -> Tensor:
    """The mask as ``(rows, classes)``; one of a row for all stays a view with stride 0."""
    classes = student.shape[-1]
    if mask.dim() == 1:
        return mask.expand(student.numel() // classes, classes)
    return mask.expand_as(student).reshape(-1, classes)


class _Loss(torch.autograd.Function):
    """(kind, numbers, temperature of the diagnostics or 0, *Rows) -> (loss, diagnostics or an empty tensor)."""

    @staticmethod
    def forward(kind: str, numbers: tuple[float, ...], temperature: float, *rows: Tensor | None) -> Any:
        if torch.compiler.is_compiling():
            return torch.ops.polydistill.loss(kind, list(numbers), temperature, *rows)
        return _compute_loss(kind, numbers, temperature, Rows(*rows))  # type: ignore[arg-type]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.kind, ctx.numbers, _, *rows = inputs
        ctx.save_for_backward(*rows)
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: Any) -> Any:
        gradient = None
        if upstream is not None:
            gradient = _Gradient.apply(ctx.kind, ctx.numbers, upstream, *ctx.saved_tensors)  # type: ignore[no-untyped-call]
        return (None, None, None, gradient, *([None] * (N_TENSORS - 1)))

    @staticmethod
    def vmap(info: Any, in_dims: Any, kind: str, numbers: tuple[float, ...], temperature: float, *rows: Any) -> Any:
        joined = _join(info.batch_size, in_dims[3:], rows)
        loss, diagnosed = _Loss.apply(kind, numbers, temperature, *joined)  # type: ignore[no-untyped-call]
        size = info.batch_size
        return (loss.view(size, -1), diagnosed.view(size, diagnosed.shape[0] // size, N_DIAGNOSTICS)), (0, 0)


class _Gradient(torch.autograd.Function):
    """(kind, numbers, upstream ``(rows,)``, *Rows) -> gradient of the student's scores."""

    @staticmethod
    def forward(kind: str, numbers: tuple[float, ...], upstream: Tensor, *rows: Tensor | None) -> Any:
        if torch.compiler.is_compiling():
            return torch.ops.polydistill.gradient(kind, list(numbers), upstream, *rows)
        return _compute_gradient(kind, numbers, upstream, Rows(*rows))  # type: ignore[arg-type]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        raise RuntimeError(
            "the fused losses have no second derivative; choose the plain formulas: "
            "with polydistill.losses.use_backend('torch'): ..."
        )

    @staticmethod
    def vmap(info: Any, in_dims: Any, kind: str, numbers: tuple[float, ...], upstream: Tensor, *rows: Any) -> Any:
        (joined_upstream,) = _join(info.batch_size, in_dims[2:3], (upstream,))
        joined = _join(info.batch_size, in_dims[3:], rows)
        gradient = _Gradient.apply(kind, numbers, joined_upstream, *joined)  # type: ignore[no-untyped-call]
        return gradient.view(info.batch_size, -1, gradient.shape[-1]), 0


class _Confidence(torch.autograd.Function):
    """Teacher's scores ``(rows, classes)`` -> ``(rows,)``; no gradient."""

    @staticmethod
    def forward(teacher: Tensor) -> Any:
        if torch.compiler.is_compiling():
            return torch.ops.polydistill.confidence(teacher)
        return launch_confidence(teacher)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        return None

    @staticmethod
    def vmap(info: Any, in_dims: Any, teacher: Any) -> Any:
        (joined,) = _join(info.batch_size, in_dims, (teacher,))
        return _Confidence.apply(joined).view(info.batch_size, -1), 0  # type: ignore[no-untyped-call]


def _join(size: int, in_dims: Sequence[int | None], tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The dimension of ``vmap`` joined to the rows of each tensor; one without it is repeated."""
    joined: list[Tensor | None] = []
    for dim, tensor in zip(in_dims, tensors, strict=True):
        if tensor is None:
            joined.append(None)
        else:
            moved = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            joined.append(moved.flatten(0, 1))
    return joined


def _compute_loss(kind: str, numbers: tuple[float, ...], temperature: float, rows: Rows) -> tuple[Tensor, Tensor]:
    found = launch(kind, numbers, rows, loss=True, diagnostics_temperature=temperature or None)
    assert found.loss is not None
    diagnosed = found.diagnostics
    return found.loss, found.loss.new_empty((0, N_DIAGNOSTICS)) if diagnosed is None else diagnosed


def _compute_gradient(kind: str, numbers: tuple[float, ...], upstream: Tensor, rows: Rows) -> Tensor:
    gradient = launch(kind, numbers, rows, gradient=True, upstream=upstream).gradient
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
    return _compute_loss(kind, tuple(numbers), temperature, rows)


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
    return _compute_gradient(kind, tuple(numbers), upstream, Rows(student, teacher, labels, mask, permutation, values))


@_gradient_operator.register_fake
def _(kind: Any, numbers: Any, upstream: Tensor, student: Tensor, *rest: Any) -> Tensor:
    return torch.empty(student.shape, dtype=student.dtype, device=student.device)


@torch.library.custom_op("polydistill::confidence", mutates_args=())
def _confidence_operator(teacher: Tensor) -> Tensor:
    return launch_confidence(teacher)


@_confidence_operator.register_fake
def _(teacher: Tensor) -> Tensor:
    return teacher.new_empty(teacher.shape[0], dtype=torch.float32)
