"""Wrappers by name: gymnasium's, Stable-Baselines3's of all games at once, and the user's own functions and classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
from stable_baselines3.common.vec_env import VecEnv, VecExtractDictObs, VecFrameStack

from polydistill.errors import UserError, suggest
from polydistill_agents.environments.gym_names import describe, import_users

OF_ALL_GAMES: dict[str, Callable[..., VecEnv]] = {
    "VecFrameStack": VecFrameStack,
    "VecExtractDictObs": VecExtractDictObs,
}
TENSORS = ("ArrayConversion", "JaxToNumpy", "JaxToTorch", "NumpyToTorch")  # games here give arrays
OF_ONE_GAME = tuple(name for name in gym.wrappers.__all__ if name[0].isupper() and name not in TENSORS)

REFUSED = {
    "VecNormalize": "its statistics are read beside the teacher's zip",
    "NormalizeObservation": "it learns another scale in each game, which no file holds",
    "RecordEpisodeStatistics": "games are scored without it",
    "Autoreset": "games start again without it",
}


class NamedWrapper(NamedTuple):
    """A wrapper as it is named in a config.

    Attributes:
        text: what was written.
        function: from what is wrapped, and ``arguments``, to the wrapped.
        arguments: none or one.
        of_all_games: it wraps a ``VecEnv``; else the environment of one game.
    """

    text: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    of_all_games: bool

    def apply(self, inner: Any) -> Any:
        """What it makes of ``inner``.

        Raises:
            UserError: it fails, or makes nothing that can be played.
        """
        try:
            outer = self.function(inner, *self.arguments)
        except Exception as error:  # it may be any code
            raise UserError(f"the wrapper {self.text} fails: {describe(error)}") from error
        expected: type[Any] = VecEnv if self.of_all_games else gym.Env
        if not isinstance(outer, expected):
            kind = type(outer).__name__
            raise UserError(f"the wrapper {self.text} must return a {expected.__name__}, it returns {kind}")
        return outer


def find_wrappers(names: Sequence[str]) -> tuple[NamedWrapper, ...]:
    """The wrappers of these names, the innermost first.

    Args:
        names: ``"FlattenObservation"`` and others of ``gymnasium.wrappers``, ``"VecFrameStack:4"`` and
            ``"VecExtractDictObs:key"`` of Stable-Baselines3; a number or word behind the colon is their argument. Or
            ``"module:function"``, ``"module:Class"``, called with the environment of one game.

    Raises:
        UserError: there is no such wrapper, or one of a single game stands behind one of all games.
    """
    found = tuple(map(_find, names))
    outer = next((wrapper.text for wrapper in found if wrapper.of_all_games), None)
    if outer is not None and not all(wrapper.of_all_games for wrapper in found[names.index(outer) :]):
        raise UserError(f"wrappers: {outer} wraps all games at once, so it stands behind those of one game")
    return found


def _find(text: str) -> NamedWrapper:
    text = " ".join(text.split())
    name, colon, rest = text.partition(":")
    if name in REFUSED:
        raise UserError(f"wrappers: leave {name} out: {REFUSED[name]}")
    arguments = (_value(rest),) if colon else ()
    if name in OF_ALL_GAMES:
        return NamedWrapper(text, OF_ALL_GAMES[name], arguments, True)
    if name in OF_ONE_GAME:
        return NamedWrapper(text, getattr(gym.wrappers, name), arguments, False)
    if colon and rest.isidentifier():
        module = import_users(name, f"the wrapper {text}")
        function = getattr(module, rest, None)
        if not callable(function):
            there_are = [other for other, value in vars(module).items() if callable(value) and other[0] != "_"]
            raise UserError(f"the wrapper {text}: {name} has no {rest}{suggest(rest, there_are)}")
        return NamedWrapper(text, function, (), False)
    hint = suggest(name, (*OF_ALL_GAMES, *OF_ONE_GAME))
    raise UserError(
        f"unknown wrapper {text!r}{hint} (it is one of gymnasium.wrappers, VecFrameStack:4, module:function)"
    )


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
