"""Two gloo processes on the CPU do what one does; batch norm sees the half batch of its own process."""

from __future__ import annotations

import json
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from polydistill.errors import UserError
from polydistill.learning.lesson import Lesson
from polydistill.learning.processes import ALONE, Processes, open_processes
from polydistill.learning.schedules import TrainingConfig
from polydistill.vision.training import Trainer

OBJECTIVES = ["ban", "ban_l", "cwtm", "uniform_confidence", "dkpp"]
LESSONS = [*(("plain", objective) for objective in OBJECTIVES), ("wrn-10-1", "ban")]
WORKER = Path(__file__).parent / "worker.py"


@pytest.fixture(scope="module")
def two_processes(root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    """The results of LESSONS on both of two processes."""
    folder = tmp_path_factory.mktemp("parallel")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": str(root),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(folder)],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(json.dumps(LESSONS))
        process.stdin.close()
        process.stdin = None
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    return [torch.load(folder / f"rank_{rank}.pt", weights_only=True) for rank in range(2)]


def train(name: str, objective: str, student: nn.Module | None = None) -> dict[str, Any]:
    """The same lesson in this process alone."""
    result: dict[str, Any] = runpy.run_path(str(WORKER))["train"](name, objective, ALONE, student)
    return result


def greatest_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    assert first.keys() == second.keys()
    return max((first[name].double() - second[name].double()).abs().max().item() for name in first)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_without_batch_statistics_two_processes_are_one(two_processes: Any, objective: str) -> None:
    index = LESSONS.index(("plain", objective))
    alone = train("plain", objective)
    fresh: dict[str, Tensor] = runpy.run_path(str(WORKER))["make_network"]("plain", 0).state_dict()
    assert greatest_difference(alone["weights"], fresh) > 0.005, "nothing was learned: the comparison says nothing"
    for rank in range(2):
        assert greatest_difference(two_processes[rank][index]["weights"], alone["weights"]) < 1e-5
        for ours, theirs in zip(two_processes[rank][index]["reports"], alone["reports"], strict=True):
            assert ours.keys() == theirs.keys()
            assert {"train/loss", "train/agreement", "distill/label_share"} < ours.keys()
            assert ("distill/effective_share" in ours) is (objective == "cwtm")
            for tag in ours:
                assert ours[tag] == pytest.approx(theirs[tag], abs=1e-5), tag


class HalvedBatchNorm(nn.BatchNorm2d):
    """Normalises the two halves of a batch apart; its running statistics are the mean of what each half leaves."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        halves, statistics = [], []
        middle = len(x) // 2
        for half in (x[:middle], x[middle:]):
            mean, var = self.running_mean.clone(), self.running_var.clone()
            halves.append(F.batch_norm(half, mean, var, self.weight, self.bias, True, self.momentum or 0.1, self.eps))
            statistics.append((mean, var))
        self.running_mean = (statistics[0][0] + statistics[1][0]) / 2
        self.running_var = (statistics[0][1] + statistics[1][1]) / 2
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        return torch.cat(halves)


def halve_batch_norms(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = HalvedBatchNorm
    return network


def test_a_wide_resnet_on_two_processes_is_one_that_normalises_both_half_batches(two_processes: Any) -> None:
    make_network = runpy.run_path(str(WORKER))["make_network"]
    index = LESSONS.index(("wrn-10-1", "ban"))
    halved = train("wrn-10-1", "ban", halve_batch_norms(make_network("wrn-10-1", 0)))
    whole = train("wrn-10-1", "ban")
    for rank in range(2):
        assert greatest_difference(two_processes[rank][index]["weights"], halved["weights"]) < 1e-7
    assert greatest_difference(whole["weights"], halved["weights"]) > 1e-3, "the halves do not matter here"


def test_both_processes_end_with_the_same_bits(two_processes: Any) -> None:
    for first, second in zip(*two_processes, strict=True):
        assert greatest_difference(first["weights"], second["weights"]) == 0
        assert first["reports"] == second["reports"]


def test_more_processes_than_gpus_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "LOCAL_RANK": "1", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"each process needs a GPU.*there are 1: give --nproc_per_node 1$"):
        open_processes("cuda").__enter__()


def test_the_shares_of_a_batch_are_all_of_it() -> None:
    for n in (1, 2, 5, 6, 7, 128):
        rows = torch.arange(n)
        for size in (1, 2, 3):
            shares = [Processes(rank, size).share(rows) for rank in range(size)]
            assert torch.equal(torch.cat(shares), rows)
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_batch_that_leaves_a_process_idle_is_refused() -> None:
    from polydistill.vision.images.augmentation import Normalizer
    from polydistill.vision.images.data import DataConfig, load_images

    images = load_images(DataConfig("cifar10", made_up=100, validation_images=0))
    with pytest.raises(UserError, match="leaves a process without an image in the last batch of 100, with 2 processes"):
        Trainer(
            nn.Linear(1, 1),
            Lesson("cross_entropy"),
            images.train,
            Normalizer.of(images.normalization),
            TrainingConfig(batch_size=33),
            seed=0,
            generation=0,
            processes=Processes(0, 2),
        )


@pytest.mark.slow
def test_torchrun_runs_the_script_and_one_process_writes(root: Path, tmp_path: Path) -> None:
    words = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
        *(str(root / "scripts" / "distill_cifar.py"), "--out", str(tmp_path / "run"), "--device", "cpu"),
        *("--threads", "1", "--training.epochs", "1", "--lineage.generations", "1"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    for _ in range(2):  # the second time it is finished: both processes must see that
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("| generation 1 ") == 1
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["processes"] == 2


@pytest.mark.slow
def test_batch_norm_cannot_be_synchronised_on_cpus_and_the_folder_stays_free(root: Path, tmp_path: Path) -> None:
    words = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
        *(str(root / "scripts" / "distill_cifar.py"), "--out", str(tmp_path / "run"), "--device", "cpu"),
        *("--threads", "1", "--training.sync_batchnorm", "true"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert done.stderr.count("error: training.sync_batchnorm works on GPUs only") == 2
    assert "SyncBatchNorm expected" not in done.stderr
    assert not (tmp_path / "run").exists()


LOST = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4711"


@pytest.mark.parametrize("error", [RuntimeError(LOST), dist.DistNetworkError("reset"), dist.DistBackendError("NCCL")])
def test_a_process_that_is_lost_in_the_midst_of_a_step_is_one_line(error: RuntimeError) -> None:
    with (
        pytest.raises(UserError, match="process 0 of 2 has lost another"),
        Processes(0, 2).peers_needed(among_others=True),
    ):
        raise error


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), torch.OutOfMemoryError("CUDA out of memory.")])
def test_what_else_goes_wrong_in_a_step_stays_as_it_is(error: RuntimeError) -> None:
    with pytest.raises(type(error), match=str(error)), Processes(0, 2).peers_needed(among_others=True):
        raise error
