"""Checks of the settings of a distillation before the first step of play.

Contract: every check raises ValueError with one line that names the argument, what it must be, and what it is.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize

from polydistill.errors import require_choice
from polydistill.losses import Objective, check_options
from polydistill_agents.networks.building import MIN_SIDE

PRECISIONS = ("float32", "bfloat16")
PLAIN = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)  # observations, or parts of them


def whole_number(name: str, value: Any, least: int) -> int:
    """``value`` as Python's own integer.

    Raises:
        ValueError: it is none, or below ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {name}={value!r}")
    return int(value)


def positive_number(name: str, value: Any) -> float:
    """``value`` as Python's own number.

    Raises:
        ValueError: it is no number, not positive, or not finite.
    """
    if not _is_number(value) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {name}={value!r}")
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def keyword_arguments(name: str, value: Any) -> dict[str, Any]:
    """A copy of ``value``; of None an empty one.

    Raises:
        ValueError: it is no mapping from names.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{name} must be a dict of named options, got {name}={value!r:.80}")
    return dict(value)


def check_log_folder(tensorboard_log: Any) -> None:
    """A path, or None for no curves."""
    if tensorboard_log is not None and not isinstance(tensorboard_log, str | os.PathLike):
        raise ValueError(f"tensorboard_log must be the path of a folder, or None, got {tensorboard_log!r:.80}")


def check_learning_rate(learning_rate: Any) -> None:
    """A positive number, or a schedule whose rates at the ends are finite and not negative."""
    if not callable(learning_rate):
        positive_number("learning_rate", learning_rate)
        return
    for remaining in (1.0, 0.0):
        rate = learning_rate(remaining)
        if not _is_number(rate) or not 0 <= rate < math.inf:
            raise ValueError(f"learning_rate must give rates of 0 or more, it gives {rate!r} at {remaining} remaining")


def check_averaging(averaging: Any) -> None:
    """A share of the updates, not all of them."""
    if not _is_number(averaging) or not 0 <= averaging < 1:
        raise ValueError(f"averaging is a share of the updates, from 0 to below 1, got {averaging!r}")


def check_choices(precision: str, exploration_rate: Any, seed: Any, device: Any) -> None:
    """A known precision and device, a probability, and a seed or none."""
    require_choice("precision", precision, PRECISIONS)
    if not _is_number(exploration_rate) or not 0.0 <= exploration_rate <= 1.0:
        raise ValueError(f"exploration_rate is a probability, got {exploration_rate!r}")
    if seed is not None:
        whole_number("seed", seed, 0)
    try:
        torch.device("cpu" if device == "auto" else device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"unknown device {device!r}, choose auto, cpu or cuda ({str(error)[:80]})") from None


def check_replay(buffer_size: int, batch_size: int, learning_starts: int) -> None:
    """The replay must have room for a batch, and for the warm-up."""
    for name, samples in (("batch_size", batch_size), ("learning_starts", learning_starts)):
        if samples > buffer_size:
            lacking = f"{name}={samples} samples do not fit into a replay of buffer_size={buffer_size}"
            raise ValueError(f"{lacking}: raise buffer_size or lower {name}")


def check_objective(objective: Objective, options: Mapping[str, Any], temperature: float) -> None:
    """The objective must do without labels, and take its options."""
    if objective.needs_labels or objective.needs_permutation:
        raise ValueError(f"objective {objective.name} is one for classifiers: play has no labels")
    if "label_weight" in options:
        raise ValueError("objective_kwargs: label_weight has no effect, play has no labels; leave it out")
    if objective.sharpens and "temperature" in options:
        raise ValueError("objective_kwargs: temperature is an argument of PolicyDistillation itself")
    try:
        check_options(objective.name, **options, **({"temperature": temperature} if objective.sharpens else {}))
    except TypeError as error:
        raise ValueError(str(error)) from None


def check_spaces(policy: str, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
    """Observations that ``policy`` takes, and actions that count from 0: nothing else is saved.

    Args:
        policy: "CnnPolicy", "MlpPolicy" or "MultiInputPolicy".
        observation_space: of the environment.
        action_space: likewise.
    """
    shown = " ".join(str(observation_space).split())[:100]
    parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {"": observation_space}
    for name, part in parts.items():
        if not isinstance(part, PLAIN) or min(part.shape or (1,)) < 1:
            where = f"{name} of the observations" if name else "observations"
            raise ValueError(f"{where} must be Box, Discrete, MultiDiscrete or MultiBinary, not {shown}")
        if name and is_image_space(part) and not _has_room(part):
            small = (
                f"{name} of the observations is an image of {part.shape}, and those of a table go through a Nature-CNN"
            )
            raise ValueError(f"{small}, which needs {MIN_SIDE} x {MIN_SIDE}: flatten it")
    fitting = fitting_policy(observation_space)
    if (policy == "MultiInputPolicy") != isinstance(observation_space, spaces.Dict):
        raise ValueError(f"policy must be {fitting!r} for observations {shown}, got {policy!r}")
    if policy == "CnnPolicy" and not is_image_space(observation_space):
        frames = "frames (planes, height, width) of uint8 from 0 to 255"
        raise ValueError(f"observations of a {policy} must be {frames}, not {shown}: choose {fitting!r} for them")
    if not isinstance(action_space, spaces.Discrete) or action_space.start != 0:
        raise ValueError(f"actions must be discrete and count from 0, as a DQN's do, not {action_space}")


def fitting_policy(space: spaces.Space[Any]) -> str:
    """The policy of Stable-Baselines3 for such observations.

    Example:
        >>> fitting_policy(spaces.Box(0, 255, (3, 64, 64), np.uint8)), fitting_policy(spaces.Discrete(9))
        ('CnnPolicy', 'MlpPolicy')
    """
    if isinstance(space, spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if is_image_space(space) and _has_room(space) else "MlpPolicy"


def _has_room(image: spaces.Space[Any]) -> bool:
    """Whether an image, channels first, is large enough for the convolutions of a Nature-CNN."""
    return bool(min(image.shape[1:]) >= MIN_SIDE)  # type: ignore[index]


def check_environment(env: Any) -> None:
    """Something that can be played: of gymnasium, of Stable-Baselines3, or (which that refuses itself) of old gym."""
    plays = not isinstance(env, type) and callable(getattr(env, "step", None)) and callable(getattr(env, "reset", None))
    if not plays:
        raise ValueError(f"env must be a gymnasium.Env or a VecEnv, like AtariVecEnv('pong'), got {env!r:.80}")


def check_not_normalized(env: VecEnv) -> None:
    """No running statistics: the student sees raw observations, and a teacher brings its own."""
    inner: Any = env
    while isinstance(inner, VecEnvWrapper):
        if isinstance(inner, VecNormalize) and inner.norm_obs:
            raise ValueError(
                "env is wrapped in VecNormalize: give the environment inside, env.venv. The student sees raw "
                "observations, and the teacher looks through its own statistics"
            )
        inner = inner.venv


def check_same_game(where: str, known: tuple[spaces.Space[Any], spaces.Space[Any]], env: VecEnv) -> None:
    """The environment must show and take what a student was built for.

    Args:
        where: whose student, for the message.
        known: its observations and actions.
        env: of the game.
    """
    if not (_same_form(known[0], env.observation_space) and _same_form(known[1], env.action_space)):
        ours, theirs = (
            f"observations {_shown(observations)} and {_n_actions(actions)} actions"
            for observations, actions in (known, (env.observation_space, env.action_space))
        )
        raise ValueError(f"another game: {where} is for {ours}, the environment has {theirs}")


def check_same_observations(of_tasks: Mapping[str, spaces.Space[Any]]) -> None:
    """The observations of all tasks must be of one form: one torso sees them.

    Raises:
        ValueError: naming two tasks that differ.
    """
    first, *others = of_tasks
    for name in others:
        if not _same_form(of_tasks[first], of_tasks[name]):
            shown, other = _shown(of_tasks[first]), _shown(of_tasks[name])
            raise ValueError(f"one student sees one form of observations: {first} shows {shown}, {name} shows {other}")


def _same_form(one: spaces.Space[Any], other: spaces.Space[Any]) -> bool:
    """Whether arrays of one are arrays of the other, bounds aside."""
    if isinstance(one, spaces.Dict) and isinstance(other, spaces.Dict):
        return list(one) == list(other) and all(_same_form(one[name], other[name]) for name in one)
    if isinstance(one, spaces.Box) and isinstance(other, spaces.Box):
        return one.shape == other.shape
    return one == other


def _shown(space: spaces.Space[Any]) -> str:
    if isinstance(space, spaces.Box):
        return str(space.shape)
    if isinstance(space, spaces.Dict):
        return "{" + ", ".join(f"{name}: {_shown(part)}" for name, part in space.items()) + "}"
    return str(space)


def _n_actions(space: spaces.Space[Any]) -> int | None:
    return int(space.n) if isinstance(space, spaces.Discrete) else None
