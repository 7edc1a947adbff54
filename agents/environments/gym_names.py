"""Names of gymnasium's environments: found in its registry, and in that of the user's package.

An id of an older version becomes the newest, with a notice. What is missing is one line that says how to get it.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from importlib.util import find_spec
from types import ModuleType

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, get_env_id, parse_env_id

from polydistill.errors import UserError, suggest
from polydistill_agents.environments.games import check_game

MINIGRID = ("MiniGrid-", "BabyAI-")  # ids that the package registers when it is imported
EXTRAS = {"box2d": "box2d", "minigrid": "minigrid"}  # a word of what is missing, and the extra that has it


def import_users(module: str, what: str) -> ModuleType:
    """A module of the user's; the current folder is looked in last.

    Args:
        module: its dotted name.
        what: it is for, as "env_package"; begins the message.

    Raises:
        UserError: there is none, or it fails.
    """
    here = os.getcwd()
    sys.path.append(here)
    try:
        return importlib.import_module(module)
    except Exception as error:  # it may be any code
        if isinstance(error, ModuleNotFoundError) and error.name and is_part(error.name, module):
            raise UserError(f"{what}: there is no module {module!r}, neither installed nor in {here}") from None
        raise UserError(f"{what}: {module} fails when imported: {describe(error)}") from error
    finally:
        sys.path.remove(here)


def is_part(name: str, module: str) -> bool:
    """Whether ``name`` is ``module`` or a package around it."""
    return f"{module}.".startswith(f"{name}.")


def describe(error: BaseException) -> str:
    """Type and first line of an error of foreign code."""
    line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def find_id(name: str, package: str = "") -> str:
    """The registered id that is meant by ``name``.

    Args:
        name: an id of gymnasium; "module:id" imports the module first, as in ``gymnasium.make``.
        package: a module that registers environments, imported first.

    Raises:
        UserError: there is none; the line says what may be meant, or what is to be installed.
    """
    module, _, env_id = name.strip().rpartition(":")
    for users in filter(None, (package, module)):
        import_users(users, "env_package")
    if env_id.startswith(MINIGRID) and env_id not in gym.registry and find_spec("minigrid"):
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # else it greets on standard output
        importlib.import_module("minigrid")
    known = gym.registry.get(env_id)
    if known is not None:
        if _is_atari(known):
            raise _atari(env_id, known.kwargs.get("game", env_id))
        return env_id
    newest = _newest(env_id)
    if newest is None:
        raise _unknown(env_id)
    if _is_atari(gym.registry[newest]):
        raise _atari(env_id, gym.registry[newest].kwargs.get("game", env_id))
    print(f"notice: {env_id} is not registered: {newest} is taken", file=sys.stderr)
    return newest


def _newest(env_id: str) -> str | None:
    """The newest registered version of an id that is older, or has none."""
    try:
        namespace, name, version = parse_env_id(env_id)
    except gym.error.Error:
        return None
    versions = [
        spec.version
        for spec in gym.registry.values()
        if (spec.namespace, spec.name) == (namespace, name) and spec.version is not None
    ]
    if not versions or (version is not None and version > max(versions)):
        return None
    return get_env_id(namespace, name, max(versions))


def _unknown(env_id: str) -> UserError:
    if env_id.startswith(MINIGRID) and not find_spec("minigrid"):
        return UserError(f'{env_id} needs the package minigrid: pip install "polydistill[minigrid]"')
    hint = suggest(env_id, [name for name, spec in gym.registry.items() if not _is_atari(spec)])
    if not hint:
        try:
            return _atari(env_id, check_game(env_id))
        except UserError as error:
            hint = "".join(re.findall(r"; did you mean \w+\?", str(error)))
    return UserError(f"unknown environment {env_id!r}{hint} (it is an id of gymnasium, or of the package env_package)")


def _is_atari(spec: EnvSpec) -> bool:
    return str(spec.entry_point).startswith("ale_py")


def _atari(env_id: str, game: str) -> UserError:
    return UserError(f"{env_id} is a game of Atari: distill_atari.py --game {game} (polydistill-atari) distils it")


def missing_package(env_id: str, error: Exception) -> UserError:
    """What to install where an environment cannot be made for want of a package."""
    text = str(error)
    extra = next((extra for word, extra in EXTRAS.items() if word in text.lower()), None)
    if extra is not None:
        return UserError(f'{env_id} needs a package that is not installed: pip install "polydistill[{extra}]"')
    if isinstance(error, ModuleNotFoundError):
        return UserError(f"{env_id} needs the module {error.name}, which is not installed")
    return UserError(f"{env_id} needs a package that is not installed: {describe(error).partition(': ')[2]}")
