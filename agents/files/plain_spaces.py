"""Spaces of observations as plain JSON, for files of this project's own; whoever reads one takes nothing on trust."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from polydistill_agents.files.sb3_spaces import DTYPES, MAX_ELEMENTS, MAX_FEATURES
from polydistill_agents.files.tensor_pickle import MAX_AXES


def space_to_plain(space: spaces.Space[Any]) -> dict[str, Any]:
    """The space as numbers, texts, lists and tables. A bound that is null is infinite.

    Raises:
        ValueError: no network of Stable-Baselines3 sees such a space.

    Example:
        >>> space_to_plain(spaces.Box(0, 255, (4, 84, 84), np.uint8))
        {'kind': 'Box', 'shape': [4, 84, 84], 'dtype': 'uint8', 'low': 0, 'high': 255}
    """
    match space:
        case spaces.Dict():
            return {"kind": "Dict", "parts": {name: space_to_plain(part) for name, part in space.items()}}
        case spaces.Box():
            bounds = {"low": _bound(space.low), "high": _bound(space.high)}
            return {"kind": "Box", "shape": list(space.shape), "dtype": str(space.dtype), **bounds}
        case spaces.Discrete():
            return {"kind": "Discrete", "n": int(space.n)}
        case spaces.MultiDiscrete():
            return {"kind": "MultiDiscrete", "nvec": space.nvec.tolist(), "dtype": str(space.dtype)}
        case spaces.MultiBinary():
            return {"kind": "MultiBinary", "shape": list(space.shape)}
    raise ValueError(f"Stable-Baselines3 has no policy for observations {space}")


def space_from_plain(plain: Any) -> spaces.Space[Any]:
    """The space that :func:`space_to_plain` wrote down.

    Raises:
        ValueError, KeyError, TypeError: it is none, or larger than what is read.
    """
    if plain["kind"] == "Dict":  # in its own order: the features stand side by side in it
        space = spaces.Dict([(name, _part(part)) for name, part in plain["parts"].items()])
        if sum(math.prod(part.shape or ()) for part in space.values()) > MAX_ELEMENTS:
            raise ValueError("its observations are larger than what is read")
        return space
    return _part(plain)


def _bound(values: NDArray[Any]) -> Any:
    """One number where all are the same, else a flat list."""
    flat = [None if math.isinf(value) else value for value in values.flatten().tolist()]
    return flat[0] if len(set(flat)) == 1 else flat


def _part(plain: Any) -> spaces.Space[Any]:
    match plain["kind"]:
        case "Box":
            return _box(plain)
        case "Discrete":
            return spaces.Discrete(_count(plain["n"]))
        case "MultiDiscrete":
            counts = [_count(n) for n in plain["nvec"]]
            _count(sum(counts))
            return spaces.MultiDiscrete(counts, dtype=_dtype(plain, "iu"))
        case "MultiBinary":
            shape = _shape(plain)
            return spaces.MultiBinary(shape[0] if len(shape) == 1 else shape)
    raise ValueError("its observations are of no known kind")


def _box(plain: Any) -> spaces.Box:
    shape, dtype = _shape(plain), _dtype(plain, "iuf")
    ends: list[NDArray[Any]] = []
    for name, infinite in (("low", -np.inf), ("high", np.inf)):
        given = plain[name]
        values = np.array([infinite if value is None else value for value in _as_list(given)], dtype=dtype)
        if not isinstance(given, list):
            values = np.broadcast_to(values, (math.prod(shape),))
        ends.append(values.reshape(shape).copy())
    low, high = ends
    return spaces.Box(low, high, shape, dtype)


def _as_list(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [given]


def _shape(plain: Any) -> tuple[int, ...]:
    shape = tuple(_count(length) for length in plain["shape"])
    if not shape or len(shape) > MAX_AXES or math.prod(shape) > MAX_ELEMENTS:
        raise ValueError(f"its observations of {len(shape)} axes are not read")
    return shape


def _dtype(plain: Any, kinds: str) -> Any:
    if plain["dtype"] not in DTYPES or np.dtype(plain["dtype"]).kind not in kinds:
        raise ValueError("its observations are of a type that is not read")
    return np.dtype(plain["dtype"])


def _count(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= MAX_FEATURES:
        raise ValueError(f"its observations have a count that is none of 1 to {MAX_FEATURES:,}")
    return value
