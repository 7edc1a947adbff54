"""What a part of the project needs to be installed, and one line where it is not.

The base installation is torch and numpy: the losses, the doctor, lineages of one's own modules. The rest comes as
extras. Contract: nothing heavy is imported here, and every Python since 3.8 can run this file: scripts ask it first.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

from polydistill._shadow import exit_with, require_own_agents
from polydistill.cores import limit_spinning

OLDEST = (3, 11)
# the modules of each extra, as pyproject.toml has its packages
_RUNS = ("jsonargparse", "yaml", "rich", "tensorboard", "filelock")
EXTRAS = {
    "runs": _RUNS,
    "atari": (*_RUNS, "stable_baselines3", "gymnasium", "ale_py", "tqdm", "PIL", "safetensors"),
    "vision": (*_RUNS, "pooch", "tqdm", "safetensors"),
    "hub": ("huggingface_hub",),
}


class MissingExtra(ModuleNotFoundError):
    """An extra is not installed; the text is one line that says how to install it."""


def require_extra(extra: str) -> None:
    """Look whether all of an extra is installed, without importing it.

    Args:
        extra: name in :data:`EXTRAS`.

    Raises:
        MissingExtra: it is not.
    """
    missing = _missing(EXTRAS[extra])
    if missing:
        raise MissingExtra(
            f"this needs the extra {extra} ({_few(missing)} not found): pip install 'polydistill[{extra}]'",
            name=missing[0],
        )


def require_environment(extra: str, *modules: str) -> None:
    """What a script does first: exit with one line and code 2 where this Python cannot run it.

    Args:
        extra: name in :data:`EXTRAS`; with "atari", ``agents`` must be polydistill's own package.
        modules: of it, where the script needs only these.

    Raises:
        SystemExit: with code 2; the line ``error: ...`` on standard error says what is missing and how to get it.
    """
    how = "use .venv/bin/python, which `make distill` makes"
    if sys.version_info < OLDEST:
        found, wanted = ".".join(map(str, sys.version_info[:2])), ".".join(map(str, OLDEST))
        exit_with(f"polydistill needs Python {wanted} or later, and {sys.executable} is {found}; {how}")
    missing = _missing(("torch", "numpy", *(modules or EXTRAS[extra])))
    if missing:
        exit_with(
            f"not installed for {sys.executable}: {_few(missing)}; {how}, or in the clone: pip install '.[{extra}]'"
        )
    if extra == "atari":
        require_own_agents()
    limit_spinning()  # torch is not imported yet


def _few(names: list[str]) -> str:
    """Three names at most, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _missing(modules: tuple[str, ...]) -> list[str]:
    return [module for module in modules if find_spec(module) is None]
