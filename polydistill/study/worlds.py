"""A world as a study sees it: a config class, a command, and the file by which a run teaches another.

The worlds are named in one table, :data:`polydistill._environment.WORLDS`, as the console commands are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from polydistill._environment import WORLDS, MissingExtra, require_extra
from polydistill.errors import UserError

CLONE = Path(__file__).resolve().parents[2]


class WorldConfig(Protocol):
    """What a study asks of a world's config, beside its plain fields; ``teacher.path`` and ``seed`` are among them."""

    def resolve(self, stored: Mapping[str, Any] | None = None) -> WorldConfig:
        """With device, threads and precision of this machine; ``stored`` is the config of what is continued."""


class EnsembleWorld(NamedTuple):
    """How a world measures an ensemble of the networks of finished runs.

    Args:
        config_class: of such a run: ``members``, the run folders, and whatever it shares with the config of a run.
        command: words that start one, before its flags.
        training: what the cost of a run is counted in, like "epochs of training".
        training_of: how many of these a run with a config of plain values takes.
        seconds: that one takes; None: nobody knows beforehand.
        is_taught: whether the students of such a run learn from their teacher.
    """

    config_class: type[Any]
    command: tuple[str, ...]
    training: str
    training_of: Callable[[Mapping[str, Any]], int]
    seconds: float | None
    is_taught: Callable[[Mapping[str, Any]], bool]


@dataclass(frozen=True)
class World:
    """One world.

    Args:
        name: like that of its command.
        config_class: of a run.
        default: the config where a study names none; None: the defaults of ``config_class``.
        command: words that start a run, before its flags.
        product: file in a run's folder that teaches another run; ``{last}`` is the number of its last generation.
        trains_teachers: a run of no students trains a teacher.
        expected_seconds: of a run with a resolved config, roughly. Without it, or where it gives None, the world does
            not say.
        younger: keys of its config that are younger than plans of it: where they are off, a plan does not name them, so
            that its hash is that of the version which made it.
        ensemble: how it measures ensembles; None: it does not.
        check: refuses resolved configs of runs, of one study, that could not begin, and names whose; it gives what
            summary.json of each says of the data by part, as far as all runs have them alike. None: the runs themselves
            say what is wrong.
        as_teacher: from the config of a run to the keys of the config of one that its student teaches, which are others
            than the student's; None: none are.
        as_base: from the config that all arms share, and that of an arm, to the keys by which the arm sees and is
            tested by the same data; None: no data follow from a student.
        together: words that start several runs in one process, before the file that names them; None: there is no such
            command.
    """

    name: str
    config_class: type[Any]
    default: Any
    command: tuple[str, ...]
    product: str
    trains_teachers: bool
    expected_seconds: Callable[[Any], float | None] | None = None
    younger: tuple[str, ...] = ()
    ensemble: EnsembleWorld | None = None
    check: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    as_teacher: Callable[[Any], Mapping[str, Any]] | None = None
    as_base: Callable[[Any, Any], Mapping[str, Any]] | None = None
    together: tuple[str, ...] | None = None


def open_world(name: str, *, installed: bool = False) -> World:
    """The world of that name.

    Args:
        name: of it.
        installed: whether its commands are those of an installed package, which another computer has, too, and not the
            scripts of this clone.

    Raises:
        UserError: its extra is not installed.
    """
    entry = WORLDS[name]
    try:
        require_extra(entry.extra)
    except MissingExtra as error:
        raise UserError(str(error)) from error
    return World(
        name=name,
        config_class=_find(entry.config),
        default=_find(entry.default) if entry.default else None,
        command=_command(f"distill_{name}", f"polydistill-{name}", installed=installed),
        product=entry.product,
        trains_teachers=entry.trains_teachers,
        expected_seconds=_find(entry.seconds) if entry.seconds else None,
        younger=entry.younger,
        ensemble=_open_ensembles(entry.ensembles, installed) if entry.ensembles else None,
        check=_find(entry.check) if entry.check else None,
        as_teacher=_find(entry.as_teacher) if entry.as_teacher else None,
        as_base=_find(entry.as_base) if entry.as_base else None,
        together=_command(f"together_{name}", f"polydistill-{name}-together", installed=installed)
        if entry.together
        else None,
    )


def _open_ensembles(module: str, installed: bool) -> EnsembleWorld:
    return EnsembleWorld(
        config_class=_find(f"{module}:EnsembleConfig"),
        command=_command(*_find(f"{module}:COMMAND"), installed=installed),
        training=_find(f"{module}:TRAINING"),
        training_of=_find(f"{module}:training_of"),
        seconds=_find(f"{module}:SECONDS"),
        is_taught=_find(f"{module}:is_taught"),
    )


def _find(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def _command(script_name: str, name: str, *, installed: bool) -> tuple[str, ...]:
    """The clone's script where there is a clone, else what the console command ``name`` calls."""
    script = CLONE / "scripts" / f"{script_name}.py"
    if script.is_file() and not installed:
        return sys.executable, str(script)
    call = f"from polydistill._environment import run_command; run_command('{name}')"
    return sys.executable, "-c", call
