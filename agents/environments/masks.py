"""Which actions an environment takes in each of its states, where it says so (``action_masks``, as sb3-contrib's)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

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
