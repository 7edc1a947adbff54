"""Commands side by side on this machine, and none of them left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from polydistill.study.executors.interface import Job, Outcome
from polydistill.study.executors.local import LocalExecutor

SLEEPS = "import time; print('begun', flush=True); time.sleep(60)"


def job(name: str, code: str, folder: Path) -> Job:
    return Job(name, (sys.executable, "-c", code), folder / "logs" / f"{name}.txt")


def wait_for_all(executor: LocalExecutor) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    end = time.monotonic() + 60
    while executor.running and time.monotonic() < end:
        outcomes |= {outcome.name: outcome for outcome in executor.wait(1.0)}
    return outcomes


def wait_until(condition) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def test_jobs_run_side_by_side_and_each_tells_its_code_and_what_it_printed(tmp_path: Path) -> None:
    meet = (  # each waits for the other: one after another they would wait for ever
        "import pathlib, sys, time\n"
        f"here = pathlib.Path({str(tmp_path)!r})\n"
        "(here / NAME).touch()\n"
        "while not (here / OTHER).exists(): time.sleep(0.01)\n"
        "print('met', NAME); print('loudly', file=sys.stderr); sys.exit(CODE)"
    )
    with LocalExecutor(2) as executor:
        for name, other, code in (("a", "b", 0), ("b", "a", 3)):
            text = meet.replace("NAME", repr(name)).replace("OTHER", repr(other)).replace("CODE", str(code))
            executor.start(job(name, text, tmp_path))
        assert executor.running == 2
        with pytest.raises(RuntimeError, match="all 2 workers are busy"):
            executor.start(job("c", "", tmp_path))
        outcomes = wait_for_all(executor)
    assert {name: outcome.code for name, outcome in outcomes.items()} == {"a": 0, "b": 3}
    assert all(0 < outcome.seconds < 30 for outcome in outcomes.values())
    assert sorted((tmp_path / "logs" / "a.txt").read_text().split()) == ["a", "loudly", "met"]


def test_a_job_has_one_core_for_its_threads_and_a_new_log(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    with LocalExecutor(1) as executor:
        for _ in range(2):
            executor.start(job("a", "import os; print(os.environ['OMP_NUM_THREADS'])", tmp_path))
            wait_for_all(executor)
    assert (tmp_path / "logs" / "a.txt").read_text() == "1\n"


def test_an_end_is_told_at_once_and_not_at_the_next_look(tmp_path: Path) -> None:
    with LocalExecutor(1) as executor:
        executor.start(job("a", "", tmp_path))
        started = time.monotonic()
        assert [outcome.name for outcome in executor.wait(50.0)] == ["a"]
        assert time.monotonic() - started < 25


def test_stop_asks_by_sigterm(tmp_path: Path) -> None:
    with LocalExecutor(1) as executor:
        executor.start(job("a", SLEEPS, tmp_path))
        wait_until(lambda: (tmp_path / "logs" / "a.txt").read_text())
        assert executor.wait(0.0) == []
        executor.stop()
        assert wait_for_all(executor)["a"].code == -signal.SIGTERM


def test_an_error_leaves_no_process_behind(tmp_path: Path) -> None:
    def fail_beside_a_job() -> None:
        with LocalExecutor(1) as executor:
            executor.start(job("a", SLEEPS.replace("print(", "import os; print(os.getpid(), "), tmp_path))
            wait_until(lambda: (tmp_path / "logs" / "a.txt").read_text())
            raise KeyError

    with pytest.raises(KeyError):
        fail_beside_a_job()
    pid = int((tmp_path / "logs" / "a.txt").read_text().split()[0])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux tells a process of its parent's death")
def test_a_study_that_is_killed_outright_stops_its_runs(root: Path, tmp_path: Path) -> None:
    code = (
        f"import sys, time; sys.path.insert(0, {str(root)!r})\n"
        "from pathlib import Path\n"
        "from polydistill.study.executors.interface import Job\n"
        "from polydistill.study.executors.local import LocalExecutor\n"
        "run = 'import signal, sys, time\\n'\n"
        "run += 'signal.signal(signal.SIGTERM, lambda *_: (print(\"saved\", flush=True), sys.exit(1)))\\n'\n"
        "run += 'print(\"begun\", flush=True)\\n'\n"
        "run += 'time.sleep(60)'\n"
        "executor = LocalExecutor(1)\n"
        "executor.start(Job('a', (sys.executable, '-c', run), Path('a.txt')))\n"
        "time.sleep(60)"
    )
    study = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    try:
        wait_until(lambda: (tmp_path / "a.txt").exists() and "begun" in (tmp_path / "a.txt").read_text())
    finally:
        study.kill()
        study.wait()
    wait_until(lambda: (tmp_path / "a.txt").read_text().split() == ["begun", "saved"])
