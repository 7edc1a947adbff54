"""Teachers that a study is given, and does not train: where that of each seed lies, and whether they are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polydistill.errors import UserError
from polydistill.runs.folder import SEED
from polydistill.study.arms import GIVEN
from polydistill.study.plan import Plan
from polydistill.study.records import RunRecord


def given_path(config: Mapping[str, Any], seed: int) -> str:
    """Where the teacher that a config names for a seed lies; empty: it names none."""
    named: str = config.get("teacher", {}).get("path", "")
    return named.replace(SEED, str(seed))


def are_given(plan: Plan) -> bool:
    """Whether the study was planned and trains no teachers."""
    return plan.teacher is None and not plan.found


def shares_one(plan: Plan) -> bool:
    """Whether all seeds have the same given teacher."""
    return are_given(plan) and SEED not in plan.base.get("teacher", {}).get("path", "")


def require_given(plan: Plan, records: Sequence[RunRecord]) -> None:
    """Look for the file of each given teacher whose seed has runs to come.

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
        path = given_path(plan.base, seed)
        if path and not _is_there(path):
            missing[seed] = path
    if missing:
        seed, path = next(iter(missing.items()))
        more = f" and for {len(missing) - 1} further seeds" if len(missing) > 1 else ""
        raise UserError(f"there is no teacher {path} for seed {seed}{more}: {GIVEN} names a file for each seed")


def _is_there(path: str) -> bool:
    """Whether a file is there, under its name or with .zip at its end; of what lies elsewhere the run will say it."""
    local = Path(path).expanduser()
    return "://" in path or local.exists() or local.with_name(f"{local.name}.zip").exists()
