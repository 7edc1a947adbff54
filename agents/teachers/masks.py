"""Masks of actions that an environment gives: what it does not allow has no probability in the target."""

from __future__ import annotations

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from polydistill.errors import UserError


def mask_scores(scores: Tensor, masks: ArrayLike | Tensor) -> Tensor:
    """Scores with ``-inf`` for each action that is not allowed: the masked policy is their softmax.

    Args:
        scores: ``(batch, actions)``.
        masks: ``(batch, actions)``, true where the action is allowed.

    Raises:
        UserError: masks of another shape, or a row that allows nothing.
    """
    allowed = torch.as_tensor(masks, dtype=torch.bool)
    if allowed.shape != scores.shape:
        raise UserError(f"the environment's masks are {tuple(allowed.shape)}, the scores {tuple(scores.shape)}")
    if len(nothing := (~allowed.any(dim=1)).nonzero()):
        raise UserError(f"the environment allows no action at all in row {int(nothing[0])} of its masks")
    return scores.masked_fill(~allowed.to(scores.device), -torch.inf)
