r"""Losses that distil a policy out of Q-values (Rusu et al. 2016, "Policy Distillation", section 3.2).

Symbols: z student scores, Q teacher's Q-values, T temperature, a action; p = softmax(Q / T), q = softmax(z).

The contract: ``(batch, actions)`` scores in, ``(batch,)`` out, never reduced; the teacher is detached, computation
is in at least float32, and an action whose Q-value is -inf has p = 0. ``mask`` (True: the action leaves) takes
actions out of both sides. A row that is left without any action has loss 0 and no gradient; one whose actions are
left, but are all -inf on a side, is NaN.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from polydistill.losses.backend import Rows, numbers
from polydistill.losses.blocks import by_rows
from polydistill.losses.checks import accept_pair, check_positive, check_temperature, promote
from polydistill.losses.description import Description, computed
from polydistill.losses.probabilities import (
    drop_classes,
    join_members,
    kl_divergence,
    label_cross_entropy,
    probabilities,
    student_log_probabilities,
    teacher_log_probabilities,
)


@computed
def policy_kl(
    student: Tensor,
    teacher_q: Tensor,
    *,
    temperature: float = 0.01,
    mask: Tensor | None = None,
    check_values: bool = False,
) -> Description:
    r"""KL divergence from the teacher's sharpened policy to the student's policy.

    .. math:: \sum_a p_a (\ln p_a - \ln q_a), \quad p = \mathrm{softmax}(Q / T), \; q = \mathrm{softmax}(z)

    Only the teacher is tempered (Rusu et al. 2016, section 3.2), so there is no factor T^2: that
    belongs to :func:`hinton_kd`, where both sides are. The gradient with respect to z is q - p.

    Args:
        student: ``(batch, actions)`` scores, floating, finite. Gradient flows.
        teacher_q: ``(batch, actions)`` Q-values in clipped-reward units; ``-inf`` excludes an action. Or ``(members,
            batch, actions)``: an ensemble, whose tempered softmaxes are averaged. Detached.
        temperature: T > 0, in the unit of the Q-values. The paper's 0.01, because action gaps are small. It must
            be from 1e-18 to 1e18, as in every loss and diagnostic, so that 1 / T and T^2 fit a float32.
        mask: ``(batch, actions)`` or ``(actions,)`` bool; True takes an action out of both softmaxes.
        check_values: also check that scores are finite and each row keeps an action (waits for the device).

    Returns:
        ``(batch,)`` in nats, float32 (float64 for float64 input), >= 0 up to rounding.

    Raises:
        ValueError: the shapes or devices differ or are not 2-D, ``temperature`` or a value is out of range.
        TypeError: an argument of another type.

    Example:
        >>> policy_kl(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])).item()  # teacher sure, student not: ln 2
        0.6931471824645996
    """
    student, teacher_q = accept_pair(student, teacher_q, "teacher_q", mask=mask, check_values=check_values)
    check_temperature(temperature)
    given, rows = numbers.Target(1.0, t_scale=1.0 / temperature), Rows(student, teacher_q, mask=mask)
    closed = None if mask is not None else _policy_kl_and_gradient
    return Description("kl", given, rows, _policy_kl, {"temperature": temperature}, closed_form=closed)


@by_rows
def _policy_kl(student: Tensor, teacher_q: Tensor, mask: Tensor | None = None, *, temperature: float) -> Tensor:
    log_p = teacher_log_probabilities(teacher_q, mask, temperature, ensemble=teacher_q.dim() > student.dim())
    return kl_divergence(log_p, student_log_probabilities(student, mask))


def _policy_kl_and_gradient(student: Tensor, teacher_q: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient q - p, in at least float32."""
    log_p = teacher_log_probabilities(teacher_q, None, temperature, ensemble=teacher_q.dim() > student.dim())
    log_q, p = student_log_probabilities(student), probabilities(log_p)
    return (p * (log_p - log_q)).sum(-1), probabilities(log_q) - p


@computed
def policy_kl_q(
    student: Tensor,
    teacher_q: Tensor,
    *,
    temperature: float = 0.01,
    q_weight: float = 0.01,
    mask: Tensor | None = None,
    check_values: bool = False,
) -> Description:
    r"""KL divergence between the sharpened policies of teacher and student, and a squared distance that keeps Q-values.

    .. math:: \sum_a p_a (\ln p_a - \ln q_a) + \frac{\lambda}{m} \sum_a \left( \frac{s_a - Q_a}{T} \right)^2, \quad
        p = \mathrm{softmax}(Q / T), \; q = \mathrm{softmax}(s / T)

    Ours, no paper's. The student's outputs s are Q-values: s / T is what :func:`policy_kl` calls z. KL alone leaves
    them free by a number in each state, and has next to no gradient for an action whose p is near 0; the second term,
    a mean over the m actions that stay, pulls all of them. Both terms are least at s = Q, so whatever lambda > 0 is,
    the minimiser is the same. The gradient with respect to s_a is ((q_a - p_a) + 2 lambda (s_a - Q_a) / (m T)) / T.

    Excluded and masked actions add nothing to the second term, and m does not count them. An action whose Q-value is
    the lowest number of one type on both sides, as callers mask, adds nothing to either term and has no gradient, but m
    counts it: ``mask`` or -inf leaves it out of m, too. A mean of softmaxes is no Q-value, so an ensemble is
    refused: average the Q-values, ``teachers.mean(0)``.

    Args:
        student: ``(batch, actions)`` Q-values, floating, finite. Gradient flows.
        teacher_q: ``(batch, actions)`` Q-values in the same unit; ``-inf`` excludes an action. Detached.
        temperature: T > 0 of both sides, in the unit of the Q-values; from 1e-18 to 1e18.
        q_weight: lambda > 0.
        mask: ``(batch, actions)`` or ``(actions,)`` bool; True takes an action out.
        check_values: also check that scores are finite and each row keeps an action (waits for the device).

    Returns:
        ``(batch,)`` in nats, float32 (float64 for float64 input), >= 0 up to rounding.

    Raises:
        ValueError: the shapes or devices differ or are not 2-D, ``temperature``, ``q_weight`` or a value is out of
            range.
        TypeError: an argument of another type.

    Example:
        >>> equal = torch.tensor([[2.0, 2.0]])  # the same policy as the student's, one T below it in both actions
        >>> round(policy_kl_q(equal - 0.5, equal, temperature=0.5, q_weight=0.1).item(), 6)
        0.1
    """
    check_positive("q_weight", q_weight)
    student, teacher_q = accept_pair(
        student, teacher_q, "teacher_q", members=False, mask=mask, check_values=check_values
    )
    check_temperature(temperature)
    scale = 1.0 / temperature
    given = numbers.Target(1.0, t_scale=scale, z_scale=scale, square_weight=q_weight)
    options = {"temperature": temperature, "q_weight": q_weight}
    closed = None if mask is not None else _policy_kl_q_and_gradient
    rows = Rows(student, teacher_q, mask=mask)
    return Description("kl_squares", given, rows, _policy_kl_q, options, closed_form=closed)


@by_rows
def _policy_kl_q(
    student: Tensor, teacher_q: Tensor, mask: Tensor | None = None, *, temperature: float, q_weight: float
) -> Tensor:
    log_p = teacher_log_probabilities(teacher_q, mask, temperature)
    divergence = kl_divergence(log_p, student_log_probabilities(student, mask, temperature))
    distances, excluded = _differences(student, teacher_q, mask)
    n_left = excluded.logical_not().sum(-1).clamp_min(1)
    return divergence + q_weight * (distances / temperature).square().sum(-1) / n_left


def _policy_kl_q_and_gradient(
    student: Tensor, teacher_q: Tensor, *, temperature: float, q_weight: float
) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient, in at least float32."""
    log_p = teacher_log_probabilities(teacher_q, None, temperature)
    log_q, p = student_log_probabilities(student, None, temperature), probabilities(log_p)
    distances, excluded = _differences(student, teacher_q, None)
    distances, n_left = distances / temperature, excluded.logical_not().sum(-1, keepdim=True).clamp_min(1)
    pull = distances * q_weight / n_left
    loss = (p * (log_p - log_q) + pull * distances).sum(-1)
    return loss, (probabilities(log_q) - p + 2.0 * pull) / temperature


@computed
def policy_nll(
    student: Tensor, teacher_q: Tensor, *, mask: Tensor | None = None, check_values: bool = False
) -> Description:
    r"""Negative log-likelihood of the teacher's greedy action.

    .. math:: -\ln q_{a^*}, \quad a^* = \arg\max_a Q_a

    The limit of :func:`policy_kl` for T to 0 where one action is best (Rusu et al. 2016, section 3.2, "NLL").
    Of equally good actions the first counts; where the best is not finite (NaN, or all are -inf) the loss is NaN.
    Of an ensemble a* is the greatest of the mean of softmaxes, at T = 1; the greatest at another temperature is that
    of ``mean_of_teachers(teachers, temperature=T)``, the greatest mean Q-value that of ``teachers.mean(0)``.

    Args:
        student: ``(batch, actions)`` scores, floating, finite. Gradient flows.
        teacher_q: ``(batch, actions)`` Q-values; ``-inf`` excludes an action. Or ``(members, batch, actions)``: an
            ensemble, whose softmaxes over the actions that stay are averaged. Detached.
        mask: ``(batch, actions)`` or ``(actions,)`` bool; True takes an action out.
        check_values: also check that scores are finite and each row keeps an action (waits for the device).

    Returns:
        ``(batch,)`` in nats, float32 (float64 for float64 input), >= 0.

    Raises:
        ValueError: the shapes or devices differ or are not 2-D, or a value is out of range.
        TypeError: an argument of another type.

    Example:
        >>> policy_nll(torch.zeros(1, 4), torch.tensor([[0.0, 3.0, 1.0, 2.0]])).item()  # one of four: ln 4
        1.3862943649291992
    """
    student, teacher_q = accept_pair(student, teacher_q, "teacher_q", mask=mask, check_values=check_values)
    return Description("best", numbers.Target(label_weight=1.0), Rows(student, teacher_q, mask=mask), _policy_nll)


def _policy_nll(student: Tensor, teacher_q: Tensor, mask: Tensor | None = None) -> Tensor:
    teacher_q = join_members(student, teacher_q, mask=mask)
    best, greedy = drop_classes(promote(teacher_q), mask).max(dim=-1)
    loss = label_cross_entropy(drop_classes(promote(student), mask), greedy)
    loss = loss * (best - best).exp_()  # by 1, or by NaN where the best is not finite: so is the gradient
    return loss if mask is None else loss.masked_fill(mask.all(-1), 0.0)


@computed
def policy_mse(
    student: Tensor, teacher_q: Tensor, *, mask: Tensor | None = None, check_values: bool = False
) -> Description:
    r"""Squared distance of the scores, summed over actions.

    .. math:: \sum_a (z_a - Q_a)^2

    The student keeps the teacher's kind of scores (Rusu et al. 2016, section 3.2, "MSE"). Excluded and masked
    actions add nothing. A mean of softmaxes is no Q-value, so an ensemble is refused: average the Q-values,
    ``teachers.mean(0)``.

    Args:
        student: ``(batch, actions)`` scores, floating, finite. Gradient flows.
        teacher_q: ``(batch, actions)`` scores to regress on; ``-inf`` excludes an action. Detached.
        mask: ``(batch, actions)`` or ``(actions,)`` bool; True takes an action out.
        check_values: also check that scores are finite and each row keeps an action (waits for the device).

    Returns:
        ``(batch,)`` in squared units of the scores, float32 (float64 for float64 input), >= 0.

    Raises:
        ValueError: the shapes or devices differ or are not 2-D, or a value is out of range.
        TypeError: an argument of another type.

    Example:
        >>> policy_mse(torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, -2.0]])).item()
        25.0
    """
    student, teacher_q = accept_pair(
        student, teacher_q, "teacher_q", members=False, mask=mask, check_values=check_values
    )
    return Description("mse", numbers.Regression(), Rows(student, teacher_q, mask=mask), _policy_mse)


def _policy_mse(student: Tensor, teacher_q: Tensor, mask: Tensor | None = None) -> Tensor:
    return _differences(student, teacher_q, mask)[0].square().sum(dim=-1)


@computed
def policy_huber(
    student: Tensor,
    teacher_q: Tensor,
    *,
    delta: float = 1.0,
    mask: Tensor | None = None,
    check_values: bool = False,
) -> Description:
    r"""Huber's loss of the scores, summed over actions: quadratic near 0, linear beyond ``delta``.

    .. math:: \sum_a h(z_a - Q_a), \quad
        h(d) = \begin{cases} d^2 / 2 & |d| \le \delta \\ \delta (|d| - \delta / 2) & |d| > \delta \end{cases}

    Not in the paper: :func:`policy_mse` with a bounded gradient, as DQN itself is trained. Note that it
    is half of :func:`policy_mse` near 0. An ensemble is refused here too.

    Args:
        student: ``(batch, actions)`` scores, floating, finite. Gradient flows, at most ``delta`` per action.
        teacher_q: ``(batch, actions)`` scores to regress on; ``-inf`` excludes an action. Detached.
        delta: where the loss becomes linear, > 0, in the unit of the scores.
        mask: ``(batch, actions)`` or ``(actions,)`` bool; True takes an action out.
        check_values: also check that scores are finite and each row keeps an action (waits for the device).

    Returns:
        ``(batch,)``, float32 (float64 for float64 input), >= 0.

    Raises:
        ValueError: the shapes or devices differ or are not 2-D, ``delta <= 0``, or a value is out of range.
        TypeError: an argument of another type.

    Example:
        >>> policy_huber(torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 2.5]])).item()  # 3 - 1/2 and 1/8
        2.625
    """
    check_positive("delta", delta)
    student, teacher_q = accept_pair(
        student, teacher_q, "teacher_q", members=False, mask=mask, check_values=check_values
    )
    rows = Rows(student, teacher_q, mask=mask)
    return Description("huber", numbers.Regression(delta), rows, _policy_huber, {"delta": delta})


def _policy_huber(student: Tensor, teacher_q: Tensor, mask: Tensor | None = None, *, delta: float) -> Tensor:
    differences, _ = _differences(student, teacher_q, mask)
    return F.huber_loss(
        differences, differences.new_zeros(()).expand_as(differences), reduction="none", delta=delta
    ).sum(dim=-1)


def _differences(student: Tensor, teacher_q: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """``z - Q`` in full precision, 0 without gradient where the action is excluded; and where that is."""
    student, teacher_q = promote(student), promote(teacher_q)
    excluded = teacher_q == -math.inf
    excluded = excluded if mask is None else excluded | mask
    return (student - teacher_q).masked_fill(excluded, 0.0), excluded
