r"""The control losses of born-again networks that normalise over the batch (Furlanello et al. 2018, section 3.2).

Symbols: z student scores, t teacher scores, y label, s sample, b batch size; q = softmax(z), p = softmax(t),
c = max p, the teacher's confidence.

The contract: ``(batch, classes)`` scores in, ``(batch,)`` out, never reduced; the factor of the batch is in each
value, so that the mean over the batch is the paper's sum. A sample's value depends on the rest of its batch: in
data-parallel training ``group`` makes that the batch of all processes. The teacher is detached, computation is in at
least float32, and a class whose teacher score is -inf has p = 0. An ensemble's p is the mean of its members' softmaxes.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from polydistill.losses.backend import Rows, fused_confidence, numbers, uses_kernels
from polydistill.losses.checks import accept_labels, accept_pair, describe, inspect_values, promote
from polydistill.losses.description import Description, computed
from polydistill.losses.ignored import find_counted, set_aside, silence
from polydistill.losses.probabilities import (
    find_classes,
    join_members,
    label_cross_entropy,
    lowest,
    soft_cross_entropy,
    student_log_probabilities,
)


@computed
def cwtm(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    ignore_index: int | None = None,
    check_values: bool = False,
) -> Description:
    r"""Confidence-weighted by teacher max: cross-entropy with the labels, weighted by the teacher's confidence.

    .. math:: -\frac{b \, c_s}{\sum_u c_u} \ln q_{y_s}, \quad c_s = \max_i p_{i,s}

    Furlanello et al. 2018, eq. 10: the mean over the batch is the paper's sum with normalised weights. The teacher's
    maximum counts even where it is on a wrong class, as in the paper. With equal confidences this is
    :func:`cross_entropy`.

    Args:
        student: ``(batch, classes)`` scores, floating, finite. Gradient flows.
        teacher: ``(batch, classes)`` scores; ``-inf`` excludes a class. Or ``(members, batch, classes)``: an ensemble,
            whose softmaxes are averaged. Detached.
        labels: ``(batch,)`` integers in ``[0, classes)``, or ``(batch, classes)`` probabilities.
        group: processes that share the batch (``torch.distributed.group.WORLD`` for all of them), whose sums are
            added up, one all-reduce of two numbers; None: this process's batch is the whole batch.
        ignore_index: a label that marks padding: the sample's loss is 0 and has no gradient, see
            :mod:`~polydistill.losses.ignored`. None: no label is ignored, not even -100.
        check_values: also check that scores are finite and labels in range (waits for the device).

    Returns:
        ``(batch,)`` in nats, float32 (float64 for float64 input), >= 0.

    Raises:
        ValueError: a shape, device or value is out of range.
        TypeError: an argument of another type.

    Example:
        >>> teacher = torch.tensor([[0.0, 0.0], [500.0, 0.0]])  # confidences 1/2 and 1, so weights 2/3 and 4/3
        >>> [round(x / 0.6931472, 4) for x in cwtm(torch.zeros(2, 2), teacher, torch.tensor([0, 1])).tolist()]
        [0.6667, 1.3333]
    """
    student, teacher = accept_pair(student, teacher)
    labels = accept_labels(student, labels, probabilities=True)
    counted = find_counted(labels, ignore_index)
    labels = set_aside(labels, counted)
    if check_values:
        inspect_values(student, teacher, labels)
    confidence = _confidence(student, teacher)
    rows = Rows(student, labels=labels, values=confidence / _batch_mean(confidence, group, counted))
    return Description("label", numbers.Target(label_weight=1.0), rows, _cwtm, counted=counted)


def _cwtm(student: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    return label_cross_entropy(promote(student), labels) * weights


@computed
def uniform_confidence(
    student: Tensor,
    teacher: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    rows: Tensor | None = None,
    check_values: bool = False,
) -> Description:
    r"""Cross-entropy with a teacher made equally confident in every sample: dark knowledge without the weighting.

    .. math:: -\sum_i p'_i \ln q_i, \quad p' = \bar c \, e_{i^*} + (1 - \bar c) \, \tilde p,
        \quad i^* = \arg\max p, \quad \bar c = \frac{1}{b} \sum_u c_u

    Here p~ is p without its maximum, renormalised. Our own control, the reverse of :func:`cwtm`, which keeps the
    teacher's confidences and drops its dark knowledge. Where the teacher excludes every class but one,
    all of p' is on that class.

    Args:
        student: ``(batch, classes)`` scores, floating, finite. Gradient flows.
        teacher: ``(batch, classes)`` scores; ``-inf`` excludes a class. Or ``(members, batch, classes)``: an ensemble,
            whose softmaxes are averaged. Detached.
        group: processes that share the batch, see :func:`cwtm`.
        rows: ``(batch,)`` bool, False for padding: the sample's loss is 0 and has no gradient, and its confidence is
            not in the mean. None: all rows count.
        check_values: also check that scores are finite (waits for the device).

    Returns:
        ``(batch,)`` in nats, float32 (float64 for float64 input), >= 0.

    Raises:
        ValueError: a shape, device or value is out of range.
        TypeError: an argument of another type.

    Example:
        >>> teacher = torch.tensor([[0.0, 0.0], [500.0, 0.0]])  # confidences 1/2 and 1: both become 3/4
        >>> student = torch.tensor([[0.0, -500.0], [0.0, -500.0]])  # a quarter on what the student excludes
        >>> uniform_confidence(student, teacher).tolist()
        [125.0, 125.0]
    """
    student, teacher = accept_pair(student, teacher, check_values=check_values)
    if rows is not None:
        _check_rows(student, rows)
    if not uses_kernels(student):
        teacher = join_members(student, teacher)  # here, where its confidence is asked for too
    confidence = _confidence(student, teacher)
    shares = _batch_mean(confidence, group, rows).expand_as(confidence)
    given = Rows(student, teacher, values=shares)
    return Description("rest", numbers.Target(), given, _uniform_confidence, counted=rows)


def _uniform_confidence(student: Tensor, teacher: Tensor, mean_confidence: Tensor) -> Tensor:
    teacher, mean_confidence = promote(teacher), mean_confidence.unsqueeze(-1)
    is_best = find_classes(teacher.argmax(dim=-1), teacher.shape[-1])
    rest = teacher.masked_fill(is_best, lowest(teacher)).softmax(dim=-1)
    target = rest * (1.0 - mean_confidence) + is_best * mean_confidence
    return soft_cross_entropy(target, student_log_probabilities(student))


def _confidence(student: Tensor, teacher: Tensor) -> Tensor:
    """c of each sample, ``(..., batch)``."""
    if uses_kernels(student):
        return fused_confidence(student, teacher)
    return promote(join_members(student, teacher)).softmax(dim=-1).amax(dim=-1)


def _batch_mean(values: Tensor, group: dist.ProcessGroup | None, rows: Tensor | None) -> Tensor:
    """The mean of ``values (..., batch)`` over the ``rows`` that count of the batch of all processes in ``group``,
    ``(..., 1)``; 1 where none counts, so that a division by it stays finite."""
    if group is None and rows is None:
        return values.mean(dim=-1, keepdim=True)
    total = silence(values, rows).sum(dim=-1, keepdim=True)
    count = torch.full_like(total, values.shape[-1]) if rows is None else rows.sum(dim=-1, keepdim=True).to(total)
    sums = torch.stack([total, count])
    if group is not None:
        dist.all_reduce(sums, group=group)
    mean = sums[0] / sums[1]
    return mean if rows is None else torch.where(sums[1] > 0, mean, 1.0)


def _check_rows(student: Tensor, rows: object) -> None:
    if not isinstance(rows, Tensor) or rows.dtype is not torch.bool:
        raise TypeError(f"rows must be a bool tensor, got {describe(rows)}")
    if rows.shape != student.shape[:-1]:
        raise ValueError(f"rows must be of shape {tuple(student.shape[:-1])}, got {tuple(rows.shape)}")
    if rows.device != student.device:
        raise ValueError(f"rows must be on the student's device {student.device}, got {rows.device}")
