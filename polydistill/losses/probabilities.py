"""Probabilities of both sides, without a NaN where one is 0.

Symbols: z student scores, t teacher scores, T temperature, q = softmax(z), p = softmax(t / T). A class that ``mask``
takes out, or that the teacher excludes (score -inf) has probability 0; so has one whose score is the lowest number of
one type on both sides, as callers mask, at any T. Its log-probability is held at the type's lowest finite number, so
that 0 log 0 is 0 in the loss and in its gradient; -inf would make it NaN.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from polydistill.losses.checks import are_probabilities

LOG2_E = math.log2(math.e)
FEW = 1024  # numbers, up to which an operation's time is that of its call, not of its work
# torch's default, -100, would give a label of -100 the loss 0; no label is this number
IGNORE_NO_LABEL = torch.iinfo(torch.int64).min


# looked up for each batch; finfo takes as long as a small tensor operation
_LOWEST = {dtype: torch.finfo(dtype).min for dtype in (torch.float32, torch.float64)}


def lowest(scores: Tensor) -> float:
    """The lowest finite number of the type of ``scores``, float32 or float64: -3.4e38 for float32."""
    return _LOWEST[scores.dtype]


def drop_classes(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Scores whose softmax gives the classes in ``mask`` probability 0 and no gradient.

    A row whose other classes are all -inf becomes NaN, as it does without a mask; otherwise the classes in ``mask``
    would share the probability.
    """
    if mask is None:
        return scores
    is_empty = ((scores == -math.inf) | mask).all(-1, keepdim=True) & ~mask.all(-1, keepdim=True)
    # a NaN in a class that mask takes out makes softmax and gradient of the row NaN
    filling = scores.new_full(is_empty.shape, lowest(scores)).masked_fill(is_empty, math.nan)
    return torch.where(mask, filling, scores)


def student_log_probabilities(student: Tensor, mask: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """``log softmax(z / T)``, ``(batch, classes)``, in at least float32; finite. Gradient flows."""
    log_q = _temper(student, mask, temperature).log_softmax(-1)
    # a score that masks its class by the type's lowest number is -inf once it is divided by less than 1
    return log_q if temperature >= 1.0 else log_q.clamp_min(_LOWEST[log_q.dtype])


def teacher_log_probabilities(
    teacher: Tensor, mask: Tensor | None = None, temperature: float = 1.0, *, ensemble: bool = False
) -> Tensor:
    """``log softmax(t / T)``, ``(batch, classes)``, in at least float32, held above -inf.

    Of an ensemble, with its dimension of members first, it is the log of the mean of its members' softmaxes.
    """
    if ensemble:
        log_p = ensemble_log_probabilities(teacher, mask, temperature)
    else:
        log_p = _temper(teacher, mask, temperature).log_softmax(-1)
    # in place: nothing else uses it. Not clamp_, which vmap runs row by row
    return log_p.clamp_min_(_LOWEST[log_p.dtype])


def join_members(student: Tensor, teacher: Tensor, temperature: float = 1.0, mask: Tensor | None = None) -> Tensor:
    """An ensemble as one teacher; a single teacher is returned as it is.

    Its scores are T times the log of the mean of the members' ``softmax(t / T)``, so that tempered by T again they give
    that mean.

    Args:
        student: ``(..., batch, classes)``, only its shape counts.
        teacher: the same shape, or with a dimension of members before the others.
        temperature: T > 0, of each member.
        mask: ``(classes,)`` or as ``student``; these classes leave each member's softmax.

    Returns:
        the teacher; of an ensemble a new tensor as ``student``, in at least float32.
    """
    if teacher.dim() == student.dim():
        return teacher
    return ensemble_log_probabilities(teacher, mask, temperature) * temperature


def ensemble_log_probabilities(teacher: Tensor, mask: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """The log of the mean of ``softmax(t / T)`` over the members, the first dimension; -inf where all exclude a class.

    Members are added one after another, so that no tensor of the ensemble's size is made.
    """
    total = _temper(teacher[0], mask, temperature).log_softmax(-1)
    for member in teacher[1:]:
        total = torch.logaddexp(total, _temper(member, mask, temperature).log_softmax(-1))
    return total - math.log(len(teacher))


def _temper(scores: Tensor, mask: Tensor | None, temperature: float) -> Tensor:
    """The scores that go into the softmax: at least float32, divided by T, masked."""
    if scores.dtype not in _LOWEST:
        scores = scores.float()
    if temperature != 1.0:
        scores = scores / temperature
    return scores if mask is None else drop_classes(scores, mask)


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``sum_i p_i (log p_i - log q_i)``, ``(batch,)``, from log-probabilities above -inf. Gradient flows."""
    return (probabilities(log_p) * (log_p - log_q)).sum(-1)


def probabilities(log_p: Tensor) -> Tensor:
    """``exp log_p``, ``(batch, classes)``, a new tensor. Gradient flows.

    Not exp: on a CPU it takes ten times as long where it underflows, as sharpened targets mostly do. The softmax of
    log-probabilities gives the probabilities too: in one operation where exp2 needs two, and one where exp2 needs three
    in the backward pass. With many numbers the softmax takes longer.
    """
    return log_p.softmax(-1) if log_p.requires_grad or log_p.numel() <= FEW else (log_p * LOG2_E).exp2_()


def soft_cross_entropy(p: Tensor, log_q: Tensor) -> Tensor:
    """``-sum_i p_i log q_i``, ``(batch,)``."""
    return (p * log_q).sum(dim=-1).neg()


def label_cross_entropy(student: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """``-log q_y``, ``(batch,)``, with ``label_smoothing`` of the target spread over all classes; or with labels
    ``(batch, classes)`` that are probabilities their sum of ``-y_i log q_i``."""
    scores = student if student.dim() == 2 else student.flatten(0, -2)
    if are_probabilities(labels):
        target = labels.reshape(scores.shape).to(scores.dtype)
        loss = F.cross_entropy(scores, target, reduction="none", label_smoothing=label_smoothing)
        return loss.view(student.shape[:-1])
    loss = F.cross_entropy(
        scores, labels.flatten(), reduction="none", ignore_index=IGNORE_NO_LABEL, label_smoothing=label_smoothing
    )
    return loss if student.dim() == 2 else loss.view(labels.shape)


def add_label_term(soft: Tensor, student: Tensor, labels: Tensor | None, weight: float) -> Tensor:
    """``soft`` plus ``weight`` times the cross-entropy with the labels, where there are some. ``(batch,)``."""
    return soft if labels is None else torch.add(soft, label_cross_entropy(student, labels), alpha=weight)


def find_classes(labels: Tensor, n_classes: int) -> Tensor:
    """``(batch, classes)`` bool, True at each row's label. (``one_hot`` would wait for the device.)"""
    return labels.unsqueeze(-1) == torch.arange(n_classes, device=labels.device)
