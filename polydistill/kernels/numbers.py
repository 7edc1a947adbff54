"""The numbers that each family of kernels takes as arguments, by name and in their order.

Symbols as in the family's module of :mod:`polydistill.kernels.device`.
"""

from __future__ import annotations

from typing import NamedTuple


class Target(NamedTuple):
    """For cross-entropies and KL with a target."""

    teacher_weight: float = 0.0  # a
    label_weight: float = 0.0  # b
    smoothing: float = 0.0  # eps
    t_scale: float = 1.0  # 1 / T_t
    z_scale: float = 1.0  # 1 / T_s
    square_weight: float = 0.0  # c


class Divergence(NamedTuple):
    """For the reverse KL and JSD."""

    t_scale: float  # 1 / T
    beta: float = 0.5  # used by JSD alone


class Regression(NamedTuple):
    """For the squared distance and Huber's loss."""

    delta: float = 1.0  # used by Huber's loss alone


class Decoupled(NamedTuple):
    """For decoupled knowledge distillation."""

    temperature: float
    label_weight: float  # w
    alpha: float
    beta: float


class Standardized(NamedTuple):
    """For knowledge distillation on standardised scores."""

    temperature: float
    label_weight: float  # w
    teacher_weight: float  # a


Numbers = Target | Divergence | Regression | Decoupled | Standardized
