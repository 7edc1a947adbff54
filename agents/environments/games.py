"""Atari games: the ROM ids of ale-py, what users of gymnasium and Stable-Baselines3 type for them, and their actions.

``PongNoFrameskip-v4``, ``ALE/Pong-v5``, ``Pong`` and ``pong`` are one game here. Only the game is taken from such a
name: frames that are skipped, sticky actions and the like are a protocol's business, see
:mod:`polydistill_agents.environments.protocols`.
"""

from __future__ import annotations

import difflib
import re
from functools import cache

from ale_py import ALEInterface, LoggerMode, roms

from polydistill.errors import UserError

JOYSTICK = 18  # actions in all; most games use fewer

# of gymnasium's environments: a namespace before the game; RAM, frame skip and version behind it
ENVIRONMENT = re.compile(
    r"(ale/)?(?P<game>.*?)(?P<ram>[-_]ram)?[-_]?(noframeskip|deterministic)?(-v\d+)?", re.IGNORECASE | re.DOTALL
)


def check_game(name: str) -> str:
    """The ROM id of the game that goes by that name.

    Args:
        name: a ROM id, or an environment's id; capitals, hyphens, underscores and spaces do not matter.

    Raises:
        UserError: no such game; the message proposes the nearest one. Or the name asks for the RAM as observation.

    Example:
        >>> check_game("MsPacmanNoFrameskip-v4"), check_game("ALE/Pong-v5"), check_game("space-invaders")
        ('ms_pacman', 'pong', 'space_invaders')
    """
    parts = ENVIRONMENT.fullmatch(name.strip())
    assert parts is not None  # everything in it is optional
    squeezed, known = _squeeze(parts["game"]), _rom_ids()
    if squeezed not in known:
        near = difflib.get_close_matches(squeezed, known, n=1)
        hint = f"; did you mean {known[near[0]]}?" if near else ""
        raise UserError(f"unknown game {name!r}{hint} (names are ale-py's ROM ids, like ms_pacman)")
    if parts["ram"]:
        raise UserError(f"{name} shows the RAM: agents here see frames, as in --game {known[squeezed]}")
    return known[squeezed]


@cache
def count_actions(game: str) -> int:
    """How many actions the game itself uses: its ROM is read, once, without an environment to play in.

    Args:
        game: a ROM id.
    """
    return len(joystick_actions(game))


@cache
def joystick_actions(game: str) -> tuple[int, ...]:
    """The game's own actions, in its order, each by its number among the 18 of the joystick.

    Args:
        game: a ROM id.

    Example:
        >>> joystick_actions("pong")  # NOOP, FIRE, RIGHT, LEFT, RIGHTFIRE, LEFTFIRE
        (0, 1, 3, 4, 11, 12)
    """
    ALEInterface.setLoggerMode(LoggerMode.Error)  # else it greets
    console, path = ALEInterface(), roms.get_rom_path(game)
    assert path is not None
    console.loadROM(path)
    return tuple(int(action.value) for action in console.getMinimalActionSet())


def _squeeze(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


@cache
def _rom_ids() -> dict[str, str]:
    """Every ROM id by its name without underscores; no two are equal then."""
    return {_squeeze(rom_id): rom_id for rom_id in roms.get_all_rom_ids()}
