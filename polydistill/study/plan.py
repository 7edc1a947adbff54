"""The plan of a study: what is compared with what, by which measure, in how many seeds. Fixed before the first run.

``plan.json`` holds it with its SHA-256; every later command compares its own plan with it, and an edited one is
refused. Seeds may be added: that is an amendment, recorded with the number of runs that were finished then, since seeds
that are added after a look at the results can be a reason for the result.

Contract: the hash covers everything but the amendments, each of which has a hash over itself and all before it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from polydistill.config.plain_yaml import flatten
from polydistill.disk import atomic_write, disk_errors
from polydistill.errors import UserError
from polydistill.study.records import Direction

PLAN = "plan.json"
ENSEMBLE = "ensemble"  # the key by which an arm names its members
SCHEMA = 1
PLACES = ("data.root",)  # dotted keys that say where something lies: on another computer elsewhere


@dataclass(frozen=True)
class Arm:
    """One treatment.

    Args:
        name: of the arm.
        overrides: dotted keys of the world's config that it sets, beside those that all arms share; of an ensemble
            :data:`ENSEMBLE` alone, a list of arms.
        teacher: the arm whose student of the same seed teaches it; "teacher": the seed's own teacher; "": whoever its
            config names.
        config: the whole config of its runs, resolved, as nested plain values; each run has its own seed and teacher.
    """

    name: str
    overrides: Mapping[str, Any]
    teacher: str
    config: Mapping[str, Any]

    @property
    def members(self) -> tuple[str, ...]:
        """The arms whose students of a seed, together, are the ensemble that this arm is; none: it trains a student."""
        return tuple(self.overrides.get(ENSEMBLE, ()))


@dataclass(frozen=True)
class Amendment:
    """Seeds that were added to a plan.

    Args:
        seeds: the new ones.
        finished: runs of the study that were finished when they were added.
        date: of that, ISO 8601, UTC.
    """

    seeds: tuple[int, ...]
    finished: int
    date: str


@dataclass(frozen=True)
class Plan:
    """What a study does, and what it will be asked.

    Args:
        world: whose command each run is.
        base: the config that all arms share, resolved, as nested plain values.
        arms: in the order of the report; without the runs that make the teachers.
        teacher: the config of those runs; None: the teachers are given.
        contrasts: (arm, arm) pairs named beforehand, the first against the second; all others are exploratory.
        seeds: of the first plan.
        metric: by which arms are compared.
        direction: of the metric: lower or higher is better.
        margin: below which a difference does not matter, in the metric's unit; None: none was named.
        alpha: rate of false positives, over all contrasts together.
        commit: of the code; None: it was no clone.
        found: the plan was made after the runs, from the folders that were there: nothing in it was named beforehand.
        amendments: in their order.
    """

    world: str
    base: Mapping[str, Any]
    arms: tuple[Arm, ...]
    teacher: Mapping[str, Any] | None
    contrasts: tuple[tuple[str, str], ...]
    seeds: tuple[int, ...]
    metric: str
    direction: Direction
    margin: float | None
    alpha: float
    commit: str | None
    found: bool = False
    amendments: tuple[Amendment, ...] = ()

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """Those of the first plan, then those that were added."""
        return (*self.seeds, *(seed for amendment in self.amendments for seed in amendment.seeds))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the arms."""
        return tuple(arm.name for arm in self.arms)

    def arm(self, name: str) -> Arm:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    @cached_property
    def sha256(self) -> str:
        """Of the plan without its amendments; 64 hex digits."""
        return _digest(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """The plan without its amendments as plain values."""
        return {
            "schema": SCHEMA,
            "world": self.world,
            "metric": self.metric,
            "direction": self.direction,
            "margin": self.margin,
            "alpha": self.alpha,
            "seeds": list(self.seeds),
            "contrasts": [list(pair) for pair in self.contrasts],
            "found": self.found,
            "commit": self.commit,
            "base": self.base,
            "arms": {
                arm.name: {"overrides": dict(arm.overrides), "teacher": arm.teacher, "config": arm.config}
                for arm in self.arms
            },
            "teacher": self.teacher,
        }


# ---- plan.json -----------------------------------------------------------------------------------------------------


def keep_plan(out: Path, plan: Plan, finished: int) -> Plan:
    """Write the plan where there is none yet; else check that it is the one that is there, and record new seeds.

    Args:
        out: folder of the study; exists.
        plan: without amendments.
        finished: runs of the study that are finished.

    Returns:
        the plan with all its amendments.

    Raises:
        UserError: the plan that is there is another one; the line names what differs first. Or the disk refused.
    """
    stored = read_plan(out)
    kept = plan if stored is None else amend(stored, plan, finished, out)
    if kept != stored:
        write_plan(out, kept)
    return kept


def amend(stored: Plan, plan: Plan, finished: int, out: Path) -> Plan:
    """``stored`` with the further seeds of ``plan``.

    The commit may differ: the code may have been changed since, and the caller says so. So may :data:`PLACES`, of which
    the stored ones stay in the plan; :func:`moved_places` has the others.

    Raises:
        UserError: they differ in anything else.
    """
    same = replace(plan, seeds=stored.seeds, commit=stored.commit, amendments=stored.amendments)
    difference = first_difference(stored.to_json(), same.to_json(), ignored=PLACES)
    if difference:
        raise UserError(
            f"{out / PLAN} is another plan: {difference}; a plan is fixed before its first run: give --out another "
            "folder, or set it back"
        )
    there, here = stored.all_seeds, plan.seeds
    if here[: len(there)] != there:
        if here[0] != there[0]:
            raise UserError(f"{out / PLAN} is another plan: first_seed is {there[0]} there and {here[0]} here")
        raise UserError(
            f"the plan of {out} has {len(there)} seeds, and a plan does not shrink: add --seeds {len(there)}"
        )
    if here == there:
        return stored
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return replace(stored, amendments=(*stored.amendments, Amendment(here[len(there) :], finished, now)))


def moved_places(stored: Plan, plan: Plan) -> dict[str, Any]:
    """Those of :data:`PLACES` that ``plan`` names elsewhere than ``stored``: dotted key -> where they are now."""
    there, here = dict(flatten(stored.base)), dict(flatten(plan.base))
    return {key: here[key] for key in PLACES if key in here and here[key] != there.get(key)}


def first_difference(there: Mapping[str, Any], here: Mapping[str, Any], *, ignored: Sequence[str] = ()) -> str:
    """``key is ... there and ... here`` of the first key that differs; empty: none does.

    Args:
        there: nested values.
        here: those that are compared with it.
        ignored: ends of dotted keys that do not count.
    """
    old, new = dict(flatten(there)), dict(flatten(here))
    for key in [*new, *(key for key in old if key not in new)]:
        if any(key.endswith(f".{end}") for end in ignored):
            continue
        was, now = (repr(side[key]) if key in side else "not set" for side in (old, new))
        if was != now:
            return f"{key} is {was} there and {now} here"
    return ""


def write_plan(out: Path, plan: Plan) -> None:
    """Write ``plan.json``.

    Raises:
        UserError: the disk refused.
    """
    whole: dict[str, Any] = {"sha256": plan.sha256, **plan.to_json(), "amendments": []}
    digest = plan.sha256
    for amendment in plan.amendments:
        entry = {"seeds": list(amendment.seeds), "finished": amendment.finished, "date": amendment.date}
        digest = _digest({"before": digest, **entry})
        whole["amendments"].append({**entry, "sha256": digest})
    atomic_write(out / PLAN, (json.dumps(whole, indent=2, allow_nan=False) + "\n").encode())


def read_plan(out: Path) -> Plan | None:
    """The plan in ``plan.json``; None: there is none.

    Raises:
        UserError: it is damaged, of another version, or was edited: its hash is not that of its content.
    """
    path = out / PLAN
    if not path.exists():
        return None
    try:
        with disk_errors(path, "read"):
            whole = json.loads(path.read_text(encoding="utf-8"))
        if whole["schema"] != SCHEMA:
            raise UserError(f"{path} has schema {whole['schema']!r}, this version reads {SCHEMA}")
        plan = _from_json(whole)
        digests = [whole["sha256"], *(entry["sha256"] for entry in whole["amendments"])]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error!r}): no run can be told to be of its plan") from error
    expected = [plan.sha256]
    for amendment in plan.amendments:
        entry = {"seeds": list(amendment.seeds), "finished": amendment.finished, "date": amendment.date}
        expected.append(_digest({"before": expected[-1], **entry}))
    if digests != expected:
        raise UserError(f"{path} was edited: its sha256 is not that of its content; set it back as it was")
    return plan


def _from_json(whole: Mapping[str, Any]) -> Plan:
    return Plan(
        world=whole["world"],
        base=whole["base"],
        arms=tuple(Arm(name, arm["overrides"], arm["teacher"], arm["config"]) for name, arm in whole["arms"].items()),
        teacher=whole["teacher"],
        contrasts=tuple((first, second) for first, second in whole["contrasts"]),
        seeds=tuple(whole["seeds"]),
        metric=whole["metric"],
        direction=whole["direction"],
        margin=whole["margin"],
        alpha=whole["alpha"],
        commit=whole["commit"],
        found=whole["found"],
        amendments=tuple(
            Amendment(tuple(entry["seeds"]), entry["finished"], entry["date"]) for entry in whole["amendments"]
        ),
    )


def _digest(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
