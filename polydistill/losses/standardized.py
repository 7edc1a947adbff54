r"""Knowledge distillation on standardised scores (Sun et al. 2024, "Logit Standardization in Knowledge Distillation").

Symbols: z student scores, t teacher scores, Z(x) = (x - mean x) / (std x + 1e-7) over the classes, T base temperature.

The contract: ``(batch, classes)`` scores in, ``(batch,)`` out, never reduced; the teacher is detached, computation
is in at least float32, and a class whose teacher score is -inf has probability 0 and no part in mean and deviation. A
class that both sides mask by the lowest number of their type has no part in anything.
"""

from __future__ import annotations

import math

import torch
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
from polydistill.losses.probabilities import (
    add_label_term,
    kl_divergence,
    lowest,
    student_log_probabilities,
    teacher_log_probabilities,
)

EPSILON = 1e-7  # the paper's, added to the standard deviation


@computed
def logit_standardized_kd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float = 2.0,
    label_weight: float = 0.1,
    teacher_weight: float = 9.0,
    ignore_index: int | None = None,
    check_values: bool = False,
) -> Description:
    r"""Knowledge distillation that leaves the student free in the location and scale of its scores.

    .. math:: -w_L \ln q_y
        + w_T \, T^2 \, \mathrm{KL}\big(\mathrm{softmax}(Z(t) / T) \,\|\, \mathrm{softmax}(Z(z) / T)\big)

    Sun et al. 2024, Algorithm 1: the standard deviation is the unbiased one, each side has its own, and T = 2 with
    weight 9 is the published setting. Unchanged by any shift and, up to the 1e-7, by any positive scale of either side.
    It standardises the scores of one network, so an ensemble is refused: average the scores, ``teachers.mean(0)``.

    Args:
        student: ``(batch, classes)`` scores, floating, finite. Gradient flows, through mean and deviation too.
        teacher: ``(batch, classes)`` scores; ``-inf`` excludes a class. Detached.
        labels: ``(batch,)`` integers in ``[0, classes)``, or ``(batch, classes)`` probabilities; None leaves the
            label term out.
        temperature: T > 0, of both sides, in standard deviations.
        label_weight: w_L >= 0.
        teacher_weight: w_T >= 0; T^2 comes on top.
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
        >>> abs(logit_standardized_kd(3 * scores + 5, scores).item()) < 1e-5  # the same apart from location and scale
        True
    """
    student, teacher = accept_pair(student, teacher, members=False)
    labels = None if labels is None else accept_labels(student, labels, probabilities=True)
    counted = find_counted(labels, ignore_index)
    labels = None if labels is None else set_aside(labels, counted)
    check_temperature(temperature)
    check_weight("label_weight", label_weight)
    check_weight("teacher_weight", teacher_weight)
    if check_values:
        inspect_values(student, teacher, labels)
    kind = "standardized" if labels is None else "standardized_label"
    given, rows = numbers.Standardized(temperature, label_weight, teacher_weight), Rows(student, teacher, labels)
    return Description(kind, given, rows, _logit_standardized_kd, given._asdict(), counted)


@by_rows
def _logit_standardized_kd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float,
    label_weight: float,
    teacher_weight: float,
) -> Tensor:
    masked = (student == torch.finfo(student.dtype).min) & (teacher == torch.finfo(teacher.dtype).min)
    student, teacher = promote(student), promote(teacher)
    log_p = teacher_log_probabilities(_standardize(teacher.masked_fill(masked, -math.inf)), temperature=temperature)
    log_q = student_log_probabilities(_standardize(student.masked_fill(masked, -math.inf)), temperature=temperature)
    log_q = log_q.clamp_min(lowest(log_q))
    soft = kl_divergence(log_p, log_q) * (teacher_weight * temperature**2)
    return add_label_term(soft, student, labels, label_weight)


def _standardize(scores: Tensor) -> Tensor:
    """``Z`` over the classes whose score is not -inf; those stay -inf. 0 where all are equal."""
    excluded = scores == -math.inf
    count = scores.shape[-1] - excluded.sum(dim=-1, keepdim=True).to(scores.dtype)
    mean = scores.masked_fill(excluded, 0.0).sum(dim=-1, keepdim=True) / count
    centred = (scores - mean).masked_fill(excluded, 0.0)
    return _scale(centred, (count - 1).clamp(min=1)).masked_fill(excluded, -math.inf)


def _scale(centred: Tensor, freedom: Tensor) -> Tensor:
    """Divide by the unbiased deviation: by way of a norm, whose gradient at 0 is 0; that of a square root is NaN."""
    norm: Tensor = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
    return centred / (norm / freedom**0.5 + EPSILON)
