"""An agent that learned behind Stable-Baselines3's ``VecNormalize`` sees through its statistics, as they were then.

Mean m, variance v, epsilon e and bound b are those of its observations: ``clip((x - m) / sqrt(v + e), -b, b)``, in
float64 and then float32, exactly as ``VecNormalize.normalize_obs`` computes it. Where ``norm_obs`` is False, the
observations are left alone, and so are they here. Rewards play no part. A model in memory has its environment; beside a
zip lies what ``VecNormalize.save`` wrote, a pickle whose numbers are read and which is never loaded.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, cast

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecCheckNan, VecMonitor, VecNormalize, VecVideoRecorder
from stable_baselines3.common.vec_env.base_vec_env import VecEnvWrapper
from torch import nn

from polydistill.errors import UserError
from polydistill_agents.files.archive import refusing
from polydistill_agents.files.pickle_values import Built, array_of, number_of, read_values
from polydistill_agents.files.places import opened
from polydistill_agents.networks.fitting import tell_space
from polydistill_agents.networks.normalized import Normalized, Statistics

MAX_STATISTICS_BYTES = 64 * 2**20  # of stacked frames: a megabyte, and the last observation of each game
CHANGE_NOTHING = (VecMonitor, VecCheckNan, VecVideoRecorder)


def normalization_of(model: BaseAlgorithm) -> tuple[list[Statistics], spaces.Box] | None:
    """What the model's environment does to its observations now, innermost first, and the space before it.

    Returns:
        None where nothing is done.

    Raises:
        UserError: a wrapper outside of VecNormalize changes them once more; the environment is not there any more.
    """
    env = model.get_env()
    wrappers = []  # from the outermost inwards
    while isinstance(env, VecEnvWrapper):
        wrappers.append(env)
        env = env.venv
    learned_behind = not isinstance(model, OffPolicyAlgorithm) and model._last_original_obs is not None
    if learned_behind and not any(isinstance(wrapper, VecNormalize) for wrapper in wrappers):
        name = type(model).__name__
        raise UserError(
            f"this {name} learned behind VecNormalize, and has no environment that holds its statistics: load it with "
            f"one, as in {name}.load(path, env=VecNormalize.load(statistics, env))"
        )
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


def is_statistics(name: str) -> bool:
    """Whether a file of that name holds the statistics of a VecNormalize, as the zoo's and CheckpointCallback's do.

    Example:
        >>> [is_statistics(name) for name in ("vecnormalize.pkl", "rl_model_vecnormalize_40_steps.pkl", "buffer.pkl")]
        [True, True, False]
    """
    return re.fullmatch(r".*vec_?normalize.*\.pkl", name, re.IGNORECASE) is not None


def find_statistics(agent: Path) -> Path | None:
    """The file of statistics that belongs to an agent's zip: beside it, or in the folder of its name.

    Raises:
        UserError: there are several, and not one of the same number of steps.
    """
    places = [agent.parent, agent.with_suffix("")]
    if agent.stem == "best_model":  # the zoo's best agent lies beside the folder of its environment
        places += sorted(place for place in agent.parent.iterdir() if place.is_dir())
    found = [file for place in places for file in sorted(place.glob("*.pkl")) if is_statistics(file.name)]
    if len(found) < 2:
        return found[0] if found else None
    steps = re.search(r"\d+(?=_steps)", agent.name)
    same = [file for file in found if steps and re.search(rf"(?<!\d){steps[0]}_steps", file.name)]
    if len(same) != 1:
        names = ", ".join(file.name for file in found[:3])
        raise UserError(f"{agent}: {len(found)} files of VecNormalize lie there ({names}): leave only its own")
    return same[0]


def read_statistics(path: Path) -> Statistics | None:
    """What ``VecNormalize.save`` wrote; None where it leaves observations alone (``norm_obs=False``).

    Raises:
        UserError: the file is damaged, too large, of another class, or over a table of observations (Dict).
    """
    with refusing(path, "file of VecNormalize"):
        with opened(path, MAX_STATISTICS_BYTES) as stream:
            built = read_values(stream.read())
        state = built.attributes() if isinstance(built, Built) else {}
        if getattr(getattr(built, "function", None), "name", None) != "VecNormalize" or "norm_obs" not in state:
            raise UserError(f"{path} holds no VecNormalize of Stable-Baselines3")
        if not isinstance(state["norm_obs"], bool):
            raise UserError(f"{path}: its norm_obs is neither true nor false")
        if not state["norm_obs"]:
            return None
        rms = state.get("obs_rms")
        table = rms.attributes() if isinstance(rms, Built) else {}
        mean, variance = (array_of(table.get(name)) for name in ("mean", "var"))
        clip, epsilon = (number_of(state.get(name)) for name in ("clip_obs", "epsilon"))
        if mean is None or variance is None or clip is None or epsilon is None or mean.shape != variance.shape:
            raise UserError(f"{path}: only a VecNormalize of plain observations (Box) is read")
        statistics = Statistics(mean.astype(np.float64), variance.astype(np.float64), clip, epsilon)
        sound = np.isfinite(statistics.mean).all() and np.isfinite(statistics.variance).all()
        if not sound or variance.min(initial=0) < 0 or not clip > 0 or not 0 < epsilon < math.inf:
            raise UserError(f"{path}: its statistics are not finite, or negative")
        return statistics


def normalized(network: nn.Module, statistics: Statistics, where: str) -> Normalized:
    """A network of a file behind the statistics of another.

    Raises:
        UserError: they are of other observations.
    """
    space: Any = network.observation_space
    if not isinstance(space, spaces.Box) or statistics.mean.shape != space.shape:
        raise UserError(
            f"{where}: it sees observations {tell_space(space)}, the VecNormalize beside it "
            f"{statistics.mean.shape}: is that another agent's?"
        )
    clipped = bool(
        (space.low == -np.float32(statistics.clip)).all() and (space.high == np.float32(statistics.clip)).all()
    )
    if len(space.shape) == 3 and space.dtype == np.float32 and clipped:  # what VecNormalize makes of pixels
        space = spaces.Box(0, 255, space.shape, np.uint8)
    return Normalized(network, statistics, space)


def _statistics(env: VecNormalize) -> Statistics:
    rms: Any = env.obs_rms
    if isinstance(rms, dict):
        raise UserError("VecNormalize over a table of observations (Dict): only observations of numbers (Box) are read")
    return Statistics(rms.mean.copy(), rms.var.copy(), float(env.clip_obs), float(env.epsilon))
