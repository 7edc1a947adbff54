"""A run is not started where it would be killed for want of memory."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from polydistill.study.executors.interface import Job
from polydistill.study.executors.local import LocalExecutor
from polydistill.study.memory import free_bytes, has_room, resident_bytes

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")


@pytest.fixture
def process(tmp_path: Path) -> Path:
    """A process in the control group /job of version 2, as /proc describes it; no group has a limit yet."""
    mount = tmp_path / "cgroup"
    (mount / "job").mkdir(parents=True)
    folder = tmp_path / "proc"
    folder.mkdir()
    (folder / "cgroup").write_text("0::/job\n")
    (folder / "mountinfo").write_text(f"30 24 0:26 / {mount} rw,nosuid shared:4 - cgroup2 cgroup2 rw\n")
    (folder / "meminfo").write_text("MemTotal:  8000 kB\nMemAvailable:   4000 kB\nHugePages_Total:       0\n")
    return folder


def limit(group: Path, limit: str, used: int, cache: int) -> None:
    (group / "memory.max").write_text(f"{limit}\n")
    (group / "memory.current").write_text(f"{used}\n")
    (group / "memory.stat").write_text(f"anon {used - cache}\ninactive_file {cache}\n")


def test_the_machine_says_what_is_free_where_no_group_has_a_limit(process: Path) -> None:
    assert free_bytes(process, process / "meminfo") == 4000 * 1024
    limit(process.parent / "cgroup" / "job", "max", 500, 0)
    assert free_bytes(process, process / "meminfo") == 4000 * 1024


def test_the_tightest_limit_counts_and_the_page_cache_is_free(process: Path) -> None:
    limit(process.parent / "cgroup" / "job", "1000000", 700_000, 200_000)
    assert free_bytes(process, process / "meminfo") == 500_000
    limit(process.parent / "cgroup", "900000", 800_000, 0)  # a group around it
    assert free_bytes(process, process / "meminfo") == 100_000


def test_a_system_that_does_not_say_has_room(tmp_path: Path) -> None:
    assert free_bytes(tmp_path, tmp_path / "meminfo") == math.inf


def test_runs_that_have_only_begun_count_with_what_they_will_need() -> None:
    assert has_room([0, 0], free=9, needed=3)
    assert not has_room([0, 0], free=8, needed=3)
    assert has_room([5, 3], free=3, needed=3)


@LINUX
def test_what_a_process_holds_is_told_until_it_ends() -> None:
    assert resident_bytes(os.getpid()) > 2**20
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert resident_bytes(ended.pid) == 0


@LINUX
def test_an_executor_without_jobs_is_never_short_and_one_with_a_huge_job_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polydistill.study.executors.local.free_bytes", lambda: 2.0**20)
    with LocalExecutor(2) as executor:
        assert not executor.short_of_memory
        executor.start(Job("x", (sys.executable, "-c", "import time; time.sleep(60)"), tmp_path / "log.txt"))
        assert executor.short_of_memory
        monkeypatch.setattr("polydistill.study.executors.local.free_bytes", lambda: 2.0**50)
        assert not executor.short_of_memory
