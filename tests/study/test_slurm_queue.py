"""A plan through submitit's local queue: limits of time, a study that is killed, one that is stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polydistill.errors import UserError
from polydistill.study.executors.local import LocalExecutor
from polydistill.study.executors.settings import SlurmConfig
from polydistill.study.executors.slurm_queue import SlurmExecutor
from polydistill.study.plan import PLAN
from polydistill.study.records import RunRecord
from tests.study import engines
from tests.study.engines import SLOW, plan_of

pytest.importorskip("submitit")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a run is tied to its job by Linux alone")


def through_queue(plan: Any, out: Path, together: int = 1, **settings: Any) -> list[RunRecord]:
    config = SlurmConfig(cluster="local", **{"minutes": 5.0, **settings})
    return engines.carry_out(plan, out, lambda folder, witness: SlurmExecutor(config, folder, witness, 2), together)


@pytest.mark.parametrize("together", [1, 2])
def test_the_report_is_that_of_the_local_executor_bit_for_bit(tmp_path: Path, together: int) -> None:
    plan = plan_of()
    assert engines.statuses(through_queue(plan, tmp_path / "queue", together)) == {"done"}
    engines.carry_out(plan, tmp_path / "local", lambda *_: LocalExecutor(2))
    for name in ("results.csv", "report.md", "table.tex", "methods.txt"):
        there, here = (tmp_path / kind / name for kind in ("queue", "local"))
        assert there.read_bytes() == here.read_bytes(), name
    assert set(engines.starts(tmp_path / "queue").values()) == {1}
    assert json.loads((tmp_path / "queue" / "slurm" / "jobs.json").read_text()) == {}


def test_a_run_that_meets_its_limit_of_time_goes_on_by_itself(tmp_path: Path) -> None:
    """Eight seconds of work in jobs of which each is told after six."""
    records = through_queue(plan_of(arms=SLOW), tmp_path / "s", minutes=16 / 60, warning_seconds=10)
    assert engines.statuses(records) == {"done"}
    n = engines.starts(tmp_path / "s")["x/seed0"]
    assert n >= 2, "it was told of its limit"
    submitted = {path.name for path in (tmp_path / "s" / "slurm").glob("*_log.out")}
    assert len(submitted) == 6, "and no job but its own went on with it"
    assert not list((tmp_path / "s" / "slurm").glob("*.pkl")), "what submitit needs of a job goes with it"


def test_a_run_that_meets_it_too_often_fails_in_one_line(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("polydistill.study.runner.MOST_LOSSES", 0)
    arms = {"labels": {"student.bonus": 0.125}, "x": {"student.does": "learn very slowly", "student.seed": 0}}
    records = through_queue(plan_of(arms=arms), tmp_path / "s", minutes=12 / 60, warning_seconds=10, timeouts=0)
    failed = [record for record in records if record.status == "failed"]
    assert [record.key for record in failed] == [("x", 0)]
    assert "timed-out too many times" in failed[0].why


@pytest.mark.parametrize("together", [1, 2])
def test_jobs_outlive_a_study_that_is_killed_and_the_next_start_finds_them(
    root: Path, tmp_path: Path, together: int
) -> None:
    out = tmp_path / "s"
    code = (
        f"import sys; sys.path.insert(0, {str(root)!r})\n"
        "from pathlib import Path\n"
        "from tests.study.engines import SLOW, plan_of\n"
        "from tests.study.test_slurm_queue import through_queue\n"
        f"through_queue(plan_of(arms=SLOW), Path({str(out)!r}), {together})\n"
    )
    study = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    try:
        engines.has_begun(out)
    finally:
        study.kill()
        study.wait()
    found: list[str] = []

    class Watched(SlurmExecutor):
        def __enter__(self) -> Watched:
            super().__enter__()
            found.extend(self.found)
            return self

    config = SlurmConfig(cluster="local", minutes=5.0)
    records = engines.carry_out(
        plan_of(arms=SLOW), out, lambda folder, witness: Watched(config, folder, witness, 2), together
    )
    assert {1: "x/seed0", 2: "x/seed0+1"}[together] in found
    assert engines.statuses(records) == {"done"}
    assert set(engines.starts(out).values()) == {1}, "nothing was run twice"


def test_a_run_that_is_killed_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "s"

    def kill() -> None:
        engines.has_begun(out)
        os.kill(int((out / "runs" / "x" / "seed0" / "pid.txt").read_text()), signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    records = through_queue(plan_of(arms=SLOW), out)
    thread.join()
    assert engines.statuses(records) == {"done"}
    assert {name: n for name, n in engines.starts(out).items() if n != 1} == {"x/seed0": 2}


def test_a_study_that_is_stopped_stops_its_jobs_and_goes_on(tmp_path: Path) -> None:
    out, plan = tmp_path / "s", plan_of(arms=SLOW)

    def interrupt() -> None:
        engines.has_begun(out)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    records = {record.key: record for record in through_queue(plan, out)}
    thread.join()
    assert records["x", 0].status == "missing"
    assert 0 < engines.steps_of(out) < 160
    assert engines.statuses(through_queue(plan, out)) == {"done"}
    assert engines.starts(out)["x/seed0"] == 2


def refused(make: Callable[[], SlurmExecutor]) -> str:
    with pytest.raises(UserError) as caught:
        make().__enter__()
    return str(caught.value)


def test_what_is_no_queue_is_one_line(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / PLAN).touch()
    said = refused(lambda: SlurmExecutor(SlurmConfig(), tmp_path, tmp_path / PLAN, 0))
    assert said.startswith("no queue slurm: Could not detect")
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    said = refused(lambda: SlurmExecutor(SlurmConfig(options={"colour": "red"}), tmp_path, tmp_path / PLAN, 0))
    assert "colour" in said
    (tmp_path / "slurm" / "jobs.json").write_text("{")
    said = refused(lambda: SlurmExecutor(SlurmConfig(), tmp_path, tmp_path / PLAN, 0))
    assert "jobs.json" in said
    assert "remove it" in said


def test_a_queue_that_refuses_a_job_is_one_line(tmp_path: Path, monkeypatch) -> None:
    from polydistill.study.executors.interface import Job

    for name, text in (("srun", ""), ("sbatch", "echo 'sbatch: error: invalid partition' >&2; exit 1")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (tmp_path / PLAN).touch()
    executor = SlurmExecutor(SlurmConfig(partition="no"), tmp_path, tmp_path / PLAN, 0).__enter__()
    with pytest.raises(UserError, match=r"cannot submit a: .*invalid partition"):
        executor.start(Job("a", (sys.executable, "-c", ""), tmp_path / "a.txt"))
