"""What the world itself finds wrong with the runs to come, before the first of them and before the plan is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polydistill.config.parsing import read_config
from polydistill.config.plain_yaml import flatten
from polydistill.errors import UserError
from polydistill.runs import read_summary
from polydistill.study.arms import GIVEN
from polydistill.study.finished import SUMS
from polydistill.study.plan import Plan
from polydistill.study.planned import planned_runs
from polydistill.study.records import TEACHER, RunRecord
from polydistill.study.teachers import given_path
from polydistill.study.worlds import World


def require_start(plan: Plan, records: Sequence[RunRecord], world: World, out: Path) -> None:
    """Let the world look at the config of each arm that has runs to come, as its first such seed has it.

    Args:
        plan: of the study.
        records: of its runs; where all are done, nothing is looked at.
        world: of them.
        out: folder of the study, which may not be there yet.

    Raises:
        UserError: as such a run would, or its data are not those of the finished runs.
    """
    if world.check is None:
        return
    done = {record.key for record in records if record.status == "done"}
    configs = {}
    for run in planned_runs(plan):
        whose = "the teacher" if run.arm == TEACHER else f"arm {run.arm}"
        if run.key in done or run.members or whose in configs:
            continue
        settings = {**dict(flatten(run.config)), "seed": run.seed}
        settings[GIVEN] = "" if run.teacher else given_path(run.config, run.seed)
        configs[whose] = read_config(world.config_class, None, settings)
    if configs:
        found = world.check(configs)
        _require_same_data(found, [out / record.folder for record in records if record.key in done])


def _require_same_data(found: Mapping[str, Any], finished: Sequence[Path]) -> None:
    """Refuse to go on with other data than those of the run folders ``finished``, so that no run is made in vain."""
    for folder in finished:
        held = read_summary(folder).get("data") or {}
        for part, now in found.items():
            known = held.get(part, {})
            if any(known.get(name) and name in now and known[name] != now[name] for name in SUMS):
                raise UserError(
                    f"{folder} had other data ({part}) than there are now: put them back as they were, or give --out "
                    "another folder"
                )
