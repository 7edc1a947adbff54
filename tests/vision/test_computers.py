"""Processes of several computers, which share no folder: they do what as many processes of one computer do."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from polydistill.errors import UserError
from polydistill.learning.processes import ALONE, Processes
from tests.crashes.same import assert_same_run

PRODUCTS = ("generation_*.safetensors", "generation_*.json", "generation_*_correct.npz")
WORDS = (
    *("--out", "run", "--device", "cpu", "--threads", "1", "--precision", "float32", "--training.epochs", "2"),
    *("--lineage.generations", "1", "--checkpoint.every_steps", "5"),
)
pytestmark = pytest.mark.slow


def start(root: Path, folder: Path, *launch: str) -> subprocess.Popen[str]:
    """The script as torchrun starts it in ``folder``."""
    folder.mkdir(exist_ok=True)
    words = [sys.executable, "-m", "torch.distributed.run", *launch, str(root / "scripts" / "distill_cifar.py"), *WORDS]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(
        words, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def start_computers(root: Path, *folders: Path) -> list[subprocess.Popen[str]]:
    """A torchrun on each of two computers, which is this one twice, with a folder of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launch = ("--nnodes", "2", "--nproc_per_node", "1", "--master_addr", "127.0.0.1", "--master_port", port)
    return [start(root, folder, *launch, "--node_rank", str(rank)) for rank, folder in enumerate(folders)]


def outputs(processes: list[subprocess.Popen[str]]) -> list[str]:
    return [process.communicate(timeout=300)[0] for process in processes]


def test_two_computers_without_a_shared_folder_make_the_run_of_two_processes(root: Path, tmp_path: Path) -> None:
    one = start(root, tmp_path / "one", "--standalone", "--nproc_per_node", "2")
    (output,) = outputs([one])
    assert one.returncode == 0, output

    folders = tmp_path / "first", tmp_path / "second"
    computers = start_computers(root, *folders)
    end = time.monotonic() + 120
    while not list((folders[0] / "run").glob("checkpoints/*.checkpoint")) and time.monotonic() < end:
        time.sleep(0.02)
    for process in computers:  # the first of them saves
        process.send_signal(signal.SIGTERM)
    told = outputs(computers)
    assert all(process.returncode for process in computers), told
    assert "and saved: the same command goes on from there" in told[0]
    assert not (folders[0] / "run" / "summary.json").exists()

    for _ in range(2):  # the second time it is finished, which the second computer cannot see
        computers = start_computers(root, *folders)
        told = outputs(computers)
        assert [process.returncode for process in computers] == [0, 0], told
        assert told[0].count("| generation 1 ") == 1
        assert "| generation 1 " not in told[1]
    assert_same_run(tmp_path / "one" / "run", folders[0] / "run", PRODUCTS)
    assert not (folders[1] / "run").exists()
    assert json.loads((folders[0] / "run" / "summary.json").read_text())["processes"] == 2


def test_what_the_first_computer_refuses_all_are_told(root: Path, tmp_path: Path) -> None:
    folders = tmp_path / "first", tmp_path / "second"
    (folders[0] / "run").mkdir(parents=True)
    (folders[0] / "run" / "letter.txt").write_text("mine")
    told = outputs(start_computers(root, *folders))
    assert all("error: run is not empty" in output for output in told), told
    assert all("Traceback" not in output.partition("error: ")[0] for output in told)


def test_alone_a_process_asks_itself() -> None:
    assert ALONE.ask_first(lambda: 3) == 3
    with pytest.raises(UserError, match="no"):
        Processes(0, 1).ask_first(refuse)


def refuse() -> None:
    raise UserError("no")
