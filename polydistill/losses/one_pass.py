"""A loss together with its gradient, or with what it says of each sample, from one pass over the scores.

The contract: the values are those of the objective, its gradient by autograd, and
:func:`~polydistill.losses.gradients.diagnostics`; on the fused path one kernel computes all that is asked for.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from polydistill.losses.backend import Extras, asking_for
from polydistill.losses.checks import (
    accept_labels,
    accept_pair,
    accept_single,
    check_temperature,
    inspect_values,
    require,
)
from polydistill.losses.gradients import Diagnostics, diagnostics
from polydistill.losses.ignored import find_counted, set_aside, silence
from polydistill.losses.objectives import Objective, get_objective


class ValueAndGrad(NamedTuple):
    """A loss and its gradient.

    Attributes:
        loss: ``(batch,)``, without the weights.
        gradient: as the student's scores: that of the sum of weight times loss.
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

    Not to be compiled or mapped. Pass the gradient on with ``scores.backward(gradient)``. For the mean over the batch
    the weights are 1 / batch.

    Args:
        name: of the objective, in ``OBJECTIVES``.
        student: ``(batch, classes)`` or ``(students, batch, classes)`` scores, floating. Taken without its graph.
        teacher: scores of the same shape, where the objective (or the diagnostics) needs them; or an ensemble, with a
            dimension of members before the others.
        labels: ``(..., batch)`` integers, where the objective needs them.
        row_weights: w, ``(..., batch)``, float32 (float64 for float64 scores); None: 1.
        with_diagnostics: also say how each sample stands; needs the teacher.
        options: of the objective. Its ``check_values=True`` also looks at the weights, and at what only the diagnostics
            look at. ``ignore_index`` is one of every objective: such a sample's loss, gradient and diagnostics are 0.

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
    weights = _check_weights(student, row_weights, bool(options.get("check_values")))
    counted = find_counted(labels, options.get("ignore_index"))
    if counted is not None:  # the kernel's gradient knows nothing of what is done to the loss afterwards
        wide = torch.promote_types(student.dtype, torch.float32)
        weights = counted.to(wide) if weights is None else weights * counted
    extras = _ask(objective, student, teacher, labels, with_diagnostics, options)
    extras.with_gradient, extras.row_weights = True, weights
    with torch.enable_grad(), asking_for(extras):
        leaf = student.detach().requires_grad_()
        loss = objective(leaf, teacher, labels, **options)
    gradient = extras.gradient
    if gradient is None:  # the plain formula
        upstream = torch.ones_like(loss) if weights is None else weights.to(loss.dtype)
        (gradient,) = torch.autograd.grad(loss, leaf, upstream)
    found = _found(extras, objective, student, teacher, labels, options) if with_diagnostics else None
    return ValueAndGrad(loss.detach(), gradient, found)


def loss_with_diagnostics(
    name: str, student: Tensor, teacher: Tensor, labels: Tensor | None = None, **options: Any
) -> tuple[Tensor, Diagnostics]:
    """The loss, with its graph, and how each sample stands.

    Args:
        name: of the objective, in ``OBJECTIVES``.
        student: ``(batch, classes)`` or ``(students, batch, classes)`` scores, floating. Gradient flows.
        teacher: scores of the same shape, or an ensemble, with a dimension of members before the others; also where
            the objective itself does not look at them. Detached.
        labels: ``(..., batch)`` integers, where the objective needs them; where there are some, the gradient is split
            at them, and otherwise at the teacher's maxima.
        options: of the objective. Its ``check_values=True`` also looks at what only the diagnostics look at.

    Returns:
        the loss ``(..., batch)``, and the diagnostics, with the teacher at the objective's temperature where only the
        teacher is tempered, and at T = 1 otherwise.

    Raises:
        ValueError: an unknown name, or what the objective raises.
        TypeError: what the objective raises.

    Example:
        >>> loss, found = loss_with_diagnostics("ban", torch.zeros(1, 2), torch.tensor([[500.0, 0.0]]))
        >>> found.teacher_confidence.item(), round(loss.item(), 4)
        (1.0, 0.6931)
    """
    objective = get_objective(name)
    extras = _ask(objective, student, teacher, labels, True, options)
    with asking_for(extras):
        loss = objective(student, teacher, labels, **options)
    return loss, _found(extras, objective, student, teacher, labels, options)


def _ask(
    objective: Objective,
    student: Tensor,
    teacher: Tensor | None,
    labels: Tensor | None,
    with_diagnostics: bool,
    options: dict[str, Any],
) -> Extras:
    if not with_diagnostics:
        return Extras()
    if teacher is None:
        raise ValueError(f"diagnostics compare with a teacher, and {objective.name} was given none")
    _, teacher = accept_pair(student, teacher, mask=options.get("mask"))
    labels = _class_labels(student, labels, options)
    if options.get("check_values"):
        inspect_values(student, teacher, labels, mask=options.get("mask"))
    return Extras(diagnostics_temperature=_temperature(objective, options), teacher=teacher, labels=labels)


def _temperature(objective: Objective, options: dict[str, Any]) -> float:
    """Of the teacher's side: the objective's where it is the teacher's alone."""
    if not objective.tempered:
        return 1.0
    temperature = options.get("temperature", objective.default("temperature"))
    check_temperature(temperature)
    return float(temperature)


def _found(
    extras: Extras,
    objective: Objective,
    student: Tensor,
    teacher: Tensor | None,
    labels: Tensor | None,
    options: dict[str, Any],
) -> Diagnostics:
    assert teacher is not None
    counted = find_counted(labels, options.get("ignore_index"))
    if extras.diagnostics is None:  # the plain formula
        labels, temperature = _class_labels(student, labels, options), _temperature(objective, options)
        found = diagnostics(student, teacher, labels, temperature=temperature, mask=options.get("mask"))
    else:
        agreement, *rest = extras.diagnostics.unbind(dim=-1)
        found = Diagnostics(agreement > 0.5, *rest)
    return Diagnostics(*(silence(values, counted) for values in found))


def _class_labels(student: Tensor, labels: Tensor | None, options: dict[str, Any]) -> Tensor | None:
    """The labels, with a class where the sample does not count."""
    if labels is None:
        return None
    labels = accept_labels(student, labels)
    return set_aside(labels, find_counted(labels, options.get("ignore_index")))


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
