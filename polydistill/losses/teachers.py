"""Teacher scores that are not one network's plain output: ensembles, quantiles, and the temperature they call for.

The contract: tensors in, ``(batch, classes)`` scores out, in at least float32 and without gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from polydistill.losses.checks import accept_single, check_mask, check_positive, check_temperature, describe, promote


def mean_of_teachers(teachers: Iterable[Tensor], *, temperature: float = 1.0) -> Tensor:
    r"""The scores of an ensemble: the logarithm of the mean of its members' probabilities.

    .. math:: \ln \frac{1}{K} \sum_k \mathrm{softmax}(t_k / T)

    Furlanello et al. 2018, section 3.1 (BANE averages predictions); as the scores of a teacher, Stanton et al. 2021.
    Members are added in log space, one at a time: with a generator, only one member's scores are in memory beside the
    sum. The softmax of the result is the mean, so a loss takes it at T = 1 (Q-values are tempered here). Stacked
    scores, ``(members, batch, classes)``, can also be passed to a loss directly: every loss of probabilities averages
    them itself, at its own temperature (``policy_nll`` at 1).

    Args:
        teachers: scores of each member, ``(batch, classes)``, of one type and device; ``-inf`` excludes a class.
        temperature: T > 0, of each member, in the unit of its scores.

    Returns:
        ``(batch, classes)`` log-probabilities, float32 (float64 for float64 input); ``-inf`` where every member
        excludes the class.

    Raises:
        ValueError: there is no member, the shapes or devices differ, or ``temperature`` is out of range.
        TypeError: nothing to iterate over, a member is no tensor of floats, or the types differ.

    Example:
        >>> one, other = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
        >>> [round(x, 4) for x in mean_of_teachers([one, other]).exp()[0].tolist()]
        [0.7, 0.3]
    """
    check_temperature(temperature)
    total: Tensor | None = None
    count = 0
    try:
        members = iter(teachers)
    except TypeError:
        raise TypeError(f"teachers must be an iterable of tensors, got {describe(teachers)}") from None
    for member in members:
        scores = promote(accept_single(member, f"teachers[{count}]").detach())
        log_p = (scores / temperature).log_softmax(dim=-1)
        if total is not None:
            _check_alike(total, log_p, f"teachers[{count}]")
        total = log_p if total is None else torch.logaddexp(total, log_p)
        count += 1
    if total is None:
        raise ValueError("teachers must hold at least one tensor, got none")
    return total - math.log(count)


def average_quantiles(quantiles: Tensor) -> Tensor:
    r"""Q-values of a distributional agent: the mean of the quantiles of each action's return.

    .. math:: Q_a = \frac{1}{N} \sum_j \theta_j(a)

    Dabney et al. 2018 (QR-DQN). The layout is that of sb3-contrib's ``QRDQN`` policies.

    Args:
        quantiles: ``(batch, quantiles, actions)``, floating. Detached.

    Returns:
        ``(batch, actions)`` Q-values, float32 (float64 for float64 input).

    Raises:
        TypeError: not a tensor of floats.
        ValueError: not three-dimensional, or no quantile.

    Example:
        >>> average_quantiles(torch.tensor([[[1.0, 0.0], [3.0, 4.0]]])).tolist()
        [[2.0, 2.0]]
    """
    if not isinstance(quantiles, Tensor) or not quantiles.dtype.is_floating_point:
        raise TypeError(f"quantiles must be a floating tensor, got {getattr(quantiles, 'dtype', quantiles)}")
    if quantiles.dim() != 3 or quantiles.shape[1] < 1:
        raise ValueError(f"quantiles must be of shape (batch, quantiles, actions), got {tuple(quantiles.shape)}")
    quantiles = quantiles.detach()
    return promote(quantiles).mean(dim=1)


def propose_temperature(teacher_q: Tensor, *, odds: float = 9.0, mask: Tensor | None = None) -> float:
    r"""A temperature for :func:`policy_kl` from the gaps between the teacher's two best actions.

    The rule: in the median state the best action becomes ``odds`` times as likely as the second best,

    .. math:: T = \mathrm{median}_s \big(Q_{(1),s} - Q_{(2),s}\big) / \ln(\mathrm{odds})

    so half of the states are taught more sharply than that, and half less. States with a single action left do not
    count. Not in a paper: Rusu et al. 2016 chose 0.01 from {1, 0.1, 0.01, 0.001} by results.

    Args:
        teacher_q: ``(states, actions)`` Q-values, some thousand states of play; ``-inf`` excludes an action.
        odds: > 1. The default leaves one tenth of the probability where two actions compete.
        mask: ``(states, actions)`` or ``(actions,)`` bool; True takes an action out.

    Returns:
        T > 0, in the unit of the Q-values. Waits for the device.

    Raises:
        ValueError: ``odds <= 1``, no state with two actions, or a median gap of 0 (or not finite): nothing to sharpen.
        TypeError: an argument of another type.

    Example:
        >>> round(propose_temperature(torch.tensor([[0.02, 0.0], [0.03, 0.0], [0.05, 0.0]])), 4)
        0.0137
    """
    scores = promote(accept_single(teacher_q, "teacher_q").detach())
    check_positive("odds", odds)
    if odds <= 1.0:
        raise ValueError(f"odds must be greater than 1, got {odds}")
    if mask is not None:
        check_mask(scores, mask)
        scores = scores.masked_fill(mask, -math.inf)
    if scores.shape[-1] < 2:
        raise ValueError(f"teacher_q must have at least two actions, got {tuple(scores.shape)}")
    best = scores.topk(2, dim=-1).values
    gaps = (best[..., 0] - best[..., 1])[best[..., 1] != -math.inf]
    median = float(gaps.median()) if gaps.numel() else math.nan
    if not 0.0 < median < math.inf:
        raise ValueError(f"teacher_q must have a positive median gap between its two best actions, got {median}")
    return median / math.log(odds)


def _check_alike(first: Tensor, other: Tensor, name: str) -> None:
    if other.dtype != first.dtype:
        raise TypeError(f"{name} must be of the first one's type {first.dtype}, got {other.dtype}")
    if other.shape != first.shape:
        raise ValueError(f"{name} must be of the first one's shape {tuple(first.shape)}, got {tuple(other.shape)}")
    if other.device != first.device:
        raise ValueError(f"{name} must be on the first one's device {first.device}, got {other.device}")
