"""A plan is carried out in its folder: locked, what is not finished is run, and what there is then is reported.

Contract: the plan is on the disk before the first run; the report is of the whole plan, whatever has failed or is
missing; the same call goes on where another one was stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from polydistill.cores import say_if_loaded
from polydistill.disk import disk_errors, remove_temporaries
from polydistill.errors import UserError
from polydistill.provenance import git_state
from polydistill.runs.interruption import StopSignals
from polydistill.runs.lock import LOCK, FolderLock
from polydistill.study.executors.interface import Executor
from polydistill.study.plan import PLAN, Plan, keep_plan, moved_places, read_plan
from polydistill.study.planned import planned_runs
from polydistill.study.records import RunRecord
from polydistill.study.runner import Runner, read_records
from polydistill.study.sharing import SharedScores
from polydistill.study.worlds import CLONE, World

Report = Callable[[Plan, Sequence[RunRecord]], None]


def require_study_folder(out: Path) -> None:
    """Refuse a folder that holds something other than a study.

    Raises:
        UserError: it does, or is a file.
    """
    with disk_errors(out, "read"):
        if out.exists() and not out.is_dir():
            raise UserError(f"{out} is a file; --out takes a folder")
        names = {entry.name for entry in out.iterdir()} if out.exists() else set()
    if names - {LOCK} and PLAN not in names:
        raise UserError(f"{out} is not empty and holds no study (no {PLAN}); give --out another folder")


def conduct(
    out: Path, plan: Plan, world: World, executor: Executor, report: Report, *, share: bool, together: int = 1
) -> None:
    """Run what is not finished of a plan, and report.

    Args:
        out: folder of the study.
        plan: without amendments.
        world: of its runs.
        executor: of them; it is connected once the plan is written.
        report: given the plan with its amendments and the record of each run; called once, also where it was stopped.
        share: whether runs of a seed share what they all compute of their teacher.
        together: how many runs of an arm one job makes.

    Raises:
        UserError: another plan is in the folder, a run failed, or the disk refused.
        Interrupted: a signal stopped it; every run has saved.
    """
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    with FolderLock(out):
        remove_temporaries(out)
        SharedScores.forget(out)
        _run(out, plan, world, executor, report, share=share, together=together)


def _run(
    out: Path, plan: Plan, world: World, executor: Executor, report: Report, *, share: bool, together: int
) -> None:
    """The folder is locked."""
    stored = read_plan(out)
    moved = {} if stored is None else moved_places(stored, plan)
    plan = keep_plan(out, plan, count_done(read_records(plan, out)))
    print(f"plan {plan.sha256[:12]} in {out / PLAN}", file=sys.stderr)
    _say_what_changed(plan)
    with StopSignals() as stop:
        with executor:
            shared = SharedScores(out, planned_runs(plan), executor.workers) if share else None
            runner = Runner(plan, world, out, executor, moved, shared, together)
            if runner.pending:
                say_if_loaded()
            runner.run(stop)
        records = runner.sorted_records
        report(plan, records)
        done = count_done(records)
        stop.raise_if_received(f"stopped: {done} of {len(records)} runs are finished; the same command goes on")
    failed = [record for record in records if record.status == "failed"]
    if failed:
        first = failed[0]
        raise UserError(
            f"{len(failed)} of {len(records)} runs failed, the first {first.arm}/seed{first.seed}: {first.why}; the "
            "same command tries them again"
        )


def _say_what_changed(plan: Plan) -> None:
    """What is on the record since the plan was made."""
    for amendment in plan.amendments:
        seeds = ", ".join(map(str, amendment.seeds))
        print(f"seeds {seeds} were added on {amendment.date}, with {amendment.finished} runs finished", file=sys.stderr)
    now = git_state(CLONE)
    if now is not None and plan.commit is not None and not plan.commit.startswith(now["commit"]):
        print(f"the plan was made by commit {plan.commit[:12]}, this is {now['commit'][:12]}", file=sys.stderr)


def count_done(records: Sequence[RunRecord]) -> int:
    """How many of the runs are finished."""
    return sum(record.status == "done" for record in records)
