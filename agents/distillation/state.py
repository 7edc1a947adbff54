"""All that decides the future of a student and its learning, as plain values and tensors.

The state is that between two rounds of play and updates. It loads with ``weights_only=True``. Two parts come from
elsewhere, since they are played again (``recording.py``): the inner state of the games, and the frames of the replay.
No global generator is in it: none decides anything here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from polydistill_agents.distillation.algorithm import PolicyDistillation

# of the constructor; with others the same state would go on to something else
SETTINGS = (
    "buffer_size", "learning_starts", "batch_size", "samples_per_step", "train_freq", "objective", "objective_kwargs",
    "temperature", "exploration_rate", "play", "precision", "generation", "root_seed", "n_envs",
)  # fmt: skip
COUNTERS = (
    "num_timesteps", "_n_updates", "_episode_num", "_current_progress_remaining", "_rounds", "_played",
    "_updates_at_zero", "_round_steps",
)  # fmt: skip


def copied(value: Any, device: str | None = None) -> Any:
    """A copy of nested dicts, lists and tuples, with every tensor (in its layout of memory) on ``device`` if given."""
    if isinstance(value, Tensor):
        return value.detach().to(value.device if device is None else device, copy=True)
    if isinstance(value, Mapping):
        return {key: copied(item, device) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copied(item, device) for item in value)
    return value


def plain_number(value: Any) -> Any:
    """A numpy or torch number as Python's own, which loads without unpickling; all else as it is."""
    return value.item() if hasattr(value, "item") else value


def weights_state(model: PolicyDistillation, device: str | None = None) -> dict[str, Any]:
    """Weights, optimiser and the order of the data: what updates read and write. A copy, on ``device`` if given."""
    return {
        "weights": copied(model.student.state_dict(), device),
        "optimizer": copied(model.policy.optimizer.state_dict(), device),
        "order": model._order.get_state(),
    }


def load_weights_state(model: PolicyDistillation, state: Mapping[str, Any]) -> None:
    """Put :func:`weights_state` back, in place: the optimiser and the policy keep their references."""
    model.student.load_state_dict(state["weights"])
    model.policy.optimizer.load_state_dict(copied(state["optimizer"]))  # torch would keep the tensors it is given
    model._order.set_state(state["order"])


def learning_state(model: PolicyDistillation) -> dict[str, Any]:
    """See :meth:`PolicyDistillation.state`."""
    replay, logger = model.replay, getattr(model, "_logger", None)
    return {
        "settings": {name: copied(getattr(model, name)) for name in SETTINGS},
        "counters": {name: plain_number(getattr(model, name)) for name in COUNTERS},
        "untouched": model._weight_versions() == model._built_versions,
        **weights_state(model, "cpu"),
        "explore": model._explore.bit_generator.state,
        "starts": model._starts.tolist(),
        "games": [{key: plain_number(value) for key, value in game.items()} for game in model.ep_info_buffer or ()],
        "successes": [plain_number(value) for value in model.ep_success_buffer or ()],
        "replay": None if replay is None else replay.position(),
        "logger": {} if logger is None else _logger_state(logger),
    }


def _logger_state(logger: Any) -> dict[str, Any]:
    """What was recorded since the last dump."""
    return {
        "values": {key: plain_number(value) for key, value in logger.name_to_value.items()},
        "counts": dict(logger.name_to_count),
        "excluded": {key: list(value) for key, value in logger.name_to_excluded.items()},
    }


def load_learning_state(model: PolicyDistillation, state: Mapping[str, Any]) -> None:
    """See :meth:`PolicyDistillation.load_state`."""
    for name, value in state["settings"].items():
        if getattr(model, name) != value:
            raise ValueError(f"the state is of a student with {name} {value}, this one has {getattr(model, name)}")
    position = None if model.replay is None else model.replay.position()
    if position != state["replay"]:
        raise ValueError(f"the replay must be filled before: it stands at {position}, the state at {state['replay']}")
    load_weights_state(model, state)
    if state["untouched"]:
        model._built_versions = model._weight_versions()  # learning still begins with data-dependent weights
    counters = state["counters"]  # those of earlier versions lack the two that are given here
    for name, value in ({"_played": counters["num_timesteps"], "_round_steps": model.train_freq} | counters).items():
        setattr(model, name, value)
    model._resumed_round_steps = model._round_steps  # of the call of learn that it was in, if it was
    model._explore.bit_generator.state = state["explore"]
    model._starts = np.array(state["starts"], dtype=bool)
    model.ep_info_buffer = deque(copied(state["games"]), maxlen=model._stats_window_size)
    model.ep_success_buffer = deque(state["successes"], maxlen=model._stats_window_size)
    if state["logger"] and hasattr(model, "_logger"):
        model.logger.name_to_value.update(state["logger"]["values"])
        model.logger.name_to_count.update(state["logger"]["counts"])
        model.logger.name_to_excluded.update({k: tuple(v) for k, v in state["logger"]["excluded"].items()})
