"""The training of a stock DQN, saved between two steps and gone on with bit for bit.

What its environment is in the middle of, and its replay, which is gigabytes, are not saved: the games are played again
(:mod:`polydistill_agents.environments.recording`), and fill it as they did.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from stable_baselines3 import DQN

from polydistill_agents.environments.steps import Step
from polydistill_agents.networks.observations import Arrays

COUNTERS = (
    "num_timesteps", "_n_updates", "_n_calls", "_episode_num", "_current_progress_remaining", "exploration_rate",
)  # fmt: skip


def training_state(model: DQN) -> dict[str, Any]:
    """What :func:`load_training_state` needs. To be asked for between two steps."""
    return {
        "policy": model.policy.state_dict(),
        "optimizer": model.policy.optimizer.state_dict(),
        "counters": {name: getattr(model, name) for name in COUNTERS},
        "games": [{key: float(value) for key, value in game.items()} for game in model.ep_info_buffer or ()],
        "generators": generators_state(model),
        "torch": torch.get_rng_state(),
    }


def load_training_state(model: DQN, state: Mapping[str, Any]) -> None:
    """Go on from :func:`training_state`; one of an earlier version has fewer counters, and no games."""
    model.policy.load_state_dict(state["policy"])
    model.policy.optimizer.load_state_dict(state["optimizer"])
    for name, value in state["counters"].items():
        setattr(model, name, value)
    if model.ep_info_buffer is not None and "games" in state:
        model.ep_info_buffer.clear()
        model.ep_info_buffer.extend(dict(game) for game in state["games"])
    load_generators_state(model, state["generators"])
    torch.set_rng_state(state["torch"])


def generators_state(model: DQN) -> str:
    """Those that Stable-Baselines3's DQN draws from on the CPU: numpy's global one, and that of the actions."""
    numpy = np.random.get_state(legacy=False)
    generators = {"numpy": numpy, "actions": model.action_space.np_random.bit_generator.state}
    return json.dumps(generators, default=lambda array: array.tolist())


def load_generators_state(model: DQN, state: str) -> None:
    """Put :func:`generators_state` back."""
    generators = json.loads(state)
    np.random.set_state(generators["numpy"])
    model.action_space.np_random.bit_generator.state = generators["actions"]


def read_step(model: DQN, told: Mapping[str, Any]) -> Step:
    """The step of play that a callback is told of, among its ``locals``; nobody scores it."""
    starts, nobody = np.zeros(model.n_envs, dtype=bool), torch.zeros(model.n_envs, 0)
    parts = (told[name] for name in ("new_obs", "rewards", "dones", "infos"))
    return Step(model._last_obs, starts, nobody, told["actions"], *parts)


def continue_play(model: DQN, first: Arrays, steps: Iterable[Step]) -> None:
    """Fill the empty replay with what is played again, and stand where the games then stand.

    Args:
        model: before its first step.
        first: what the games show before the first step.
        steps: of :meth:`polydistill_agents.environments.recording.Recording.play_again`.
    """
    assert model.replay_buffer is not None
    model._last_obs = first
    for step in steps:
        model._store_transition(model.replay_buffer, step.actions, step.new_obs, step.rewards, step.dones, step.infos)
