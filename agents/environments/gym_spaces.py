"""Which spaces agents can have, and one line for each that they cannot.

A DQN of Stable-Baselines3 chooses one of n actions, and sees arrays, or a dict of arrays.
"""

from __future__ import annotations

from typing import Any

from gymnasium import spaces

from polydistill.errors import UserError

SEEN = "agents see Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of these"
WRAPPERS = {  # of packages whose environments need one: those that make an array of what is shown
    ("MiniGrid-", "BabyAI-"): "--wrappers minigrid.wrappers:ImgObsWrapper, or minigrid.wrappers:FlatObsWrapper",
}
ANY_WRAPPER = "--wrappers FlattenObservation, or a module:function of yours"


def check_actions(name: str, space: spaces.Space[Any]) -> spaces.Discrete:
    """The actions, where a DQN can take them.

    Raises:
        UserError: it cannot.
    """
    if not isinstance(space, spaces.Discrete):
        ours = "--wrappers DiscretizeAction:5" if isinstance(space, spaces.Box) else "--wrappers module:function"
        why = "a DQN takes Discrete actions alone; a wrapper may list some of them"
        raise UserError(f"the actions of {name} are {_line(space)}: {why} ({ours})")
    if space.start != 0:
        raise UserError(
            f"the actions of {name} start at {space.start}: Stable-Baselines3 counts from 0; shift them by a wrapper "
            "(--wrappers module:function)"
        )
    return space


def check_observations(name: str, space: spaces.Space[Any]) -> None:
    """Refuse what is not seen by agents.

    Raises:
        UserError: naming the space, and a wrapper that may help.
    """
    if isinstance(space, spaces.Dict):
        for key, inner in space.items():
            nested = "a Dict in a Dict" if isinstance(inner, spaces.Dict) else _refusal(inner)
            _refuse(name, f"its {key!r} is ", nested)
        _refuse(name, "they are ", None if space.spaces else "an empty Dict")
    else:
        _refuse(name, "they are ", _refusal(space))


def _refuse(name: str, which: str, what: str | None) -> None:
    if what is not None:
        hint = next((hint for heads, hint in WRAPPERS.items() if name.startswith(heads)), ANY_WRAPPER)
        raise UserError(f"the observations of {name} cannot be used: {which}{what}, and {SEEN}: try {hint}")


def _refusal(space: spaces.Space[Any]) -> str | None:
    """What is wrong with a space of one array; None: nothing."""
    match space:
        case spaces.Box() if space.shape == ():
            return f"{_line(space)}, without an axis"
        case spaces.Box() if 0 in space.shape:
            return f"{_line(space)}, which holds nothing"
        case spaces.Discrete() if space.start != 0:
            return f"{_line(space)}, which does not count from 0"
        case spaces.MultiDiscrete() if space.nvec.ndim != 1 or (space.start != 0).any():
            return f"{_line(space)}, not a row of numbers that count from 0"
        case spaces.Box() | spaces.Discrete() | spaces.MultiDiscrete() | spaces.MultiBinary():
            return None
    return _line(space)


def _line(space: spaces.Space[Any]) -> str:
    """Kind and size in one line."""
    match space:
        case spaces.Box():
            return f"Box{space.shape} {space.dtype}"
        case spaces.Discrete():
            return f"Discrete({space.n}, start={space.start})"
        case spaces.MultiDiscrete():
            return f"MultiDiscrete{space.nvec.shape}"
        case spaces.MultiBinary():
            return f"MultiBinary{space.shape}"
    return type(space).__name__
