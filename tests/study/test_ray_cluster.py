"""A plan through a Ray cluster of two nodes on this computer: nothing is lost, and nothing finished is run twice."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from polydistill.errors import UserError
from polydistill.study.executors.interface import Job
from polydistill.study.executors.local import LocalExecutor
from polydistill.study.executors.ray_cluster import RayExecutor
from polydistill.study.executors.settings import RayConfig
from polydistill.study.records import RunRecord
from tests.study import engines
from tests.study.engines import SLOW, plan_of
from tests.study.fake_world import ARMS

pytest.importorskip("ray")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a run is tied to its worker by Linux alone")
CHAIN = ARMS | {"ban_2": {"teacher": "ban", "student.bonus": 0.0625}}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without processors, and two nodes of one each."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        made.add_node(num_cpus=1)
    yield made
    made.shutdown()


@pytest.fixture
def through_ray(cluster: Any) -> Callable[..., list[RunRecord]]:
    def run(plan: Any, out: Path, workers: int = 0, together: int = 1) -> list[RunRecord]:
        settings = RayConfig(address=cluster.address)
        return engines.carry_out(plan, out, lambda _, witness: RayExecutor(settings, witness, workers), together)

    return run


def in_the_middle(out: Path, harm: Callable[[], None]) -> threading.Thread:
    """Do ``harm`` once the slow run is at work."""

    def wait_and_harm() -> None:
        engines.has_begun(out)
        harm()

    thread = threading.Thread(target=wait_and_harm)
    thread.start()
    return thread


@pytest.mark.parametrize("together", [1, 2])
def test_the_report_is_that_of_the_local_executor_bit_for_bit(
    through_ray: Callable[..., list[RunRecord]], tmp_path: Path, together: int
) -> None:
    plan = plan_of(arms=CHAIN)
    assert engines.statuses(through_ray(plan, tmp_path / "ray", together=together)) == {"done"}
    engines.carry_out(plan, tmp_path / "local", lambda *_: LocalExecutor(2))
    for name in ("results.csv", "report.md", "table.tex", "methods.txt"):
        there, here = (tmp_path / kind / name for kind in ("ray", "local"))
        assert there.read_bytes() == here.read_bytes(), name
    assert set(engines.starts(tmp_path / "ray").values()) == {1}


def test_a_run_whose_worker_is_killed_goes_on_from_where_it_was(
    through_ray: Callable[..., list[RunRecord]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s"

    def kill_worker() -> None:
        pid = int((out / "runs" / "x" / "seed0" / "pid.txt").read_text())
        os.kill(engines.parent_of(pid), signal.SIGKILL)

    thread = in_the_middle(out, kill_worker)
    records = through_ray(plan_of(arms=SLOW), out)
    thread.join()
    assert engines.statuses(records) == {"done"}
    assert {name: n for name, n in engines.starts(out).items() if n != 1} == {"x/seed0": 2}
    assert "lost and gone on 1" in capsys.readouterr().err


def test_the_runs_of_a_node_that_is_killed_go_on_elsewhere(
    cluster: Any, through_ray: Callable[..., list[RunRecord]], tmp_path: Path
) -> None:
    out = tmp_path / "s"

    def kill_node() -> None:
        import psutil

        raylets = {node.all_processes["raylet"][0].process.pid: node for node in cluster.worker_nodes}
        of_run = psutil.Process(int((out / "runs" / "x" / "seed0" / "pid.txt").read_text()))
        raylet = next(process.pid for process in of_run.parents() if process.pid in raylets)
        cluster.remove_node(raylets[raylet], allow_graceful=False)

    thread = in_the_middle(out, kill_node)
    try:
        records = through_ray(plan_of(arms=SLOW), out)
    finally:
        thread.join()
        cluster.add_node(num_cpus=1)
    assert engines.statuses(records) == {"done"}
    assert engines.starts(out)["x/seed0"] >= 2
    assert {n for name, n in engines.starts(out).items() if name.startswith("labels/seed0")} == {1}


def test_a_study_that_is_stopped_stops_its_tasks_and_goes_on(
    through_ray: Callable[..., list[RunRecord]], tmp_path: Path
) -> None:
    out, plan = tmp_path / "s", plan_of(arms=SLOW)
    thread = in_the_middle(out, partial(os.kill, os.getpid(), signal.SIGTERM))
    records = {record.key: record for record in through_ray(plan, out)}
    thread.join()
    assert records["x", 0].status == "missing"
    assert 0 < engines.steps_of(out) < 160
    saved = engines.steps_of(out)
    time.sleep(0.3)
    assert engines.steps_of(out) == saved, "nothing of it runs any more"
    assert engines.statuses(through_ray(plan, out)) == {"done"}
    assert engines.starts(out)["x/seed0"] == 2
    assert engines.starts(out)["teacher/seed0"] == 1


def test_a_shared_folder_that_fills_up_stops_the_study_and_loses_nothing(
    through_ray: Callable[..., list[RunRecord]], tmp_path: Path
) -> None:
    out = tmp_path / "s"
    with pytest.raises(UserError, match="No space left on device; make room, and the same command goes on"):
        through_ray(plan_of(arms=ARMS | {"x": {"student.does": "fill the disk"}}, seeds=6), out, workers=1)
    assert "No space left" in (out / "results.csv").read_text()
    assert set(engines.starts(out).values()) == {1}


def test_what_a_run_takes_that_no_computer_has_is_refused(cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "plan.json").touch()
    settings = RayConfig(address=cluster.address, cpus=2, gpus=0.5)
    with pytest.raises(UserError, match=r"a run takes 2 CPU, 0.5 GPU, and no computer .* 1 CPU, 0 GPU; 1 CPU, 0 GPU"):
        RayExecutor(settings, tmp_path / "plan.json", 0).__enter__()


def test_a_folder_that_the_workers_do_not_share_is_refused(cluster: Any, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.json").touch()

    def elsewhere(job: Job | None, witness: Path) -> dict[str, Any]:
        from polydistill.study.executors.errand import words_of

        return words_of(job, witness) | {"witness": "/not/there/plan.json"}

    monkeypatch.setattr("polydistill.study.executors.ray_cluster.words_of", elsewhere)
    with pytest.raises(UserError, match=r"does not share /not/there \(No such file.*give --out a folder that all"):
        RayExecutor(RayConfig(address=cluster.address), tmp_path / "plan.json", 0).__enter__()


def test_an_address_that_nobody_has_is_one_line_at_once(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(UserError, match=f"no Ray cluster at {address}: Connection refused; `ray start"):
            RayExecutor(RayConfig(address=address), tmp_path / "plan.json", 0).__enter__()
        assert time.monotonic() - started < 10
