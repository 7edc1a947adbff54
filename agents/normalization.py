"""An agent that learned behind Stable-Baselines3's ``VecNormalize`` sees through its statistics, as they were then.

Mean m, variance v, epsilon e and bound b are those of its observations: ``clip((x - m) / sqrt(v + e), -b, b)``, in
float64 and then float32, exactly as ``VecNormalize.normalize_obs`` computes it. Where ``norm_obs`` is False, the
observations are left alone, and so are they here. Rewards play no part.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecCheckNan, VecMonitor, VecNormalize, VecVideoRecorder
from stable_baselines3.common.vec_env.base_vec_env import VecEnvWrapper
from torch import Tensor, nn

from polydistill.errors import UserError

CHANGE_NOTHING = (VecMonitor, VecCheckNan, VecVideoRecorder)


class Statistics(NamedTuple):
    """What is done to an observation.

    Attributes:
        mean: of the shape of an observation, float64.
        variance: likewise.
        clip: bound of what comes out, > 0.
        epsilon: added to the variance, > 0.
    """

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    clip: float
    epsilon: float


class Normalized(nn.Module):
    """A network behind statistics that no longer move.

    Args:
        network: from normalised observations to scores.
        statistics: of the observations as they come.
        space: of the observations as they come.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, network: nn.Module, statistics: Statistics, space: spaces.Box) -> None:
        super().__init__()
        self.network, self.observation_space = network, space
        self.clip, self.epsilon = statistics.clip, statistics.epsilon
        self.register_buffer("mean", torch.tensor(statistics.mean, dtype=torch.float64))
        self.register_buffer("variance", torch.tensor(statistics.variance, dtype=torch.float64))

    def forward(self, observations: Tensor) -> Tensor:
        """Observations ``(batch, ...)`` of any type to scores ``(batch, actions)``."""
        scaled = (observations - self.mean) / torch.sqrt(self.variance + self.epsilon)
        return cast(Tensor, self.network(scaled.clamp(-self.clip, self.clip).float()))


def normalization_of(model: BaseAlgorithm) -> tuple[list[Statistics], spaces.Box] | None:
    """What the model's environment does to its observations now, innermost first, and the space before it.

    Returns:
        None where nothing is done.

    Raises:
        UserError: a wrapper outside of VecNormalize changes them once more; the environment is not there any more.
    """
    env = model.get_env()
    if env is None and not isinstance(model, OffPolicyAlgorithm) and model._last_original_obs is not None:
        name = type(model).__name__
        raise UserError(
            f"this {name} learned behind VecNormalize, and has no environment that holds its statistics: load it with "
            f"one, as in {name}.load(path, env=VecNormalize.load(statistics, env))"
        )
    wrappers = []  # from the outermost inwards
    while isinstance(env, VecEnvWrapper):
        wrappers.append(env)
        env = env.venv
    found: list[Statistics] = []
    space = None
    for wrapper in reversed(wrappers):
        if isinstance(wrapper, VecNormalize):
            if wrapper.norm_obs:
                space = space or wrapper.venv.observation_space
                found.append(_statistics(wrapper))
        elif found and not isinstance(wrapper, CHANGE_NOTHING):
            raise UserError(
                f"{type(wrapper).__name__} changes what VecNormalize has normalised: wrap VecNormalize around it, or "
                "give a function from observations to scores as the teacher"
            )
    return (found, cast(spaces.Box, space)) if found else None


def _statistics(env: VecNormalize) -> Statistics:
    rms: Any = env.obs_rms
    if isinstance(rms, dict):
        raise UserError("VecNormalize over a table of observations (Dict): only observations of numbers (Box) are read")
    return Statistics(rms.mean.copy(), rms.var.copy(), float(env.clip_obs), float(env.epsilon))
