"""What a command of classifiers finds in its run folder before it begins: the same in all of its processes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from polydistill.config.plain_yaml import to_mapping
from polydistill.cores import as_before
from polydistill.learning.processes import Processes
from polydistill.runs import Standing, examine_folder, stored_config

MAY_GROW = ("lineage.generations",)  # of a run that is there


class ConfigOfRuns(Protocol):
    """What is read of a config: a dataclass with device, threads and precision."""

    def may_move(self, stored: Mapping[str, Any] | None) -> Sequence[str]:
        """Dotted keys that say where something lies, which may differ from a run that has ``stored``."""


Config = TypeVar("Config", bound=ConfigOfRuns)


class Beginning(NamedTuple, Generic[Config]):
    """What there is.

    Attributes:
        config: as asked for, but on what the run began with where nothing is asked for.
        stored: the config of the folder; None: it has none.
        standing: what the folder holds, compared with the config.
        allowed: what may be other than in the folder, as :meth:`Run.open` takes it.
    """

    config: Config
    stored: dict[str, Any] | None
    standing: Standing
    allowed: dict[str, Sequence[str]]


def look(out: Path, config: Config, processes: Processes) -> Beginning[Config]:
    """Look at the run folder ``out`` of the first process; the others need none, and are told.

    Raises:
        UserError: it holds a run of another config, or something that is no run, or cannot be read.
    """
    stored = processes.ask_first(lambda: stored_config(out))
    found: Config = dataclasses.replace(config, **as_before(vars(config), stored))  # type: ignore[type-var]
    allowed = {"may_grow": MAY_GROW, "may_move": found.may_move(stored)}
    standing = processes.ask_first(lambda: examine_folder(out, to_mapping(found), **allowed))
    return Beginning(found, stored, standing, allowed)
