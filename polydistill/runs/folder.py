"""What a run folder holds before anything is written: nothing, a run of this config, or of another one.

Contract: nothing here writes. A folder is bound to a config by its first checkpoint or by its summary; before that
there is nothing to continue, and another config may begin there.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from polydistill.disk import disk_errors, is_temporary
from polydistill.errors import UserError
from polydistill.runs.checkpoint import Checkpoints
from polydistill.runs.lock import LOCK

SCHEMA = 1
FAILURE = "generation_{}_failure.pt"  # written when a number is not finite
SEED = "{seed}"  # in the path of a config: stands for the seed of the run
MACHINE = ("device", "threads", "precision")  # if the command line leaves them out, the stored values count


class Standing(NamedTuple):
    """What a folder holds, compared with a config.

    Args:
        state: new: there is no run; begun: one without a checkpoint, which starts over; unfinished; finished.
        grown: keys whose value is larger in the config than in the folder.
        moved: keys that name another place in the config than in the folder: the caller compares what lies there.
        replaced: the begun run has another config.
    """

    state: Literal["new", "begun", "unfinished", "finished"]
    grown: Sequence[str] = ()
    moved: Sequence[str] = ()
    replaced: bool = False

    def describe(self) -> str:
        """What a run of the config would do in the folder, in a few words."""
        if self.replaced:
            return "holds a run of another config without a checkpoint, which would be replaced"
        return {
            "new": "a new run would begin there",
            "begun": "holds a run without a checkpoint, which would start over",
            "unfinished": f"the run there would go on{' with more ' + ', '.join(self.grown) if self.grown else ''}",
            "finished": "the run there is finished: its table would be printed",
        }[self.state]


def is_bound(out: Path) -> bool:
    """Whether the folder holds a checkpoint or a summary: something that belongs to one config."""
    return (out / "summary.json").exists() or bool(Checkpoints(out / "checkpoints").paths())


def stored_config(out: Path) -> dict[str, Any] | None:
    """The config of the run that would be continued in ``out``; None: there is none, or it cannot be read."""
    from polydistill.config.plain_yaml import load_yaml

    if is_bound(out) and (out / "config.yaml").exists():
        with contextlib.suppress(UserError):
            return dict(load_yaml(out / "config.yaml"))
    return None


def examine_folder(
    out: Path, config: Mapping[str, Any], *, may_grow: Sequence[str] = (), may_move: Sequence[str] = ()
) -> Standing:
    """What ``out`` holds, compared with ``config``.

    Args:
        out: a folder, or the name of one.
        config: resolved; nested plain values, see :func:`polydistill.config.plain_yaml.to_mapping`.
        may_grow: dotted keys whose value may be larger in ``config`` than in ``out``.
        may_move: dotted keys that say where something lies.

    Raises:
        UserError: it holds a run of another config, or something that is no run, or cannot be read.
    """
    with disk_errors(out, "read"):
        if out.exists() and not out.is_dir():
            raise UserError(f"{out} is a file; --out takes a folder")
        names = [entry.name for entry in out.iterdir()] if out.exists() else []
    entries = [name for name in names if not (is_temporary(name) or name == LOCK)]
    if not entries:
        return Standing("new")
    if "config.yaml" not in entries:
        raise UserError(f"{out} is not empty and holds no run (no config.yaml); give --out another folder")
    if not is_bound(out):
        there, here = _flat(out), _flat(config)
        new = {key for key in here.keys() - there.keys() if is_off(here[key])}
        if here.keys() - new == there.keys():  # other keys: another tool's config.yaml, whose folder is not touched
            return Standing("begun", replaced=any(there[key] != here[key] for key in there))
    moved: list[str] = []
    grown = require_same_config(out, config, may_grow=may_grow, may_move=may_move, moved=moved)
    if not (out / "summary.json").exists():
        return Standing("unfinished" if is_bound(out) else "begun", grown, moved)
    if grown and not Checkpoints(out / "checkpoints").paths():
        raise UserError(f"{out} is finished and has no checkpoint from which {grown[0]} could grow")
    return Standing("unfinished" if grown else "finished", grown, moved)


def _flat(config: Mapping[str, Any] | Path) -> dict[str, Any]:
    """A config, or that of a folder, with dotted keys."""
    from polydistill.config.plain_yaml import flatten, load_yaml

    return dict(flatten(load_yaml(config / "config.yaml") if isinstance(config, Path) else config))


def is_off(value: Any) -> bool:
    """Whether a newer option, which an older run does not have, changes nothing: it is null, 0 or an empty list."""
    return value is None or (type(value) is int and value == 0) or value == []


def require_same_config(
    out: Path,
    config: Mapping[str, Any],
    *,
    may_grow: Sequence[str] = (),
    may_move: Sequence[str] = (),
    moved: list[str] | None = None,
) -> list[str]:
    """Compare the config.yaml of the run folder ``out`` with ``config``, key by key; a key that is not there is off.

    Args:
        out: a folder with a config.yaml.
        config: nested plain values, see :func:`polydistill.config.plain_yaml.to_mapping`.
        may_grow: dotted keys whose value may be larger in ``config`` than in ``out``.
        may_move: dotted keys that may differ, since the caller compares what lies there.
        moved: those of ``may_move`` that differ are added to it.

    Returns:
        those of ``may_grow`` that are larger in ``config``.

    Raises:
        UserError: they differ; the message names the first key that does.
    """
    old, new = _flat(out), _flat(config)
    grown = []
    for key in [*new, *(key for key in old if key not in new)]:
        if key in old and key in new and old[key] == new[key]:
            continue
        if (key not in old and is_off(new[key])) or (key not in new and is_off(old[key])):
            continue
        if key in old and key in new and key in may_grow and new[key] > old[key]:
            grown.append(key)
            continue
        if key in old and key in new and key in may_move:
            if moved is not None:
                moved.append(key)
            continue
        was, now = (repr(side[key]) if key in side else "not set" for side in (old, new))
        how = f"leave --{key} out to go on with what it was, or " if key in MACHINE else ""
        raise UserError(
            f"{out} holds a run of another config: {key} is {was} there and {now} here; {how}give --out another folder"
        )
    return grown


def read_summary(out: Path) -> dict[str, Any]:
    """What summary.json of a finished run holds.

    Raises:
        UserError: there is none, or it is damaged, or of another version.
    """
    path = out / "summary.json"
    try:
        with disk_errors(path, "read"):
            summary = json.loads(path.read_text(encoding="utf-8"))
        if summary["schema"] != SCHEMA:
            raise UserError(f"{path} has schema {summary['schema']!r}, this version reads {SCHEMA}")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged; remove it, and the same command starts the run over") from error
    return dict(summary)
