"""Which actions an environment takes in each of its states, where it says so (``action_masks``, as sb3-contrib's).

What it does not allow has no probability in a target, and is not played where masks are followed.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from polydistill.errors import UserError
from polydistill_agents.environments.gym_names import describe


def read_masks(env: VecEnv) -> NDArray[np.bool_] | None:
    """True for the actions that each game takes now, ``(n_envs, n_actions)``; None where the games do not say.

    Args:
        env: games with a method or an attribute ``action_masks``, after a reset.

    Raises:
        UserError: the environment fails, or the masks have another shape.
    """
    try:
        told = env.get_attr("action_masks")
    except AttributeError:
        return None
    try:
        masks = [np.asarray(mask() if callable(mask) else mask, dtype=bool) for mask in told]
    except Exception as error:  # it may be any code
        raise UserError(f"action_masks of the environment fails: {describe(error)}") from error
    expected = (int(env.action_space.n),)  # type: ignore[attr-defined]
    if any(mask.shape != expected for mask in masks):
        raise UserError(f"action_masks of the environment must have the shape {expected}, it has {masks[0].shape}")
    return np.stack(masks)


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
