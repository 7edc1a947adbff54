"""Teachers that a study is given, and does not train: where that of each seed lies, and whether they are there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polydistill.errors import UserError
from polydistill.runs.folder import SEED
from polydistill.study.arms import GIVEN
from polydistill.study.plan import Plan
from polydistill.study.planned import PlannedRun
from polydistill.study.records import RunRecord

MORE = "teacher.more"  # key of further files, which teach together with the first


def given_path(config: Mapping[str, Any], seed: int) -> str:
    """Where the teacher that a config names for a seed lies, the first of several; empty: it names none."""
    named: str = config.get("teacher", {}).get("path", "")
    return named.replace(SEED, str(seed))


def further_paths(config: Mapping[str, Any], seed: int) -> list[str]:
    """Where the others lie, with which it teaches together."""
    return [named.replace(SEED, str(seed)) for named in config.get("teacher", {}).get("more", ())]


def words_of_more(run: PlannedRun) -> list[str]:
    """The flags of a run that name its further teachers; none where they are those of its config.

    Whom another run's student teaches, that one teaches alone.
    """
    more = [] if run.teacher is not None else further_paths(run.config, run.seed)
    own = more != list(run.config.get("teacher", {}).get("more", ()))
    return [f"--{MORE}", json.dumps(more)] if own else []


def are_given(plan: Plan) -> bool:
    """Whether the study was planned and trains no teachers."""
    return plan.teacher is None and not plan.found


def shares_one(plan: Plan) -> bool:
    """Whether all seeds have the same given teacher."""
    teacher = plan.base.get("teacher", {})
    return are_given(plan) and not any(SEED in path for path in (teacher.get("path", ""), *teacher.get("more", ())))


def require_given(plan: Plan, records: Sequence[RunRecord]) -> None:
    """Look for the files of each given teacher whose seed has runs to come.

    Args:
        plan: of the study.
        records: of its runs.

    Raises:
        UserError: one is missing; the line names the first.
    """
    if not are_given(plan):
        return
    missing = {}
    for seed in sorted({record.seed for record in records if record.status != "done"}):
        paths = (given_path(plan.base, seed), *further_paths(plan.base, seed))
        absent = [path for path in paths if path and not _is_there(path)]
        if absent:
            missing[seed] = absent[0]
    if missing:
        seed, path = next(iter(missing.items()))
        more = f" and for {len(missing) - 1} further seeds" if len(missing) > 1 else ""
        raise UserError(f"there is no teacher {path} for seed {seed}{more}: {GIVEN} names a file for each seed")


def _is_there(path: str) -> bool:
    """Whether a file is there, under its name or with .zip at its end; of what lies elsewhere the run will say it."""
    local = Path(path).expanduser()
    return "://" in path or local.exists() or local.with_name(f"{local.name}.zip").exists()
