"""What a model of Stable-Baselines3 must have so that students can learn beside it."""

from __future__ import annotations

from typing import Any

from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecMonitor, is_vecenv_wrapped

from polydistill_agents.teachers import Teacher

FITTING = "DistillCallback is for DQN, QRDQN, PPO and A2C"
AFTERWARDS = "distil the finished model with PolicyDistillation"


def check_model(model: BaseAlgorithm) -> None:
    """Discrete actions, and a replay or rollouts of observations as they came.

    Raises:
        ValueError: one line that says what is missing, and what to do.
    """
    name = type(model).__name__
    if not isinstance(model.action_space, spaces.Discrete):
        raise ValueError(f"{name} acts in {model.action_space}, and students need discrete actions: {FITTING}")
    if not isinstance(model, OffPolicyAlgorithm | OnPolicyAlgorithm):
        raise ValueError(f"{name} has neither a replay nor rollouts that students could learn from: {FITTING}")
    normalized = model.get_vec_normalize_env()
    if isinstance(model, OnPolicyAlgorithm) and normalized is not None and normalized.norm_obs:
        raise ValueError(
            f"the rollouts of {name} hold observations of VecNormalize, whose statistics still move: use "
            f"VecNormalize(norm_obs=False), or {AFTERWARDS}"
        )


def check_teacher(model: BaseAlgorithm, teacher: Teacher) -> None:
    """Scores that hang on one observation alone.

    Raises:
        ValueError: likewise.
    """
    name = type(model).__name__
    if teacher.has_memory:
        raise ValueError(f"{name} remembers earlier steps, which its rollouts do not hold in order: {AFTERWARDS}")
    if teacher.masks:
        raise ValueError(f"{name} learns with masks of actions, which students that learn beside it lack: {AFTERWARDS}")


def check_returns(env: Any) -> None:
    """Games whose returns are told.

    Raises:
        ValueError: likewise.
    """
    if not (is_vecenv_wrapped(env, VecMonitor) or all(env.env_is_wrapped(Monitor))):
        raise ValueError(
            "labels='best' needs the returns of the games: wrap the environment in VecMonitor, or give "
            "labels='best_score' with a function score=, or labels='current'"
        )
