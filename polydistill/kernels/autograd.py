"""The kernels as functions that autograd, ``torch.func`` and ``torch.compile`` understand.

Symbols: L the loss of each row, u its upstream gradient. The forward pass computes L. Of few scores it computes dL/dz
along, in float32, and the backward pass is a product with u. Of more, the backward pass computes u dL/dz from the
scores themselves: nothing of their size is kept, of long rows a few sums. Either way a bfloat16 gradient is rounded
once.

The contract: only the student's side has a gradient, and only a first one, in reverse mode. ``torch.func.vmap`` joins
its dimension to the rows; the older one behind ``torch.autograd.grad(is_grads_batched=True)`` does not know how.
While compiling, the operators of :mod:`polydistill.kernels.operators` take their place.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polydistill.kernels.launch import Rows, launch, launch_confidence
from polydistill.kernels.operators import compute_gradient, compute_loss
from polydistill.kernels.plan import N_DIAGNOSTICS

N_TENSORS = len(Rows._fields)
FEW_SCORES = 2**20  # of so many the gradient is kept: up to there a launch takes the processor longer than the GPU


@dataclass
class Extras:
    """What a caller wants of a loss besides its values, and what it got.

    Attributes:
        with_gradient: compute the gradient along, without autograd.
        row_weights: ``(batch,)`` float32, the upstream gradient for it; None: 1.
        diagnostics_temperature: of the teacher's side; None: no diagnostics.
        teacher: for diagnostics of a loss that has none; may have a dimension of members first.
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

# whether torch.func transforms what runs now; without this function of torch, each loss is ready for it
_are_transforms_active: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)


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
        kind: name in :data:`polydistill.kernels.plan.KINDS`.
        numbers: the kernel's own arguments.
        student: ``(..., batch, classes)`` float32, bfloat16 or float16. Gradient flows.
        teacher: the same shape, with a dimension of members before it for an ensemble, of the same type or float32; or
            None.
        labels: ``(..., batch)`` int64, or None.
        mask: bool, broadcasts to the student's shape; True takes the class out.
        permutation: ``(..., batch, classes - 1)`` int64.
        values: ``(..., batch)`` float32, a number of each row.

    Returns:
        ``(..., batch)`` float32.
    """
    compiling = torch.compiler.is_compiling()
    # while compiling never as they are: torch 2.13 fails where torch.func.grad's own argument is the function's
    flat = student.dim() == 2 and not compiling
    classes = student.shape[-1]
    rows = Rows(
        student if flat else student.reshape(-1, classes),
        None if teacher is None else _rows_of(teacher, student),
        None if labels is None else labels.reshape(-1),
        None if mask is None else _broadcast(mask, student),
        None if permutation is None else permutation.reshape(student.numel() // classes, classes - 1),
        None if values is None else values.reshape(-1),
    )
    loss: Tensor
    if not compiling and _asked.extras is not None:
        loss = _answer(_asked.extras, kind, tuple(numbers), rows, student)
    elif compiling or _are_transforms_active():
        loss, _ = _Loss.apply(kind, tuple(numbers), 0.0, *rows)  # type: ignore[no-untyped-call]
    else:
        loss, _ = _apply_eagerly(kind, tuple(numbers), 0.0, rows)
    return loss if flat else loss.view(student.shape[:-1])


def confidence(student: Tensor, teacher: Tensor) -> Tensor:
    """``max p``, ``(..., batch)`` float32; no gradient.

    Args:
        student: ``(..., batch, classes)``, only its shape counts.
        teacher: the same shape, or an ensemble, with a dimension of members before it.
    """
    rows = _rows_of(teacher.detach(), student)
    if not torch.compiler.is_compiling() and not _are_transforms_active():
        return launch_confidence(rows).view(student.shape[:-1])
    found: Tensor = _Confidence.apply(rows)  # type: ignore[no-untyped-call]
    return found.view(student.shape[:-1])


def _answer(extras: Extras, kind: str, numbers: tuple[float, ...], rows: Rows, student: Tensor) -> Tensor:
    """The loss, and what else was asked for, from one launch."""
    rows = _complete(rows, extras, student)
    if not extras.with_gradient:
        temperature = extras.diagnostics_temperature or 0.0
        if _are_transforms_active():
            loss, diagnosed = _Loss.apply(kind, numbers, temperature, *rows)  # type: ignore[no-untyped-call]
        else:
            loss, diagnosed = _apply_eagerly(kind, numbers, temperature, rows)
        if temperature:
            extras.diagnostics = diagnosed.view(*student.shape[:-1], N_DIAGNOSTICS)
        return loss  # type: ignore[no-any-return]
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


def _complete(rows: Rows, extras: Extras, student: Tensor) -> Rows:
    """With what the diagnostics need besides the loss."""
    if rows.teacher is None and extras.teacher is not None:
        rows = rows._replace(teacher=_rows_of(extras.teacher, student))
    if rows.labels is None and extras.labels is not None:
        rows = rows._replace(labels=extras.labels.reshape(-1))
    return rows


def _rows_of(teacher: Tensor, student: Tensor) -> Tensor:
    """``(rows, classes)``, or ``(members, rows, classes)``."""
    if student.dim() == 2:
        return teacher
    if teacher.dim() > student.dim():
        return teacher.reshape(len(teacher), -1, student.shape[-1])
    return teacher.reshape(-1, student.shape[-1])


def _broadcast(mask: Tensor, student: Tensor) -> Tensor:
    """The mask as ``(rows, classes)``; one of a row for all stays a view with stride 0."""
    classes = student.shape[-1]
    if mask.dim() == 1:
        return mask.expand(student.numel() // classes, classes)
    return mask.expand_as(student).reshape(-1, classes)


class _Loss(torch.autograd.Function):
    """(kind, numbers, temperature of the diagnostics or 0, *Rows) -> (loss, diagnostics or an empty tensor)."""

    @staticmethod
    def forward(
        kind: str,
        numbers: tuple[float, ...],
        temperature: float,
        student: Tensor,  # each row's tensors by name: of *rows the compiler does not know that there is no ctx
        teacher: Tensor | None,
        labels: Tensor | None,
        mask: Tensor | None,
        permutation: Tensor | None,
        values: Tensor | None,
    ) -> Any:
        rows = Rows(student, teacher, labels, mask, permutation, values)
        if torch.compiler.is_compiling():
            return torch.ops.polydistill.loss(kind, list(numbers), temperature, *rows)
        return compute_loss(kind, numbers, temperature, rows)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.kind, ctx.numbers, _, *rows = inputs
        ctx.save_for_backward(*rows)
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: Any) -> Any:
        gradient = None
        if torch.compiler.is_compiling():  # the compiler does not follow a function inside another's backward pass
            gradient = torch.ops.polydistill.gradient(ctx.kind, list(ctx.numbers), upstream, *ctx.saved_tensors)
        elif upstream is not None:
            gradient = _Gradient.apply(ctx.kind, ctx.numbers, upstream, *ctx.saved_tensors)  # type: ignore[no-untyped-call]
        return (None, None, None, gradient, *([None] * (N_TENSORS - 1)))

    @staticmethod
    def vmap(info: Any, in_dims: Any, kind: str, numbers: tuple[float, ...], temperature: float, *rows: Any) -> Any:
        joined = _join(info.batch_size, in_dims[3:], rows)
        loss, diagnosed = _Loss.apply(kind, numbers, temperature, *joined)  # type: ignore[no-untyped-call]
        size = info.batch_size
        return (loss.view(size, -1), diagnosed.view(size, diagnosed.shape[0] // size, N_DIAGNOSTICS)), (0, 0)


class _EagerLoss(torch.autograd.Function):
    """:class:`_Loss` where nothing transforms it: torch takes as long as for several operations to bind the arguments
    of a function that can be transformed. Its first argument is whether a gradient may be wanted."""

    @staticmethod
    def forward(
        ctx: Any, learns: bool, kind: str, numbers: tuple[float, ...], temperature: float, *rows: Tensor | None
    ) -> Any:
        given = Rows(*rows)  # type: ignore[arg-type]
        few = learns and given.student.numel() <= FEW_SCORES
        found = launch(
            kind,
            numbers,
            given,
            loss=True,
            gradient=few,
            gradient_type=torch.float32,  # rounded once, after its product with what comes from above
            diagnostics_temperature=temperature or None,
            keep_sums=learns and not few,
        )
        ctx.kind, ctx.numbers, ctx.sums = kind, numbers, found.sums
        ctx.gradient, ctx.gradient_type = found.gradient, given.student.dtype
        ctx.save_for_backward(*rows)
        ctx.set_materialize_grads(False)
        if found.diagnostics is None:
            return found.loss, None
        ctx.mark_non_differentiable(found.diagnostics)
        return found.loss, found.diagnostics

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: Any) -> Any:
        # create_graph, where a second derivative may be asked for, or a backward pass that is mapped or compiled
        careful = torch.is_grad_enabled() or _are_transforms_active() or torch.compiler.is_compiling()
        if careful or upstream is None:
            return (None, *_Loss.backward(ctx, upstream, _))
        if ctx.gradient is None:
            gradient = compute_gradient(ctx.kind, ctx.numbers, upstream, Rows(*ctx.saved_tensors), ctx.sums)
        else:
            gradient = torch.empty_like(ctx.gradient, dtype=ctx.gradient_type)
            torch.mul(ctx.gradient, upstream.unsqueeze(1), out=gradient)
        return (None, None, None, None, gradient, *([None] * (N_TENSORS - 1)))


def _apply_eagerly(
    kind: str, numbers: tuple[float, ...], temperature: float, rows: Rows
) -> tuple[Tensor, Tensor | None]:
    # said here: inside the function no gradient is wanted, whatever the mode
    learns = torch.is_grad_enabled() and rows.student.requires_grad
    return _EagerLoss.apply(learns, kind, numbers, temperature, *rows)  # type: ignore[no-any-return, no-untyped-call]


class _Gradient(torch.autograd.Function):
    """(kind, numbers, upstream ``(rows,)``, *Rows) -> gradient of the student's scores."""

    @staticmethod
    def forward(kind: str, numbers: tuple[float, ...], upstream: Tensor, *rows: Tensor | None) -> Any:
        return compute_gradient(kind, numbers, upstream, Rows(*rows))  # type: ignore[arg-type]

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
    """Teacher's scores ``(rows, classes)`` or ``(members, rows, classes)`` -> ``(rows,)``; no gradient."""

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
            # of an ensemble's (members, rows, classes), the members stay apart
            joined.append(moved.transpose(0, 1).flatten(1, 2) if moved.dim() == 4 else moved.flatten(0, 1))
    return joined
