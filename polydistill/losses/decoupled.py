r"""Decoupled knowledge distillation (Zhao et al. 2022), computed in log space.

Symbols: z student scores, t teacher scores, y label, T temperature; b = (p_y, 1 - p_y) the binary split into target
and rest, p^ the softmax over the classes other than y. With m = x_y - logsumexp of the other scores, the split is
(sigmoid(m), sigmoid(-m)), so that no probability is subtracted from 1 and none is divided by another.

The contract: ``(batch, classes)`` scores in, ``(batch,)`` out, never reduced; the teacher is detached, computation
is in at least float32, and a class whose teacher score is -inf has probability 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from polydistill.losses.backend import Rows, numbers
from polydistill.losses.blocks import by_rows
from polydistill.losses.checks import (
    accept_labels,
    accept_pair,
    check_temperature,
    check_weight,
    inspect_values,
    promote,
)
from polydistill.losses.description import Description, computed
from polydistill.losses.ignored import find_counted, set_aside
from polydistill.losses.probabilities import add_label_term, find_classes, join_members, kl_divergence, lowest


class _Split(NamedTuple):
    """``log_split (batch, 2)``: ln p_y and ln(1 - p_y); ``log_rest (batch, classes)``: ln p^, lowest at y."""

    log_split: Tensor
    log_rest: Tensor


@computed
def dkd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    temperature: float = 4.0,
    label_weight: float = 1.0,
    alpha: float = 1.0,
    beta: float = 8.0,
    ignore_index: int | None = None,
    check_values: bool = False,
) -> Description:
    r"""Target and non-target knowledge, each with a weight of its own, plus cross-entropy with the labels.

    .. math:: -w_L \ln q_y
        + T^2 \big(\alpha \, \mathrm{KL}(b^T \| b^S) + \beta \, \mathrm{KL}(\hat p^T \| \hat p^S)\big)

    Zhao et al. 2022, section 3. The label term's softmax is of the scores as they are, all others of the scores
    divided by T. With alpha = 1 and beta = 1 - p_y (per sample) the bracket would be the KL of :func:`hinton_kd`.
    Departure: log space, so that it stays finite where the published code does not (scores around 80 in float32).

    Args:
        student: ``(batch, classes)`` scores, floating, finite. Gradient flows.
        teacher: ``(batch, classes)`` scores; ``-inf`` excludes a class. Or ``(members, batch, classes)``: an ensemble,
            whose tempered softmaxes are averaged. Detached.
        labels: ``(batch,)`` integers in ``[0, classes)``.
        temperature: T > 0, of both sides.
        label_weight: w_L >= 0.
        alpha: weight of the target's term, >= 0.
        beta: weight of the other classes' term, >= 0.
        ignore_index: a label that marks padding: the sample's loss is 0 and has no gradient, see
            :mod:`~polydistill.losses.ignored`. None: no label is ignored, not even -100.
        check_values: also check that scores are finite and labels in range (waits for the device).

    Returns:
        ``(batch,)`` in nats, float32 (float64 for float64 input), >= 0 up to rounding.

    Raises:
        ValueError: a shape, device, ``temperature``, weight or value is out of range.
        TypeError: an argument of another type.

    Example:
        >>> scores = torch.tensor([[1.0, 2.0, 4.0]])
        >>> dkd(scores, scores, torch.tensor([0]), label_weight=0.0).item()
        0.0
    """
    student, teacher = accept_pair(student, teacher)
    labels = accept_labels(student, labels)
    counted = find_counted(labels, ignore_index)
    labels = set_aside(labels, counted)
    check_temperature(temperature)
    for name, weight in (("label_weight", label_weight), ("alpha", alpha), ("beta", beta)):
        check_weight(name, weight)
    if check_values:
        inspect_values(student, teacher, labels)
    given = numbers.Decoupled(temperature, label_weight, alpha, beta)
    return Description("decoupled", given, Rows(student, teacher, labels), _dkd, given._asdict(), counted)


@by_rows
def _dkd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    label_weight: float,
    alpha: float,
    beta: float,
) -> Tensor:
    student, teacher = promote(student), promote(join_members(student, teacher, temperature))
    target = find_classes(labels, student.shape[-1])
    # held above -inf, which a class masked by the type's lowest number would be where T is below 1
    of_student = _split((student / temperature).clamp(min=lowest(student)), labels, target)
    of_teacher = _split(teacher / temperature, labels, target)
    soft = alpha * kl_divergence(of_teacher.log_split.clamp(min=lowest(teacher)), of_student.log_split)
    soft = soft + beta * _rest_divergence(of_teacher.log_rest, of_student.log_rest, target)
    return add_label_term(soft * temperature**2, student, labels, label_weight)


def _split(scores: Tensor, labels: Tensor, target: Tensor) -> _Split:
    others = scores.masked_fill(target, lowest(scores))
    margin = scores.gather(-1, labels.unsqueeze(-1)) - others.logsumexp(dim=-1, keepdim=True)
    return _Split(F.logsigmoid(torch.cat([margin, -margin], dim=-1)), others.log_softmax(dim=-1))


def _rest_divergence(log_p: Tensor, log_q: Tensor, target: Tensor) -> Tensor:
    """``KL(p^T || p^S)``; 0 where the teacher excludes every other class, or there is none."""
    p = log_p.exp().masked_fill(target, 0.0)
    return (p * (log_p.clamp(min=lowest(log_p)) - log_q)).sum(dim=-1)
