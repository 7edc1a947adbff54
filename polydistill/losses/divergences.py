r"""Other divergences between teacher and student, with the teacher's side tempered.

Symbols: z student scores, t teacher scores, T temperature of the teacher's side; q = softmax(z), p = softmax(t / T).
For T on both sides, divide the student's scores by T and multiply the result by T^2.

The contract: ``(batch, classes)`` scores in, ``(batch,)`` out, never reduced; the teacher is detached and computation
is in at least float32. ``mask`` (True: the class leaves) takes classes out of both sides. A row that is left without
any class has loss 0 and no gradient; one whose classes are left, but are all -inf on a side, is NaN.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from polydistill.losses.backend import Rows, numbers
from polydistill.losses.blocks import by_rows
from polydistill.losses.checks import accept_pair, check_fraction, check_temperature
from polydistill.losses.description import Description, computed
from polydistill.losses.probabilities import (
    join_members,
    kl_divergence,
    probabilities,
    student_log_probabilities,
    teacher_log_probabilities,
)


@computed
def reverse_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    check_values: bool = False,
) -> Description:
    r"""KL divergence from the student to the teacher: the student keeps to what the teacher finds likely.

    .. math:: \sum_i q_i (\ln q_i - \ln p_i), \quad q = \mathrm{softmax}(z), \; p = \mathrm{softmax}(t / T)

    The objective of Gu et al. 2024 (MiniLLM), per sample. The gradient with respect to z_i is
    q_i (ln q_i - ln p_i - loss).
    A class that the teacher excludes (-inf) would make the loss infinite; it adds q_i times the type's largest
    number (3.4e38), which is no use either: take such classes out with ``mask``.

    Args:
        student: ``(batch, classes)`` scores, floating, finite. Gradient flows.
        teacher: ``(batch, classes)`` scores, finite outside ``mask``. Or ``(members, batch, classes)``: an
            ensemble, whose tempered softmaxes are averaged. Detached.
        temperature: T > 0, of the teacher's side, in the unit of its scores.
        mask: ``(batch, classes)`` or ``(classes,)`` bool; True takes a class out of both softmaxes.
        check_values: also check values, and that no class which the teacher excludes is kept (waits for the device).

    Returns:
        ``(batch,)`` in nats, float32 (float64 for float64 input), >= 0 up to rounding.

    Raises:
        ValueError: a shape, device, ``temperature`` or value is out of range.
        TypeError: an argument of another type.

    Example:
        >>> student = torch.tensor([[500.0, 0.0]])  # sure of a class to which the teacher gives 1/2
        >>> reverse_kl(student, torch.zeros(1, 2)).item()
        0.6931471824645996
    """
    student, teacher = accept_pair(student, teacher, mask=mask, check_values=check_values)
    check_temperature(temperature)
    if check_values:
        excluded = join_members(student, teacher, mask=mask) == -math.inf
        if (excluded if mask is None else excluded & ~mask).any():
            raise ValueError("teacher must be finite in each class that mask leaves, got -inf")
    rows = Rows(student, teacher, mask=mask)
    return Description(
        "reverse_kl", numbers.Divergence(1.0 / temperature), rows, _reverse_kl, {"temperature": temperature}
    )


@by_rows
def _reverse_kl(student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, temperature: float) -> Tensor:
    log_p = teacher_log_probabilities(teacher, mask, temperature, ensemble=teacher.dim() > student.dim())
    return kl_divergence(student_log_probabilities(student, mask), log_p)


@computed
def jsd(
    student: Tensor,
    teacher: Tensor,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    check_values: bool = False,
) -> Description:
    r"""Generalised Jensen-Shannon divergence: bounded, and symmetric for ``beta = 1/2``.

    .. math:: \beta \, \mathrm{KL}(p \| m) + (1 - \beta) \, \mathrm{KL}(q \| m), \quad m = \beta p + (1 - \beta) q

    Agarwal et al. 2024 (generalised knowledge distillation). Divided by beta (or 1 - beta) it tends to
    KL(p || q) for beta to 0 (or KL(q || p) for beta to 1). At most the entropy of (beta, 1 - beta), ln 2 for 1/2.

    Args:
        student: ``(batch, classes)`` scores, floating, finite. Gradient flows.
        teacher: ``(batch, classes)`` scores; ``-inf`` excludes a class. Or ``(members, batch, classes)``: an ensemble,
            whose tempered softmaxes are averaged. Detached.
        beta: the teacher's share of the mixture, in (0, 1).
        temperature: T > 0, of the teacher's side, in the unit of its scores.
        mask: ``(batch, classes)`` or ``(classes,)`` bool; True takes a class out of both softmaxes.
        check_values: also check that scores are finite and each row keeps a class (waits for the device).

    Returns:
        ``(batch,)`` in nats, float32 (float64 for float64 input), >= 0 up to rounding.

    Raises:
        ValueError: a shape, device, ``beta``, ``temperature`` or value is out of range.
        TypeError: an argument of another type.

    Example:
        >>> jsd(torch.tensor([[500.0, 0.0]]), torch.tensor([[0.0, 500.0]])).item()  # nothing in common: ln 2
        0.6931471824645996
    """
    check_fraction("beta", beta, ends=False)
    student, teacher = accept_pair(student, teacher, mask=mask, check_values=check_values)
    check_temperature(temperature)
    given, rows = numbers.Divergence(1.0 / temperature, beta), Rows(student, teacher, mask=mask)
    return Description("jsd", given, rows, _jsd, {"temperature": temperature, "beta": beta})


@by_rows
def _jsd(student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, temperature: float, beta: float) -> Tensor:
    log_p = teacher_log_probabilities(teacher, mask, temperature, ensemble=teacher.dim() > student.dim())
    log_q = student_log_probabilities(student, mask)
    odds = math.log(beta) - math.log1p(-beta)  # 0 for the default
    log_m = torch.logaddexp(log_p + odds if odds else log_p, log_q) + math.log1p(-beta)
    of_teacher = probabilities(log_p).mul_(-beta) * (log_m - log_p)
    return torch.addcmul(of_teacher, probabilities(log_q), log_q - log_m, value=1.0 - beta).sum(-1)
