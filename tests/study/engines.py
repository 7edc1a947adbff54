"""Runs of the made-up world through an executor, and what there is of them while they run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from polydistill.runs.interruption import StopSignals
from polydistill.study.analysis import analyse
from polydistill.study.arms import make_plan
from polydistill.study.executors.interface import Executor
from polydistill.study.plan import PLAN, Plan, write_plan
from polydistill.study.records import RunRecord
from polydistill.study.report import write_report
from polydistill.study.runner import Runner
from tests.study.fake_world import FAKE, study

SLOW = {"labels": {"student.bonus": 0.125}, "x": {"student.does": "learn very slowly", "student.seed": 0}}


def plan_of(**settings: Any) -> Plan:
    return make_plan(study(**settings), FAKE, None)


def carry_out(plan: Plan, out: Path, make: Callable[[Path, Path], Executor], together: int = 1) -> list[RunRecord]:
    """Run the plan in ``out`` by the executor that ``make`` gives for the folder and its witness, and report."""
    out.mkdir(exist_ok=True)
    write_plan(out, plan)
    with StopSignals() as stop, make(out, out / PLAN) as executor:
        runner = Runner(plan, FAKE, out, executor, together=together)
        runner.run(stop)
    write_report(out, plan, runner.sorted_records, analyse(plan, runner.sorted_records), command="the command")
    return runner.sorted_records


def statuses(records: list[RunRecord]) -> set[str]:
    return {record.status for record in records}


def starts(out: Path) -> dict[str, int]:
    """How many times each run was started, by arm and seed."""
    return {
        f"{path.parts[-3]}/{path.parts[-2]}": len(path.read_text().splitlines())
        for path in sorted(out.glob("runs/*/*/starts.txt"))
    }


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def has_begun(out: Path, run: str = "x/seed0", steps: float = 0.3) -> None:
    """Wait until a slow run has been at work for ``steps`` seconds."""
    wait_until(lambda: (out / "runs" / run / "pid.txt").exists() and (out / "runs" / run / "pid.txt").read_text())
    time.sleep(steps)


def parent_of(pid: int) -> int:
    """Linux's word for it."""
    text = Path(f"/proc/{pid}/stat").read_text()
    return int(text.rpartition(")")[2].split()[1])


def steps_of(out: Path, run: str = "x/seed0") -> int:
    return int((out / "runs" / run / "steps.txt").read_text())
