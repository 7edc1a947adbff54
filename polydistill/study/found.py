"""A study made of run folders that are there, whoever started them: arms are what differs in their configs.

Contract: the folders are only read. Nothing was named before the runs, so the plan has no contrasts: every comparison
is exploratory, and ``found`` says so. Runs that differ in what arms must share are refused, not averaged.
"""

from __future__ import annotations

import dataclasses
import glob
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from polydistill._environment import WORLDS
from polydistill.config.plain_yaml import flatten, load_yaml
from polydistill.errors import UserError
from polydistill.runs.folder import SEED, is_off
from polydistill.study.arms import GIVEN, GROUPS
from polydistill.study.config import StudyConfig
from polydistill.study.plan import ENSEMBLE, Arm, Plan
from polydistill.study.records import TEACHER, RunRecord, read_record

PLACES = ("data.root", GIVEN)  # where something lies, which may differ between runs of one arm
OF_A_RUN = ("seed",)
OF_A_MACHINE = ("device", "threads", "precision")
GENERATIONS = "lineage.generations"
MEMBERS = "members"  # of the config of an ensemble


class Found(NamedTuple):
    """A run folder.

    Args:
        path: of it.
        kind: of its summary; empty: it has none.
        config: with dotted keys.
    """

    path: Path
    kind: str
    config: dict[str, Any]


def read_found(config: StudyConfig, out: Path) -> tuple[Plan, list[RunRecord]]:
    """The study of the run folders that ``config.runs`` finds.

    Args:
        config: of the study; its world may be left out.
        out: folder of the study, to which the folders of the records are relative.

    Raises:
        UserError: there are no two arms with two seeds each, or the folders are not of one study.
    """
    found = find_folders(config.runs)
    kinds = sorted({run.kind for run in found if run.kind})
    if len(kinds) != 1:
        raise UserError(f"{config.runs} finds runs of {len(kinds)} kinds ({', '.join(kinds) or 'none is finished'})")
    if kinds[0] not in WORLDS or config.world not in {"", kinds[0]}:
        raise UserError(f"{config.runs} finds runs of {kinds[0]}, not of {config.world or ', '.join(WORLDS)}")
    config = dataclasses.replace(config, world=kinds[0])
    ensembles = [run for run in found if MEMBERS in run.config]
    trained = [run for run in found if run not in ensembles]
    teachers = [run for run in trained if run.config.get(GENERATIONS) == 0]
    students = [run for run in trained if run not in teachers]
    keys = _differing_keys(students)
    names = {run.path: _name_arm(run.config, keys) for run in students}
    names |= {run.path: TEACHER for run in teachers}
    members = {run.path: _name_members(run, names) for run in ensembles}
    names |= {path: f"ensemble of {' + '.join(arms)}" for path, arms in members.items() if arms}
    found = [run for run in found if run.path in names]
    _refuse_doubles(found, names)
    arms: dict[str, Arm] = {}
    for run in students:
        sets = {key: run.config[key] for key in keys if key in run.config}
        arms.setdefault(names[run.path], Arm(names[run.path], sets, "", _nested(_shared(run.config))))
    for run in found:
        if run.path in members:
            mean_of = {ENSEMBLE: members[run.path]}
            arms.setdefault(names[run.path], Arm(names[run.path], mean_of, "", _nested(_shared(run.config))))
    seeds = sorted({int(run.config["seed"]) for run in students})
    if len(arms) < 2 or len(seeds) < StudyConfig.fewest_seeds:
        raise UserError(
            f"{config.runs} finds {len(arms)} arms and {len(seeds)} seeds: a comparison needs 2 arms and "
            f"{StudyConfig.fewest_seeds} seeds of each"
        )
    records = [_read_record(run, names[run.path], out) for run in found]
    first = students[0].config
    plan = Plan(
        world=config.world,
        base=_nested({key: value for key, value in _shared(first).items() if key not in keys}),
        arms=tuple(arms.values()),
        teacher=_nested(_shared(teachers[0].config)) if teachers else None,
        contrasts=(),
        seeds=tuple(seeds),
        metric=config.chosen_metric,
        direction=config.chosen_direction,
        margin=config.margin,
        alpha=config.alpha,
        commit=None,
        found=True,
    )
    return plan, records


def _read_record(run: Found, arm: str, out: Path) -> RunRecord:
    """The record of a run that lies anywhere; ``out`` need not exist."""
    record = read_record(Path(), arm, int(run.config["seed"]), str(run.path))
    return dataclasses.replace(record, folder=os.path.relpath(run.path, out))


def find_folders(pattern: str) -> list[Found]:
    """The run folders among what ``pattern`` finds, in order of their paths.

    Raises:
        UserError: there are none.
    """
    paths = [Path(path) for path in sorted(glob.glob(os.path.expanduser(pattern), recursive=True))]
    folders = [path for path in paths if (path / "config.yaml").is_file()]
    if not folders:
        raise UserError(f"{pattern} finds no run folder (one with a config.yaml) among {len(paths)} names")
    found = []
    for path in folders:
        config = dict(flatten(load_yaml(path / "config.yaml")))
        if not isinstance(config.get("seed"), int):
            print(f"left out: {path} is no run: its config has no seed", file=sys.stderr)
            continue
        found.append(Found(path, _kind(path), config))
    return _fill_in(found)


def _fill_in(found: Sequence[Found]) -> list[Found]:
    """The runs, with the keys that an older run does not have, where they are off in another."""
    off = {key: value for run in found for key, value in run.config.items() if is_off(value)}
    return [run._replace(config={**run.config, **{k: off[k] for k in off if k not in run.config}}) for run in found]


def _kind(path: Path) -> str:
    try:
        return str(json.loads((path / "summary.json").read_text(encoding="utf-8"))["kind"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""  # unfinished, or damaged: its record says so


def _shared(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in (*PLACES, *OF_A_RUN)}


def _differing_keys(runs: Sequence[Found]) -> list[str]:
    """The keys in which runs of different arms differ; of a machine's a line tells, since pairing suffers.

    Raises:
        UserError: they differ in what arms must share.
    """
    keys = list(dict.fromkeys(key for run in runs for key in _shared(run.config)))
    differing = []
    for key in keys:
        first = runs[0]
        other = next((run for run in runs if run.config.get(key) != first.config.get(key)), None)
        if other is None or key.startswith("checkpoint."):
            continue
        was, now = (repr(run.config.get(key, "not set")) for run in (first, other))
        if key in OF_A_MACHINE:
            print(f"the runs differ in {key} ({was} in {first.path}, {now} in {other.path})", file=sys.stderr)
        elif key.partition(".")[0] not in GROUPS:
            raise UserError(
                f"{first.path} and {other.path} are not of one study: {key} is {was} in the first, {now} in the other"
            )
        else:
            differing.append(key)
    return differing


def _name_arm(config: Mapping[str, Any], keys: Sequence[str]) -> str:
    """The values by which an arm differs from others, like ``objective=ban``."""
    last = [key.rpartition(".")[2] for key in keys]
    words = [name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)]
    set_keys = [(word, config[key]) for word, key in zip(words, keys, strict=True) if config.get(key) is not None]
    return " ".join(f"{word}={value}" for word, value in set_keys) or "as the default"


def _name_members(run: Found, names: Mapping[Path, str]) -> list[str]:
    """The arms of the members of an ensemble; none, with a line that says so, where one was not found."""
    there = {path.resolve(): name for path, name in names.items()}
    folders = [(run.path / str(name).replace(SEED, str(run.config["seed"]))).resolve() for name in run.config[MEMBERS]]
    missing = next((folder for folder in folders if folder not in there), None)
    if missing is None:
        return [there[folder] for folder in folders]
    print(f"left out: {run.path} is an ensemble, and its member {missing} is not among the runs", file=sys.stderr)
    return []


def _refuse_doubles(found: Sequence[Found], names: Mapping[Path, str]) -> None:
    seen: dict[tuple[str, int], Path] = {}
    for run in found:
        key = names[run.path], int(run.config["seed"])
        if key in seen:
            raise UserError(
                f"{seen[key]} and {run.path} are the same arm ({key[0]}) and seed ({key[1]}): leave one out"
            )
        seen[key] = run.path


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *groups, name = key.split(".")
        inner = nested
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[name] = value
    return nested
