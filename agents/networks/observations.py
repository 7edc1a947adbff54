"""Observations: an array of one row per game, or (of a ``Dict`` space) a table of such arrays, by name.

What is done to them is done to each array: :func:`each`. Tensors likewise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

Arrays = NDArray[Any] | dict[str, NDArray[Any]]
Tensors = Tensor | dict[str, Tensor]
Each = TypeVar("Each")


def each(function: Callable[[Any], Each], observations: Any) -> Each | dict[str, Each]:
    """``function`` of the array, or of each array of a table."""
    if isinstance(observations, Mapping):
        return {name: function(value) for name, value in observations.items()}
    return function(observations)


def leaves(observations: Any) -> list[Any]:
    """The arrays, those of a table in the order of their names."""
    if isinstance(observations, Mapping):
        return [observations[name] for name in sorted(observations)]
    return [observations]


def count_rows(observations: Arrays | Tensors) -> int:
    """Games, or samples."""
    return len(leaves(observations)[0])


def take(observations: Any, rows: Any) -> Any:
    """The given rows: an index, a mask or a slice."""
    return each(lambda value: value[rows], observations)


def join(parts: Sequence[Tensors]) -> Tensors:
    """The rows of several, one after another."""
    first = parts[0]
    if isinstance(first, Mapping):
        return {name: torch.cat([cast(Any, part)[name] for part in parts]) for name in first}
    return torch.cat(cast(Any, parts))


def to_tensors(observations: Arrays, device: torch.device | str) -> Tensors:
    """Arrays as tensors on ``device``; on the CPU they share memory."""
    return each(lambda value: torch.from_numpy(np.ascontiguousarray(value)).to(device), observations)


def example(space: spaces.Space[Any], rows: int) -> Arrays:
    """``rows`` observations as they would come from a VecEnv, all zeros or the nearest to them that ``space`` holds."""
    if isinstance(space, spaces.Dict):
        return {name: np.asarray(example(inner, rows)) for name, inner in space.items()}
    if isinstance(space, spaces.Box):
        one = np.clip(np.zeros(space.shape, space.dtype), space.low, space.high)
        return np.broadcast_to(one, (rows, *space.shape)).copy()
    return np.zeros((rows, *(space.shape or ())), dtype=space.dtype)
