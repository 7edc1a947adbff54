r"""How a student's gradient divides into the label's part and the dark knowledge's part, in closed form.

Furlanello et al. 2018, section 3.2. The gradient of cross-entropy with the teacher is q - p (eq. 5). With * the label
(the teacher's maximum where there are no labels) and p~ the teacher's other classes, renormalised,

.. math:: q - p = p_* (q - e_*) + (1 - p_*)(q - \tilde p)

The first part is the gradient of the label's cross-entropy, weighted by the teacher's confidence in it; the second
is the dark knowledge. (The paper's eq. 7 sums the parts over classes, which gives 0 for the whole; their sizes are
measured by the norms of the two vectors.)

The contract: ``(batch, classes)`` scores in, values per sample out, float32 or better, without gradient.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from polydistill.losses.checks import accept_labels, accept_pair, check_temperature, inspect_values, promote
from polydistill.losses.probabilities import (
    drop_classes,
    find_classes,
    join_members,
    kl_divergence,
    student_log_probabilities,
    teacher_log_probabilities,
)


class GradientShares(NamedTuple):
    """The two parts of the gradient of each sample, each ``(batch,)``.

    Attributes:
        label_share: the first norm over the sum of both, in [0, 1]; 1/2 where both are 0, the value at q = p. The
            share of the dark knowledge is 1 minus it.
        label_norm: ``p* |q - e*|``, Euclidean.
        dark_knowledge_norm: ``(1 - p*) |q - p~|``, Euclidean.
    """

    label_share: Tensor
    label_norm: Tensor
    dark_knowledge_norm: Tensor


class Diagnostics(NamedTuple):
    """Measures of student and teacher on each sample, each ``(batch,)``.

    Attributes:
        agreement: bool, both have the greatest score in the same class (of equal ones the first); for an ensemble the
            greatest p counts.
        teacher_confidence: max p.
        kl: KL(p || q) in nats.
        label_norm: Euclidean norm of the label's part of the gradient, see :class:`GradientShares`.
        dark_knowledge_norm: that of the dark knowledge.
    """

    agreement: Tensor
    teacher_confidence: Tensor
    kl: Tensor
    label_norm: Tensor
    dark_knowledge_norm: Tensor


def gradient_shares(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float = 1.0,
    check_values: bool = False,
) -> GradientShares:
    r"""How much of each sample's gradient comes from the label, and how much from the teacher's dark knowledge.

    .. math:: \frac{|p_* (q - e_*)|}{|p_* (q - e_*)| + |(1 - p_*)(q - \tilde p)|}

    Args:
        student: ``(batch, classes)`` scores, floating, finite. Detached.
        teacher: ``(batch, classes)`` scores; ``-inf`` excludes a class. Or ``(members, batch, classes)``: an ensemble,
            whose tempered softmaxes are averaged. Detached.
        labels: ``(batch,)`` integers in ``[0, classes)``; None: the teacher's maxima. A label that is no class makes
            every value that depends on it NaN.
        temperature: T > 0, of the teacher's side, in the unit of its scores; for Q-values that of :func:`policy_kl`.
        check_values: also check that scores are finite and labels in range (waits for the device).

    Returns:
        the share and the two norms per sample; the mean over samples is the caller's.

    Raises:
        ValueError: a shape, device, ``temperature`` or value is out of range.
        TypeError: an argument of another type.

    Example:
        >>> teacher = torch.tensor([[500.0, 0.0, 0.0]])  # a sure teacher is a label
        >>> gradient_shares(torch.zeros(1, 3), teacher).label_share.item()
        1.0
    """
    _, log_p, log_q, labels = _accept(student, teacher, labels, temperature, None, check_values)
    label_norm, dark_norm = _gradient_norms(log_p.exp(), log_q.exp(), labels)
    total = label_norm + dark_norm
    share = torch.where(total == 0, 0.5, label_norm / total)  # a NaN stays
    return GradientShares(share, label_norm, dark_norm)


def diagnostics(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float = 1.0,
    student_temperature: float = 1.0,
    mask: Tensor | None = None,
    check_values: bool = False,
) -> Diagnostics:
    """Agreement, the teacher's confidence, KL and the gradient's two parts, per sample.

    :func:`~polydistill.losses.one_pass.loss_with_diagnostics` gives them along with a loss.

    Args:
        student: ``(batch, classes)`` scores, floating, finite. Detached.
        teacher: ``(batch, classes)`` scores; ``-inf`` excludes a class. Or ``(members, batch, classes)``: an ensemble,
            whose tempered softmaxes are averaged. Detached.
        labels: ``(batch,)`` integers in ``[0, classes)``; None: the teacher's maxima. A label that is no class makes
            every value that depends on it NaN.
        temperature: T > 0, of the teacher's side, in the unit of its scores; for Q-values that of :func:`policy_kl`.
        student_temperature: T > 0, of the student's side: 1 for scores that are logits, ``temperature`` for Q-values.
        mask: ``(batch, classes)`` or ``(classes,)`` bool; True takes a class out of both sides. In a row that is left
            without a class everything is 0, apart from the agreement.
        check_values: also check that scores are finite, labels in range and a class left in each row (waits for the
            device).

    Raises:
        ValueError: a shape, device, temperature or value is out of range.
        TypeError: an argument of another type.

    Example:
        >>> found = diagnostics(torch.tensor([[1.0, 0.0]]), torch.tensor([[500.0, 0.0]]))
        >>> found.agreement.item(), found.teacher_confidence.item()
        (True, 1.0)
    """
    teacher, log_p, log_q, labels = _accept(
        student, teacher, labels, temperature, mask, check_values, student_temperature
    )
    p, q = log_p.exp(), log_q.exp()
    if mask is not None:  # where mask takes every class out, the softmax of equal scores is not 0 by itself
        is_bare = mask.all(dim=-1, keepdim=True)
        p, q = p.masked_fill(is_bare, 0.0), q.masked_fill(is_bare, 0.0)
    agreement = drop_classes(promote(student), mask).argmax(dim=-1)
    agreement = agreement == drop_classes(teacher, mask).argmax(dim=-1)
    return Diagnostics(agreement, p.amax(dim=-1), kl_divergence(log_p, log_q), *_gradient_norms(p, q, labels))


def _accept(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None,
    temperature: float,
    mask: Tensor | None,
    check_values: bool,
    student_temperature: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(t, ln p, ln q, labels)`` in full precision, an ensemble's t as one teacher's."""
    student, teacher = accept_pair(student, teacher, mask=mask)
    check_temperature(temperature)
    check_temperature(student_temperature)
    labels = None if labels is None else accept_labels(student, labels)
    if check_values:
        inspect_values(student, teacher, labels, mask=mask)
    student, teacher = promote(student.detach()), promote(join_members(student, teacher, temperature, mask))
    if labels is None:
        labels = drop_classes(teacher, mask).argmax(dim=-1)
    log_p = teacher_log_probabilities(teacher, mask, temperature)
    return teacher, log_p, student_log_probabilities(student, mask, student_temperature), labels


def _gradient_norms(p: Tensor, q: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """``|p* (q - e*)|`` and ``|(1 - p*)(q - p~)|``. 1 - p* and 1 - q* are sums of the others: no digits cancel."""
    n_classes = p.shape[-1]
    target = find_classes(labels, n_classes)
    p = p.masked_fill(~target.any(dim=-1, keepdim=True), math.nan)  # a label that is no class: NaN, as in the losses
    p_others, q_others = p.masked_fill(target, 0.0), q.masked_fill(target, 0.0)
    # clamped: after an index out of bounds the process could not use its GPU any more
    p_label = p.gather(-1, labels.clamp(0, n_classes - 1).unsqueeze(-1))
    of_label = torch.where(target, -q_others.sum(dim=-1, keepdim=True), q) * p_label
    of_others = p_others.sum(dim=-1, keepdim=True) * q - p_others
    return torch.linalg.vector_norm(of_label, dim=-1), torch.linalg.vector_norm(of_others, dim=-1)
