"""What of Stable-Baselines3's own bookkeeping belongs to the state of a student, as plain values.

The state of a student is that between two rounds of play and updates. It loads with ``weights_only=True``. Two parts
come from elsewhere, since they are played again (``recording.py``): the inner state of the games, and the frames of the
replay. No global generator is in it: none decides anything here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor


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


def read_attributes(model: BaseAlgorithm, names: Sequence[str]) -> dict[str, Any]:
    """Copies of attributes that are numbers, words, or dicts of them."""
    return {name: plain_number(copied(getattr(model, name))) for name in names}


def read_records(model: BaseAlgorithm) -> dict[str, Any]:
    """The last games, and what was recorded since the last dump."""
    logger = getattr(model, "_logger", None)
    logged = {} if logger is None else {
        "values": {key: plain_number(value) for key, value in logger.name_to_value.items()},
        "counts": dict(logger.name_to_count),
        "excluded": {key: list(value) for key, value in logger.name_to_excluded.items()},
    }  # fmt: skip
    return {
        "games": [{key: plain_number(value) for key, value in game.items()} for game in model.ep_info_buffer or ()],
        "successes": [plain_number(value) for value in model.ep_success_buffer or ()],
        "logger": logged,
    }


def load_records(model: BaseAlgorithm, state: Mapping[str, Any]) -> None:
    """Put :func:`read_records` back."""
    model.ep_info_buffer = deque(copied(state["games"]), maxlen=model._stats_window_size)
    model.ep_success_buffer = deque(state["successes"], maxlen=model._stats_window_size)
    if state["logger"] and hasattr(model, "_logger"):
        model.logger.name_to_value.update(state["logger"]["values"])
        model.logger.name_to_count.update(state["logger"]["counts"])
        model.logger.name_to_excluded.update({k: tuple(v) for k, v in state["logger"]["excluded"].items()})
