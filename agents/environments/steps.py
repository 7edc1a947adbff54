"""A step of play: what was seen, what was said of it, what was done, and what came of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from polydistill_agents.networks.observations import Arrays


class Step(NamedTuple):
    """One step of all games. Where Stable-Baselines3 has a name for a part, it is that name.

    Attributes:
        observations: arrays of ``n_envs`` rows before it, of Atari ``(n_envs, stack, height, width)`` uint8.
        starts: ``(n_envs,)`` where these are the first of a game.
        scores: ``(n_envs, n_scores)`` of the teacher for these, on its device.
        actions: ``(n_envs,)`` sent to the environment.
        new_obs: as ``observations``, after it.
        rewards: ``(n_envs,)`` for it.
        dones: ``(n_envs,)`` where ``new_obs`` is the first of a game.
        infos: one of each environment.
    """

    observations: Any
    starts: NDArray[np.bool_]
    scores: Tensor
    actions: NDArray[np.integer[Any]]
    new_obs: Arrays
    rewards: NDArray[np.float32]
    dones: NDArray[np.bool_]
    infos: list[dict[str, Any]]
