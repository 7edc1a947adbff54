r"""Teachers of many classes, of whose probabilities only the k greatest are kept, and that of the rest as one.

Symbols: z student scores, t teacher scores, T temperature. The classes are put into k + 1 groups: each of the teacher's
k most likely ones is a group of its own, the rest is one. p and q are the probabilities of the groups, sums of the
softmaxes of t / T and z. KL(p || q) is a true divergence: it is never negative, and 0 only where the student gives each
group the teacher's probability. It is at most the divergence over all classes, which a larger k comes nearer to (the
data-processing inequality; Cover and Thomas 2006, section 2.3 and theorem 2.7.1). Without the group of the rest, of k
probabilities that do not add up to 1, the sum can be negative; of probabilities divided by their sum, it does not say
how much the student may give to the rest.

The contract: ``(batch, classes)`` scores in, ``(batch,)`` out, never reduced; the teacher is detached, and computation
is in at least float32. The probability of the rest is summed, never 1 minus the others. Of the teacher, no more than
``(batch, k + 1)`` numbers are needed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from polydistill.losses.blocks import by_rows
from polydistill.losses.checks import (
    accept_labels,
    accept_pair,
    accept_single,
    check_integer,
    check_integers,
    check_temperature,
    check_weight,
    describe,
    inspect_values,
    promote,
)
from polydistill.losses.ignored import find_counted, set_aside, silence
from polydistill.losses.probabilities import add_label_term, join_members, kl_divergence, lowest


class TopK(NamedTuple):
    """A teacher's k most likely classes for each sample, and the rest as one.

    They may be of any floating type, as float16 to be stored: a loss makes them add up to 1 again.

    Attributes:
        values: ``(..., k)`` log-probabilities of these classes, in any order.
        indices: ``(..., k)`` integers, which classes they are; each once.
        rest: ``(...)`` log-probability of all other classes together; -inf where it is 0.
    """

    values: Tensor
    indices: Tensor
    rest: Tensor

    def spread(self, classes: int) -> Tensor:
        """``(..., classes)`` log-probabilities: the rest is divided evenly among its classes. At least float32.

        :func:`keep_top_k` finds the same groups and probabilities in them again.

        Args:
            classes: how many there are in all, >= k.
        """
        values, rest = promote(self.values), promote(self.rest).unsqueeze(-1)
        others = max(1, classes - values.shape[-1])
        even = (rest - math.log(others)).expand(*values.shape[:-1], classes)
        return even.scatter(-1, self.indices.long(), values)


def keep_top_k(teacher: Tensor, k: int, *, temperature: float = 1.0) -> TopK:
    r"""A teacher's k greatest probabilities of each sample, and that of all other classes together.

    .. math:: \ln p_i, \quad \ln \sum_{j \notin \mathrm{top}\,k} p_j, \quad p = \mathrm{softmax}(t / T)

    Args:
        teacher: ``(batch, classes)`` scores, or ``(batch, time, classes)``; ``-inf`` excludes a class. Detached.
        k: from 1 to classes.
        temperature: T > 0, in the unit of the scores.

    Returns:
        Log-probabilities in float32 (float64 for float64 input), with the most likely class first.

    Raises:
        ValueError: a shape, ``k`` or ``temperature`` is out of range.
        TypeError: an argument of another type.

    Example:
        >>> kept = keep_top_k(torch.tensor([[0.1, 0.6, 0.1, 0.2]]).log(), 2)
        >>> [round(x, 4) for x in kept.values.exp()[0].tolist()], round(kept.rest.exp().item(), 4)
        ([0.6, 0.2], 0.2)
    """
    scores = promote(accept_single(teacher, "teacher").detach())
    check_integer("k", k, 1, scores.shape[-1])
    check_temperature(temperature)
    scores = scores / temperature
    indices = scores.topk(k, dim=-1).indices
    log_p = _group(scores, indices)
    log_p = log_p.masked_fill(log_p <= lowest(log_p) / 2, -math.inf)  # only of classes that have no probability
    return TopK(log_p[..., :-1], indices, log_p[..., -1])


def top_k_kl(student: Tensor, teacher: TopK, *, check_values: bool = False) -> Tensor:
    r"""KL divergence from the teacher's most likely classes, and the rest as one, to the student's.

    .. math:: \sum_{i \in \mathrm{top}\,k} p_i (\ln p_i - \ln q_i) + p_R (\ln p_R - \ln q_R)

    p_R and q_R are the sums over all other classes. The gradient with respect to z_j is q_j - p_j for the k classes,
    and q_j (1 - p_R / q_R) for the others, which keep their proportions. With k = classes - 1, or classes, it is the
    divergence over all classes. Only the teacher is tempered, by :func:`keep_top_k`; for T on both sides see
    :func:`top_k_kd`.

    Args:
        student: ``(batch, classes)`` scores, or ``(batch, time, classes)``; floating, finite. Gradient flows.
        teacher: of :func:`keep_top_k`, of any floating type, such as stored float16. Detached.
        check_values: also check that scores are finite, and that each class is there and named once (waits for the
            device).

    Returns:
        ``(batch,)``, or ``(batch, time)``, in nats, float32 (float64 for float64 scores), >= 0 up to rounding.

    Raises:
        ValueError: the shapes or devices differ, or a value is out of range.
        TypeError: an argument of another type.

    Example:
        >>> teacher = keep_top_k(torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log(), 1)  # 1/2, and 1/2 for the rest
        >>> student = torch.tensor([[0.25, 0.75, 0.0, 0.0]]).clamp_min(1e-30).log()  # 1/4, and 3/4
        >>> round(top_k_kl(student, teacher).item(), 4)  # (ln 2 + ln 2/3) / 2
        0.1438
    """
    student = accept_single(student)
    _check_top_k(student, teacher)
    if check_values:
        inspect_values(student)
        _inspect_classes(teacher.indices, student.shape[-1])
    values, indices, rest = (tensor.detach() for tensor in teacher)
    return _top_k_kl(student, values, indices.long(), rest)


def top_k_kd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None = None,
    *,
    k: int = 100,
    temperature: float = 4.0,
    label_weight: float = 0.1,
    teacher_weight: float = 0.9,
    ignore_index: int | None = None,
    check_values: bool = False,
) -> Tensor:
    r"""Knowledge distillation (:func:`hinton_kd`) with the teacher's k most likely classes, and the rest as one.

    .. math:: -w_L \ln q_y + w_T \, T^2 \, \mathrm{KL}(p^T \| q^T)

    p^T and q^T are the probabilities of the k + 1 groups, both sides tempered; the label's term is of all classes.
    With T = 1 and without labels, its gradient is that of :func:`ban` in these groups.

    Args:
        student: ``(batch, classes)`` scores, floating, finite. Gradient flows.
        teacher: ``(batch, classes)`` scores; ``-inf`` excludes a class. Or ``(members, batch, classes)``: an ensemble,
            whose tempered softmaxes are averaged. Detached.
        labels: ``(batch,)`` integers in ``[0, classes)``, or ``(batch, classes)`` probabilities; None leaves the
            label term out.
        k: >= 1; with as many as there are classes, or more, it is :func:`hinton_kd`.
        temperature: T > 0, of both sides.
        label_weight: w_L >= 0.
        teacher_weight: w_T >= 0; T^2 comes on top.
        ignore_index: a label that marks padding: the sample's loss is 0 and has no gradient, see
            :mod:`~polydistill.losses.ignored`. None: no label is ignored, not even -100.
        check_values: also check that scores are finite and labels in range (waits for the device).

    Returns:
        ``(batch,)`` in nats, float32 (float64 for float64 input), >= 0 up to rounding.

    Raises:
        ValueError: a shape, device, ``k``, ``temperature``, weight or value is out of range.
        TypeError: an argument of another type.

    Example:
        >>> teacher = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
        >>> loss = top_k_kd(torch.zeros(1, 4), teacher, k=1, temperature=1.0, teacher_weight=1.0)  # (ln 2 + ln 2/3) / 2
        >>> round(loss.item(), 4)
        0.1438
    """
    student, teacher = accept_pair(student, teacher)
    labels = None if labels is None else accept_labels(student, labels, probabilities=True)
    counted = find_counted(labels, ignore_index)
    labels = None if labels is None else set_aside(labels, counted)
    check_integer("k", k, 1)
    check_temperature(temperature)
    check_weight("label_weight", label_weight)
    check_weight("teacher_weight", teacher_weight)
    if check_values:
        inspect_values(student, teacher, labels)
    scores = join_members(student, teacher, temperature)
    kept = keep_top_k(scores, min(k, student.shape[-1]), temperature=temperature)
    soft = _top_k_kl(promote(student) / temperature, kept.values, kept.indices, kept.rest)
    loss = add_label_term(soft * (teacher_weight * temperature**2), promote(student), labels, label_weight)
    return silence(loss, counted)


@by_rows
def _top_k_kl(student: Tensor, values: Tensor, indices: Tensor, rest: Tensor) -> Tensor:
    student = promote(student)
    log_p = torch.cat([values, rest.unsqueeze(-1)], dim=-1).to(student.dtype).log_softmax(-1)
    return kl_divergence(log_p.clamp_min(lowest(log_p)), _group(student, indices))


def _group(scores: Tensor, indices: Tensor) -> Tensor:
    """``(..., k + 1)`` log-probabilities of the classes at ``indices`` and of the rest, held above -inf.

    What has no classes gets the type's lowest number, a probability of 0. Gradient flows.
    """
    others = scores.scatter(-1, indices, lowest(scores)).logsumexp(-1, keepdim=True)
    groups = torch.cat([scores.gather(-1, indices), others], dim=-1)
    return groups.log_softmax(-1).clamp_min(lowest(scores))


def _check_top_k(student: Tensor, teacher: object) -> None:
    if not isinstance(teacher, TopK):
        raise TypeError(f"teacher must be a TopK, as keep_top_k(scores, k) makes it, got {describe(teacher)}")
    check_integers("teacher.indices", teacher.indices)
    for name, floats in (("values", teacher.values), ("rest", teacher.rest)):
        if not isinstance(floats, Tensor) or not floats.dtype.is_floating_point:
            raise TypeError(f"teacher.{name} must be a floating tensor, got {describe(floats)}")
    k, classes = (teacher.values.shape[-1] if teacher.values.dim() else 0), student.shape[-1]
    if not 1 <= k <= classes:
        raise ValueError(f"teacher.values must have from 1 to {classes} classes, got {k}")
    for name, tensor in teacher._asdict().items():
        shape = student.shape[:-1] if name == "rest" else (*student.shape[:-1], k)
        if tensor.shape != shape:
            raise ValueError(f"teacher.{name} must be of shape {tuple(shape)}, got {tuple(tensor.shape)}")
        if tensor.device != student.device:
            raise ValueError(f"teacher.{name} must be on the student's device {student.device}, got {tensor.device}")


def _inspect_classes(indices: Tensor, classes: int) -> None:
    ordered = indices.sort(dim=-1).values
    if bool(((ordered < 0) | (ordered >= classes)).any()):
        raise ValueError(f"teacher.indices must be from 0 to {classes - 1}")
    if bool((ordered[..., 1:] == ordered[..., :-1]).any()):
        raise ValueError("teacher.indices must name each class once")
