"""The kernels as functions that autograd, ``torch.func`` and ``torch.compile`` understand.

Symbols: L the loss of each row, u its upstream gradient. The forward pass computes L. With few scores it also computes
dL/dz, in float32, and the backward pass multiplies it by u. With more, the backward pass computes u dL/dz from the
scores again: nothing of their size is kept, only a few sums of long rows. Either way a bfloat16 gradient is rounded
once.

The contract: only the student's side has a gradient, and only a first one, in reverse mode. ``torch.func.vmap`` joins
its dimension to the rows; the older one behind ``torch.autograd.grad(is_grads_batched=True)`` is not supported.
While compiling, the operators of :mod:`polydistill.kernels.operators` take their place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from polydistill.kernels.launch import Results, Rows, launch, launch_confidence
from polydistill.kernels.numbers import Numbers
from polydistill.kernels.operators import compute_gradient, compute_loss
from polydistill.kernels.plan import N_DIAGNOSTICS

N_TENSORS = len(Rows._fields)
FEW_SCORES = 2**20  # up to so many the gradient is kept: a launch then takes the processor longer than the GPU

# whether torch.func transforms the running code; if torch lacks this function, as if it always did
_are_transforms_active: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)


def fused_loss(kind: str, numbers: Numbers, rows: Rows) -> Tensor:
    """The loss of each sample by one kernel; the caller has checked the arguments.

    Args:
        kind: name in :data:`polydistill.kernels.plan.KINDS`.
        numbers: the kernel's own arguments.
        rows: its tensors, not yet flat: the student ``(..., batch, classes)`` float32, bfloat16 or float16, gradient
            flows; the teacher of the same shape, with a dimension of members before it for an ensemble, of the same
            type or float32; labels ``(..., batch)`` int64; a bool mask that broadcasts to the student's shape; a
            permutation ``(..., batch, classes - 1)`` int64; values ``(..., batch)`` float32.

    Returns:
        ``(..., batch)`` float32.
    """
    return _apply(kind, numbers, 0.0, rows)[0]


def fused_diagnosis(kind: str, numbers: Numbers, rows: Rows, temperature: float) -> tuple[Tensor, Tensor]:
    """The loss of each sample and its diagnostics, ``(..., batch, N_DIAGNOSTICS)`` float32, from one launch.

    Args:
        kind: as in :func:`fused_loss`.
        numbers: as there.
        rows: as there; the diagnostics need a teacher, and use labels, even if the loss does not.
        temperature: of the teacher's side in the diagnostics.
    """
    loss, diagnosed = _apply(kind, numbers, temperature, rows)
    return loss, diagnosed.view(*loss.shape, N_DIAGNOSTICS)


def fused_gradient(
    kind: str, numbers: Numbers, rows: Rows, weights: Tensor | None, temperature: float | None
) -> Results:
    """Loss, gradient and, with a temperature, diagnostics from one launch, without autograd and without transforms.

    Args:
        kind: as in :func:`fused_diagnosis`.
        numbers: as there.
        rows: as there.
        weights: ``(..., batch)`` float32, the upstream gradient of the loss; None: 1.
        temperature: of the teacher's side in the diagnostics; None: there are none.
    """
    found = launch(
        kind,
        numbers,
        _flatten(rows),
        loss=True,
        gradient=True,
        upstream=None if weights is None else weights.reshape(-1),
        diagnostics_temperature=temperature,
    )
    shape = rows.student.shape
    return Results(*(x if x is None else x.view(*shape[:-1], *x.shape[1:]) for x in found))


def _apply(kind: str, numbers: Numbers, temperature: float, rows: Rows) -> tuple[Tensor, Tensor]:
    """The loss ``(..., batch)`` with its graph, and the diagnostics of each row."""
    flat = _flatten(rows)
    if torch.compiler.is_compiling() or _are_transforms_active():
        loss, diagnosed = _Loss.apply(kind, numbers, temperature, *flat)  # type: ignore[no-untyped-call]
    else:
        # found out here: inside the function the gradient mode is always off
        learns = torch.is_grad_enabled() and rows.student.requires_grad
        loss, diagnosed = _EagerLoss.apply(learns, kind, numbers, temperature, *flat)  # type: ignore[no-untyped-call]
    return loss if rows.student.dim() == 2 else loss.view(rows.student.shape[:-1]), diagnosed


def _flatten(rows: Rows) -> Rows:
    """The dimensions before the classes joined; a mask for all rows stays a view with stride 0."""
    student, teacher, labels, mask, permutation, values = rows
    mask = None if mask is None else mask.expand_as(student)
    # while compiling they are always reshaped: torch 2.13 fails if torch.func.grad's own argument is the function's
    if student.dim() == 2 and not torch.compiler.is_compiling():
        return rows if mask is None else rows._replace(mask=mask)
    classes = student.shape[-1]
    return Rows(
        student.reshape(-1, classes),
        None if teacher is None else _rows_of(teacher, student),
        None if labels is None else labels.reshape(-1),
        None if mask is None else mask.reshape(-1, classes),
        None if permutation is None else permutation.reshape(student.numel() // classes, classes - 1),
        None if values is None else values.reshape(-1),
    )


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


def _rows_of(teacher: Tensor, student: Tensor) -> Tensor:
    """``(rows, classes)``, or ``(members, rows, classes)``."""
    if student.dim() == 2:
        return teacher
    if teacher.dim() > student.dim():
        return teacher.reshape(len(teacher), -1, student.shape[-1])
    return teacher.reshape(-1, student.shape[-1])


class _Loss(torch.autograd.Function):
    """(kind, numbers, temperature of the diagnostics or 0, *Rows) -> (loss, diagnostics or an empty tensor)."""

    @staticmethod
    def forward(
        kind: str,
        numbers: Numbers,
        temperature: float,
        student: Tensor,  # the tensors by name: with *rows the compiler does not see that there is no ctx
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
        if torch.compiler.is_compiling():  # the compiler does not trace a function inside another's backward pass
            gradient = torch.ops.polydistill.gradient(ctx.kind, list(ctx.numbers), upstream, *ctx.saved_tensors)
        elif upstream is not None:
            gradient = _Gradient.apply(ctx.kind, ctx.numbers, upstream, *ctx.saved_tensors)  # type: ignore[no-untyped-call]
        return (None, None, None, gradient, *([None] * (N_TENSORS - 1)))

    @staticmethod
    def vmap(info: Any, in_dims: Any, kind: str, numbers: Numbers, temperature: float, *rows: Any) -> Any:
        joined = _join(info.batch_size, in_dims[3:], rows)
        loss, diagnosed = _Loss.apply(kind, numbers, temperature, *joined)  # type: ignore[no-untyped-call]
        size = info.batch_size
        return (loss.view(size, -1), diagnosed.view(size, diagnosed.shape[0] // size, N_DIAGNOSTICS)), (0, 0)


class _EagerLoss(torch.autograd.Function):
    """:class:`_Loss` without transforms: for a function that can be transformed, torch takes as long as several
    operations to bind the arguments. The first argument is whether a gradient may be wanted."""

    @staticmethod
    def forward(ctx: Any, learns: bool, kind: str, numbers: Numbers, temperature: float, *rows: Tensor | None) -> Any:
        given = Rows(*rows)  # type: ignore[arg-type]
        few = learns and given.student.numel() <= FEW_SCORES
        found = launch(
            kind,
            numbers,
            given,
            loss=True,
            gradient=few,
            gradient_type=torch.float32,  # rounded once, after the product with the upstream gradient
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
        # create_graph, which may want a second derivative, or a backward pass that is mapped or compiled
        careful = torch.is_grad_enabled() or _are_transforms_active() or torch.compiler.is_compiling()
        if careful or upstream is None:
            return (None, *_Loss.backward(ctx, upstream, _))
        if ctx.gradient is None:
            gradient = compute_gradient(ctx.kind, ctx.numbers, upstream, Rows(*ctx.saved_tensors), ctx.sums)
        else:
            gradient = torch.empty_like(ctx.gradient, dtype=ctx.gradient_type)
            torch.mul(ctx.gradient, upstream.unsqueeze(1), out=gradient)
        return (None, None, None, None, gradient, *([None] * (N_TENSORS - 1)))


class _Gradient(torch.autograd.Function):
    """(kind, numbers, upstream ``(rows,)``, *Rows) -> gradient of the student's scores."""

    @staticmethod
    def forward(kind: str, numbers: Numbers, upstream: Tensor, *rows: Tensor | None) -> Any:
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
    def vmap(info: Any, in_dims: Any, kind: str, numbers: Numbers, upstream: Tensor, *rows: Any) -> Any:
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
