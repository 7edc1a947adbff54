"""A loss together with its gradient, or with the diagnostics of each sample, from one pass over the scores.

The contract: loss, gradient and diagnostics are those of the objective, of autograd, and of
:func:`~polydistill.losses.gradients.diagnostics`; on the fused path one kernel computes all of them that are wanted.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from polydistill.losses.backend import Rows, fused_diagnosis, fused_gradient
from polydistill.losses.checks import (
    accept_labels,
    accept_pair,
    accept_single,
    inspect_values,
    require,
)
from polydistill.losses.description import Description, by_kernel, compute, compute_closed
from polydistill.losses.gradients import Diagnostics, diagnostics
from polydistill.losses.ignored import find_counted, most_likely, set_aside, silence
from polydistill.losses.objectives import Objective, get_objective


class ValueAndGrad(NamedTuple):
    """A loss and its gradient.

    Attributes:
        loss: ``(batch,)``, without the weights.
        gradient: of the sum of weight times loss, shaped as the student's scores.
        diagnostics: of each sample, or None.
    """

    loss: Tensor
    gradient: Tensor
    diagnostics: Diagnostics | None


def value_and_grad(
    name: str,
    student: Tensor,
    teacher: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    row_weights: Tensor | None = None,
    with_diagnostics: bool = False,
    **options: Any,
) -> ValueAndGrad:
    r"""The loss and its gradient in one pass, for training steps that need no autograd between scores and loss.

    .. math:: L_s, \quad \frac{\partial}{\partial z} \sum_s w_s L_s

    Cannot be compiled, nor mapped by vmap. Pass the gradient on with ``scores.backward(gradient)``. For the mean over
    the batch the weights are 1 / batch.

    Args:
        name: of the objective, in ``OBJECTIVES``.
        student: ``(batch, classes)`` or ``(students, batch, classes)`` scores, floating. Detached.
        teacher: scores of the same shape, where the objective (or the diagnostics) needs them; or an ensemble, with a
            dimension of members before the others.
        labels: ``(..., batch)`` integers, or ``(..., batch, classes)`` probabilities, where the objective needs them.
            Diagnostics go by the most likely class.
        row_weights: w, ``(..., batch)``, float32 (float64 for float64 scores); None: 1.
        with_diagnostics: also compute the diagnostics of each sample; needs the teacher.
        options: of the objective. Its ``check_values=True`` also checks the weights, and what only the diagnostics use.
            Every objective takes ``ignore_index``: such a sample's loss, gradient and diagnostics are 0.

    Raises:
        RuntimeError: under torch.compile.
        ValueError: an unknown name, a shape or device that does not fit, or what the objective raises.
        TypeError: weights of another type, or what the objective raises.

    Example:
        >>> student, teacher = torch.zeros(1, 2), torch.tensor([[500.0, 0.0]])
        >>> value_and_grad("ban", student, teacher, row_weights=torch.tensor([0.5])).gradient.tolist()
        [[-0.25, 0.25]]
    """
    if torch.compiler.is_compiling():
        raise RuntimeError("value_and_grad cannot be compiled: compile the loss itself, or call this outside")
    objective = get_objective(name)
    accept_single(student)
    leaf = student.detach().requires_grad_()
    described = objective.describe(leaf, teacher, labels, **options)
    weights = _check_weights(student, row_weights, bool(options.get("check_values")))
    rows, temperature, fused = described.rows, None, by_kernel(described)
    if with_diagnostics:
        rows, temperature = _complete(objective, described.rows, teacher, labels, options)
    if fused:
        return _by_kernel(described._replace(rows=rows), weights, temperature)
    closed = compute_closed(described)
    if closed is not None:
        loss, gradient = closed
        gradient = (gradient if weights is None else gradient.mul_(weights.unsqueeze(-1))).to(student.dtype)
    else:
        with torch.enable_grad():
            loss = compute(described)
        upstream = torch.ones_like(loss) if weights is None else weights.to(loss.dtype)
        (gradient,) = torch.autograd.grad(loss, leaf, upstream)
    found = None if temperature is None else _diagnose(objective, rows, temperature, described.counted)
    return ValueAndGrad(loss.detach(), gradient, found)


def _by_kernel(described: Description, weights: Tensor | None, temperature: float | None) -> ValueAndGrad:
    """All from one launch."""
    kind, numbers, rows, counted = described.kind, described.numbers, described.rows, described.counted
    if counted is not None:  # the kernel's gradient knows nothing of what is done to the loss afterwards
        weights = counted.float() if weights is None else weights * counted
    found = fused_gradient(kind, numbers, rows, weights, temperature)
    assert found.loss is not None
    assert found.gradient is not None
    diagnosed = None if found.diagnostics is None else _read(found.diagnostics, counted)
    return ValueAndGrad(silence(found.loss, counted), found.gradient, diagnosed)


def loss_with_diagnostics(
    name: str, student: Tensor, teacher: Tensor, labels: Tensor | None = None, **options: Any
) -> tuple[Tensor, Diagnostics]:
    """The loss, with its graph, and the diagnostics of each sample.

    Args:
        name: of the objective, in ``OBJECTIVES``.
        student: ``(batch, classes)`` or ``(students, batch, classes)`` scores, floating. Gradient flows.
        teacher: scores of the same shape, or an ensemble, with a dimension of members before the others; also where
            the objective itself does not take them. Detached.
        labels: ``(..., batch)`` integers, or ``(..., batch, classes)`` probabilities, where the objective needs them.
            The diagnostics split the gradient at the labels (the most likely classes), or without labels at the
            teacher's maxima.
        options: of the objective. Its ``check_values=True`` also checks what only the diagnostics use.

    Returns:
        the loss ``(..., batch)``, and the diagnostics, with the teacher at the objective's temperature where only the
        teacher is tempered, both sides at it where both are of Q-values, and at T = 1 otherwise.

    Raises:
        ValueError: an unknown name, or what the objective raises.
        TypeError: what the objective raises.

    Example:
        >>> loss, found = loss_with_diagnostics("ban", torch.zeros(1, 2), torch.tensor([[500.0, 0.0]]))
        >>> found.teacher_confidence.item(), round(loss.item(), 4)
        (1.0, 0.6931)
    """
    objective = get_objective(name)
    described = objective.describe(student, teacher, labels, **options)
    rows, temperature = _complete(objective, described.rows, teacher, labels, options)
    if not by_kernel(described):
        return compute(described), _diagnose(objective, rows, temperature, described.counted)
    loss, found = fused_diagnosis(described.kind, described.numbers, rows, temperature)
    return silence(loss, described.counted), _read(found, described.counted)


def _complete(
    objective: Objective, rows: Rows, teacher: Tensor | None, labels: Tensor | None, options: dict[str, Any]
) -> tuple[Rows, float]:
    """The rows with the teacher and labels that the diagnostics need, and the temperature of their teacher's side: the
    objective's if it is in the unit of the teacher's scores, else 1."""
    if teacher is None:
        raise ValueError(f"diagnostics compare with a teacher, and {objective.name} was given none: pass its scores")
    _, teacher = accept_pair(rows.student, teacher, mask=rows.mask)
    if labels is not None:
        labels = most_likely(accept_labels(rows.student, labels, probabilities=True), options.get("ignore_index"))
        labels = set_aside(labels, find_counted(labels, options.get("ignore_index")))
    if options.get("check_values"):
        inspect_values(rows.student, teacher, labels, mask=rows.mask)
    temperature = options.get("temperature", objective.default("temperature")) if objective.sharpens else 1.0
    return rows._replace(teacher=teacher, labels=labels), float(temperature)


def _read(diagnosed: Tensor, counted: Tensor | None) -> Diagnostics:
    """The diagnostics from a kernel's output."""
    agreement, *rest = diagnosed.unbind(dim=-1)
    return _silence_all(Diagnostics(agreement > 0.5, *rest), counted)


def _diagnose(objective: Objective, rows: Rows, temperature: float, counted: Tensor | None) -> Diagnostics:
    """The diagnostics by the plain formulas."""
    student, teacher, labels, mask, *_ = rows
    assert teacher is not None
    of_student = objective.temperature_of_student(temperature)
    found = diagnostics(student, teacher, labels, temperature=temperature, student_temperature=of_student, mask=mask)
    return _silence_all(found, counted)


def _silence_all(found: Diagnostics, counted: Tensor | None) -> Diagnostics:
    return Diagnostics(*(silence(values, counted) for values in found))


def _check_weights(student: Tensor, weights: Tensor | None, check_values: bool) -> Tensor | None:
    if weights is None:
        return None
    if not isinstance(weights, Tensor) or not weights.dtype.is_floating_point:
        raise TypeError(f"row_weights must be a floating tensor, got {getattr(weights, 'dtype', weights)}")
    if weights.shape != student.shape[:-1]:
        raise ValueError(f"row_weights must be of shape {tuple(student.shape[:-1])}, got {tuple(weights.shape)}")
    if weights.device != student.device:
        raise ValueError(f"row_weights must be on the student's device {student.device}, got {weights.device}")
    if check_values:
        require("row_weights", weights.isfinite(), "must be finite", weights)
    return weights.detach()
