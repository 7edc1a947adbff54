"""Spaces of observations beside one another: whether they fit, in words and shapes where they do not."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

OTHERWISE = "was it trained in another environment, or behind wrappers that are missing here?"


def tell_space(space: spaces.Space[Any]) -> str:
    """A space in a few words.

    Example:
        >>> tell_space(spaces.Box(-1, 1, (4,), np.float32)), tell_space(spaces.Dict(a=spaces.Discrete(3)))
        ('(4,) float32', '{a: Discrete(3)}')
    """
    if isinstance(space, spaces.Dict):
        return "{" + ", ".join(f"{name}: {tell_space(part)}" for name, part in space.items()) + "}"
    return f"{space.shape} {space.dtype}" if isinstance(space, spaces.Box) else str(space)


def space_fits(taught: spaces.Space[Any], seen: spaces.Space[Any]) -> bool:
    """Whether observations of ``seen`` are those of ``taught``: of whatever bounds, and floats of any precision."""
    if isinstance(taught, spaces.Dict) and isinstance(seen, spaces.Dict):
        same = set(taught) == set(seen)
        return same and all(space_fits(taught[name], seen[name]) for name in taught)
    if isinstance(taught, spaces.Box) and isinstance(seen, spaces.Box):
        floats = all(np.issubdtype(space.dtype, np.floating) for space in (taught, seen))
        return taught.shape == seen.shape and (floats or taught.dtype == seen.dtype)
    if isinstance(taught, spaces.Discrete) and isinstance(seen, spaces.Discrete):
        return bool(taught.n == seen.n)
    if isinstance(taught, spaces.MultiDiscrete) and isinstance(seen, spaces.MultiDiscrete):
        return bool(np.array_equal(taught.nvec, seen.nvec))
    both = isinstance(taught, spaces.MultiBinary) and isinstance(seen, spaces.MultiBinary)
    return both and taught.shape == seen.shape


def tell_misfit(taught: spaces.Space[Any], seen: spaces.Space[Any]) -> str:
    """What both are, and what may be behind it: one line."""
    line = f"the teacher sees {tell_space(taught)}, the environment shows {tell_space(seen)}"
    if isinstance(taught, spaces.Dict) and isinstance(seen, spaces.Dict):
        lacks, more = (", ".join(sorted(map(str, a))) for a in (set(taught) - set(seen), set(seen) - set(taught)))
        return line + (f": {lacks} is missing" if lacks else "") + (f": {more} is new to the teacher" if more else "")
    if not isinstance(taught, spaces.Box) or not isinstance(seen, spaces.Box):
        return f"{line}: {OTHERWISE}"
    if taught.shape == seen.shape:
        return f"{line}: are they scaled otherwise?"
    if len(taught.shape) == len(seen.shape) == 3:
        if (taught.shape[1:] + taught.shape[:1]) == seen.shape or (taught.shape[-1:] + taught.shape[:-1]) == seen.shape:
            return f"{line}: the channels stand first in one of them, last in the other (VecTransposeImage moves them)"
        if taught.shape[1:] == seen.shape[1:]:
            return f"{line}: another number of frames is stacked, or of colours"
    return f"{line}: {OTHERWISE}"
