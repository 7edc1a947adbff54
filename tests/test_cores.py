"""polydistill.cores: threads follow what a process may use and what its work is worth, never the load."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from polydistill import cores
from polydistill.cores import available_cores, cgroup_quota, limit_spinning, say_if_loaded, worthwhile_threads

VERSION_2 = "30 23 0:26 / {mount} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
VERSION_1 = (
    "33 23 0:29 / {mount}/memory rw shared:7 - cgroup cgroup rw,memory\n"
    "31 23 0:27 {root} {mount} rw shared:6 - cgroup cgroup rw,cpu,cpuacct\n"
)


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that may use eight cores and was told nothing."""
    monkeypatch.setattr(os, "process_cpu_count", lambda: 8, raising=False)
    monkeypatch.setattr(cores, "cgroup_quota", lambda: math.inf)
    for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def write_process(tmp_path: Path, cgroup: str, mountinfo: str, files: dict[str, str], root: str = "/") -> Path:
    """The two files that Linux has of a process, and the groups' own."""
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text)
    (tmp_path / "cgroup").write_text(cgroup)
    mount = str(tmp_path / "groups").replace(" ", r"\040")
    (tmp_path / "mountinfo").write_text(mountinfo.format(mount=mount, root=root))
    return tmp_path


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"a/b/cpu.max": "150000 100000\n"}, 1.5),
        ({"a/b/cpu.max": "max 100000\n"}, math.inf),
        ({"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "50000 25000\n"}, 2.0),
        ({"a/b/cpu.max": "max 100000\n", "cpu.max": "300000 100000\n"}, 3.0),
        ({"a/other/cpu.max": "100000 100000\n"}, math.inf),
        ({}, math.inf),
    ],
)
def test_the_least_quota_of_nested_groups_counts(tmp_path: Path, files: dict[str, str], quota: float) -> None:
    assert cgroup_quota(write_process(tmp_path, "0::/a/b\n", VERSION_2, files)) == quota


@pytest.mark.parametrize(
    ("quota", "root", "files", "expected"),
    [
        ("-1", "/", {}, math.inf),
        ("250000", "/", {}, 2.5),
        ("-1", "/", {"job/cpu.cfs_quota_us": "100000\n", "job/cpu.cfs_period_us": "100000\n"}, 1.0),
        ("250000", "/job/step", {}, 2.5),  # a container sees its own group at the root
    ],
)
def test_quotas_of_version_1_count(
    tmp_path: Path, quota: str, root: str, files: dict[str, str], expected: float
) -> None:
    folder = "" if root != "/" else "job/step/"
    own = {f"{folder}cpu.cfs_quota_us": f"{quota}\n", f"{folder}cpu.cfs_period_us": "100000\n"}
    cgroup = "4:memory:/elsewhere\n3:cpu,cpuacct:/job/step\n0::/\n"
    assert cgroup_quota(write_process(tmp_path, cgroup, VERSION_1, own | files, root)) == expected


def test_groups_are_found_under_a_name_with_spaces_or_letters_of_any_language(tmp_path: Path) -> None:
    mount = tmp_path / "d\u00e9p\u00f4t \u00fc"
    mount.mkdir()
    group = {"a:b \u00e9/cpu.max": "150000 100000\n"}
    assert cgroup_quota(write_process(mount, "0::/a:b \u00e9\n", VERSION_2, group)) == 1.5


def test_a_system_without_control_groups_sets_no_quota(tmp_path: Path) -> None:
    assert cgroup_quota(tmp_path / "nothing") == math.inf
    assert cgroup_quota(write_process(tmp_path, "garbage\n", "garbage\n", {})) == math.inf
    for text in ("", "100000", "a b", "100000 0"):
        assert cgroup_quota(write_process(tmp_path, "0::/a\n", VERSION_2, {"a/cpu.max": text})) == math.inf


@pytest.mark.parametrize(("quota", "expected"), [(0.5, 1), (1.9, 1), (3.0, 3), (64.0, 8), (math.inf, 8)])
def test_a_quota_bounds_the_cores(monkeypatch: pytest.MonkeyPatch, quota: float, expected: int) -> None:
    monkeypatch.setattr(cores, "cgroup_quota", lambda: quota)
    assert available_cores() == expected


@pytest.mark.parametrize(
    ("omp", "processes", "expected"),
    [("3", "", 3), ("1", "", 1), ("100", "", 8), ("2,4", "", 2), ("0", "", 8), ("many", "", 8), ("", "", 8),
     ("", "2", 4), ("1", "2", 4), ("3", "2", 3), ("", "100", 1)],
)  # fmt: skip
def test_omp_num_threads_and_torchrun_bound_them(
    monkeypatch: pytest.MonkeyPatch, omp: str, processes: str, expected: int
) -> None:
    """(With several processes torchrun itself says OMP_NUM_THREADS=1 where nobody has said anything.)"""
    monkeypatch.setenv("OMP_NUM_THREADS", omp)
    if processes:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert available_cores() == expected


def test_affinity_counts_where_python_has_no_count_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "process_cpu_count", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 5, 6}, raising=False)
    assert available_cores() == 3


def test_threads_follow_the_size_of_the_work_and_never_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worthwhile_threads() == 8
    assert worthwhile_threads(step=cores.GRAIN / 100) == 1
    assert worthwhile_threads(step=3 * cores.GRAIN) == 3
    assert worthwhile_threads(step=1e15, run=cores.WORTHWHILE / 2) == 1
    assert worthwhile_threads(step=1e15, run=1e15) == 8
    before = worthwhile_threads(step=3 * cores.GRAIN)
    monkeypatch.setattr(os, "getloadavg", lambda: (99.0, 99.0, 99.0))
    assert worthwhile_threads(step=3 * cores.GRAIN) == before


def test_idle_threads_sleep_soon_unless_the_user_says_how_they_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    limit_spinning()
    assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    limit_spinning()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    limit_spinning()
    assert int(os.environ["GOMP_SPINCOUNT"]) < 300_000, "the library's own"


@pytest.mark.parametrize(("load", "lines"), [(0.0, 0), (2.0, 0), (2.1, 1), (40.0, 1)])
def test_a_loaded_machine_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], load: float, lines: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    say_if_loaded()
    assert capsys.readouterr().err.count("other work is running on this machine") == lines
