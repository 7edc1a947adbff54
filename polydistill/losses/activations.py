"""The distance of hidden states: what a student's layers give beside what its teacher's do.

Symbols: h, g the states of student and teacher, ``(batch, ...)``; m numbers in the state of one sample. Contract: as of
every loss here: one value per sample, never reduced; the teacher detached; computed in float32 at least.
"""

from __future__ import annotations

import torch
from torch import Tensor


def activation_l2(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Mean squared distance between hidden states.

    .. math:: \frac{1}{m} \sum_i (h_i - g_i)^2

    The mean over the state, not the sum, so that a stage with many channels counts as much as one with few. The
    born-again paper tried an L2 loss between activations beside its own (Furlanello et al. 2018) and does not say which
    states it compared, at which weight, or how it reduced.

    Args:
        student: ``(batch, ...)``, floating, at least 2-D. Gradient flows.
        teacher: the same shape, device and kind. Detached.

    Returns:
        ``(batch,)`` in squared units of the states, float32 (float64 for float64 input), >= 0.

    Raises:
        TypeError: they are not floating.
        ValueError: shapes or devices differ, or there are fewer than 2 dimensions.

    Example:
        >>> activation_l2(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 1.0]])).tolist()
        [2.0]
    """
    for name, states in (("student", student), ("teacher", teacher)):
        if not states.is_floating_point():
            raise TypeError(f"{name} must be floating, got {states.dtype}")
    if student.shape != teacher.shape or student.dim() < 2:
        raise ValueError(
            f"student and teacher must both be (batch, ...), got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    if student.device != teacher.device:
        raise ValueError(f"student is on {student.device}, teacher on {teacher.device}")
    wide = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    difference = student.to(wide) - teacher.detach().to(wide)
    return difference.square().flatten(1).mean(dim=1)
