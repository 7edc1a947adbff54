"""One's own modules under torchrun: two processes do what one does, the first writes, and a run goes on exactly.

The processes are started once, for all that is claimed: torch takes long to be imported."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, TensorDataset

from polydistill.errors import UserError
from polydistill.learning.processes import ALONE, Processes
from polydistill.modules import shares
from polydistill.modules.batches import read_batch
from polydistill.modules.shares import check_source, join_processes, take_share
from polydistill.runs.checkpoint import Checkpoints

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")

PROGRAM = Path(__file__).parent / "sharing.py"
LESSONS: dict[str, dict[str, Any]] = {
    "ban": {"kept": "ban"},
    "cwtm": {"objective": "cwtm", "clip_norm": 0.3},
    "uniform_confidence": {"objective": "uniform_confidence", "ema": 0.8},
    "dkpp": {"objective": "dkpp"},
    "lbfgs": {"objective": "ban_l"},
    "cached": {"objective": "hinton_kd"},
    "sharded": {"shard": True, "clip_norm": 0.3, "kept": "sharded"},
    "sharded, a mean": {"shard": True, "objective": "dkpp", "ema": 0.8},
    "tied within": {"shard": True, "kept": "tied"},
    "sharded, whole batches in parts": {"shard": True, "objective": "cwtm", "parts": 3},
}
OTHERS: dict[str, dict[str, Any]] = {
    "searching lbfgs": {"objective": "ban_l"},
    "drawing": {"kept": "drawing", "ema": 0.9},
    "drawing, resumed": {"kept": "resumed", "ema": 0.9, "goes_on": "drawing"},
    "drawing, shown": {"kept": "resumed", "ema": 0.9},
    "drawing, sharded": {"kept": "drawing_sharded", "ema": 0.9, "shard": True},
    "drawing, sharded, resumed": {"kept": "resumed_sharded", "ema": 0.9, "shard": True, "goes_on": "drawing_sharded"},
    "drawing, sharded, shown": {"kept": "resumed_sharded", "ema": 0.9, "shard": True},
    "nan sharded": {"kept": "nan_sharded", "shard": True},
    "lbfgs, sharded": {"shard": True},
    "tied": {"shard": True},
    "no such block": {"shard": "Tanh"},
    "opaque": {"shard": True},
    "other file": {"shard": True},
    "sampler": {},
    "other": {},
    "few": {"parts": 2, "objective": "cwtm"},
    "other cached": {},
    "unseeded teacher": {},
    "unseeded build": {},
    "printed otherwise": {},
    "nan cached": {},
}


def run(folder: Path, lessons: dict[str, Any]) -> list[Any]:
    """The results of both processes."""
    environment = os.environ | {
        "PYTHONPATH": str(PROGRAM.parents[2]),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "LESSONS": json.dumps(lessons),
    }
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*words, str(PROGRAM), str(folder)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (folder / "stderr.txt").write_text(done.stderr, encoding="utf-8")
    return [torch.load(folder / f"rank_{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def both(folder: Path) -> list[Any]:
    return run(folder, LESSONS | OTHERS)


@pytest.fixture(scope="module")
def program() -> dict[str, Any]:
    return runpy.run_path(str(PROGRAM))


@pytest.mark.parametrize("name", LESSONS)
def test_two_processes_do_what_one_does(both: list[Any], program: dict[str, Any], tmp_path: Path, name: str) -> None:
    options = {key: value for key, value in LESSONS[name].items() if key != "kept"}
    alone = program["learn"](name, options, None, tmp_path)
    for found in both:
        torch.testing.assert_close(found[name]["weights"], alone["weights"], rtol=1e-4, atol=1e-6)
        assert found[name]["hashes"] == both[0][name]["hashes"]
        assert found[name]["metrics"][1]["test_nll"] == pytest.approx(alone["metrics"][1]["test_nll"], rel=1e-4)


def test_processes_search_along_a_line_together(both: list[Any]) -> None:
    """By the loss of the whole batch: by their own ones they would go different ways."""
    assert both[0]["searching lbfgs"]["hashes"] == both[1]["searching lbfgs"]["hashes"]


def test_the_first_process_writes_one_curve_of_all_samples(
    both: list[Any], folder: Path, program: dict[str, Any], tmp_path: Path
) -> None:
    program["learn"]("ban", {}, tmp_path / "alone")
    ours, theirs = (
        [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        for out in (folder / "ban", tmp_path / "alone")
    )
    for one, other in zip(ours, theirs, strict=True):
        assert one.pop("values") == pytest.approx(other.pop("values"), rel=1e-3, abs=1e-6)
        assert one == other


def test_a_run_of_two_processes_goes_on_bit_for_bit(both: list[Any], folder: Path) -> None:
    """With batch norm, dropout and a mean of the weights, from the checkpoint before the last; then it is shown."""
    for found in both:
        assert found["drawing, resumed"]["hashes"] == found["drawing"]["hashes"] == found["drawing, shown"]["hashes"]
    ours, theirs = ((folder / name / "metrics.jsonl").read_bytes() for name in ("resumed", "drawing"))
    assert ours == theirs


def test_a_sharded_run_goes_on_bit_for_bit(both: list[Any], folder: Path) -> None:
    name = "drawing, sharded"
    for found in both:
        assert found[f"{name}, resumed"]["hashes"] == found[name]["hashes"] == found[f"{name}, shown"]["hashes"]
    ours, theirs = ((folder / out / "metrics.jsonl").read_bytes() for out in ("resumed_sharded", "drawing_sharded"))
    assert ours == theirs


def test_each_process_holds_a_part_of_a_sharded_module_and_files_are_whole(
    both: list[Any], folder: Path, tmp_path: Path
) -> None:
    whole = both[0]["ban"]["held"]
    assert whole == sum(weights.numel() for weights in both[0]["ban"]["weights"][0].values())
    assert [found["sharded"]["held"] for found in both] == [whole // 2, whole // 2]
    for generation in (0, 1):
        file = load_file(folder / "sharded" / f"generation_{generation}.safetensors")
        torch.testing.assert_close(file, both[0]["sharded"]["weights"][generation], rtol=0, atol=0)
    shapes = []
    for name in ("ban", "sharded"):
        copied = shutil.copytree(folder / name / "checkpoints", tmp_path / name)
        sorted(copied.iterdir())[-1].unlink()  # in the one before, the course is at its end
        saved = Checkpoints(copied, kind="modules").latest()
        assert saved is not None
        shapes.append(shapes_of(saved["state"]["begun"]))
    assert shapes[0] == shapes[1], "a checkpoint is that of the whole module"


def shapes_of(value: Any) -> Any:
    """``value`` with shapes for its tensors, and without its numbers."""
    if isinstance(value, torch.Tensor):
        assert type(value) is torch.Tensor
        return tuple(value.shape)
    if isinstance(value, dict):
        return {key: shapes_of(entry) for key, entry in value.items()}
    return [shapes_of(entry) for entry in value] if isinstance(value, list | tuple) else type(value)


def test_the_first_process_says_once_where_sharding_saves_little(both: list[Any], folder: Path) -> None:
    told = [line for line in (folder / "stderr.txt").read_text(encoding="utf-8").splitlines() if "saves little" in line]
    line = (
        "shard saves little memory: 100% of the weights of `build` are whole at once. 0% lie in no block; the largest "
        "block is layers.0. ModuleDomain(shard=(Block,)) chooses the classes of blocks"
    )
    sharded = [name for name, options in (LESSONS | OTHERS).items() if "shard" in options]
    assert 3 <= told.count(line) <= len(told) <= len(sharded), "for a domain, not for each process and generation"


def test_a_sharded_number_that_is_not_finite_is_left_whole(both: list[Any], folder: Path) -> None:
    assert all("the loss cross_entropy of generation 0 is nan at batch 4 of epoch 1" in f["nan sharded"] for f in both)
    failure = torch.load(folder / "nan_sharded" / "generation_0_failure.pt", weights_only=True)
    assert failure["batch"]["step"] == 4
    weights = failure["state"]["student"]
    assert {name: tensor.shape for name, tensor in weights.items()} == {
        name: tensor.shape for name, tensor in both[0]["ban"]["weights"][0].items()
    }
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_what_cannot_be_sharded_is_told(both: list[Any]) -> None:
    for found in both:
        assert "LBFGS, which takes all weights at once: leave `shard` out" in found["lbfgs, sharded"]
        assert "cannot be sharded so: layers.2.weight would be in two blocks" in found["tied"]
        assert "give tensors, or tuples, lists or mappings of them, not Scores" in found["opaque"]
        assert "the module of `teacher` does not have the same weights in all processes" in found["other file"]
        assert "the module of `build` has no Tanh with weights, as `shard` says" in found["no such block"]


def test_two_processes_leave_each_sample_of_a_teacher_once(both: list[Any], folder: Path) -> None:
    files = [load_file(path) for path in (folder / "scores").rglob("*.safetensors")]
    assert len(files) == 2, "one of each process"
    samples = torch.cat([file["samples"] for file in files])
    assert len(samples) == len(samples.unique(dim=0)) == 44


def test_students_under_data_parallel_training_have_one_hash_in_all_processes(both: list[Any]) -> None:
    hashes = both[0]["wrapped"]["hashes"]
    assert hashes == both[1]["wrapped"]["hashes"]
    assert hashes[5] == hashes[0], "the file of weights is the module"
    assert len(set(hashes[:3])) == 3
    assert all("leave init_process_group out" in found["wrapped"]["told"] for found in both)


def test_what_cannot_be_shared_is_told(both: list[Any]) -> None:
    assert all("leave DistributedSampler out" in found["sampler"] for found in both)
    assert all("batch 1 of epoch 1 is not the same in all processes" in found["other"] for found in both)
    assert all("the first batch is not the same in all processes" in found["other cached"] for found in both)
    for name in ("teacher", "build"):
        assert all(
            f"the module of `{name}` does not have the same weights" in found[f"unseeded {name}"] for found in both
        )
    assert all("the teacher is not the same in all processes" in found["printed otherwise"] for found in both)
    assert all("has 2 samples, too few for 2 processes of 2 parts each" in found["few"] for found in both)


def test_an_error_of_one_process_while_scores_are_computed_is_told_in_all(both: list[Any]) -> None:
    """The second batch is that of process 1."""
    ours, theirs = (found["nan cached"] for found in both)
    assert ours == "process 1 of 2 has failed while the teacher's scores are computed, and says why"
    assert theirs.startswith("the teacher's scores of 77 of 110 positions of a batch are NaN")


def test_a_lineage_on_the_other_kind_of_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL takes no tensors of the CPU, and a second connection is an error of torch."""
    monkeypatch.setattr(shares, "_joined", [])
    monkeypatch.setattr(shares, "_connect", lambda kind: Processes(1, 2))
    assert join_processes("cuda:1") == join_processes("cuda") == Processes(1, 2)
    told = "are connected for device cuda, and this lineage is for cpu: give it a program of its own"
    for device in ("cpu", "mps"):
        with pytest.raises(UserError, match=told):
            join_processes(device)
    with pytest.raises(UserError, match="this lineage names no device: give device='cuda', if its modules are there"):
        join_processes(None)


def test_one_process_is_never_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "_joined", [])
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join_processes("cpu") == join_processes("cuda") == ALONE


def test_shares_are_the_batch() -> None:
    batch = read_batch((torch.arange(14).view(7, 2), torch.arange(21).view(7, 3)))
    shares = [take_share(batch, Processes(rank, 3), 1, "batch 1") for rank in range(3)]
    assert torch.equal(torch.cat([share.inputs[0] for share, _ in shares]), batch.inputs[0])
    assert torch.equal(torch.cat([batch.labels[mine] for _, mine in shares]), batch.labels)
    assert all(torch.equal(share.labels, batch.labels[mine]) for share, mine in shares)


@pytest.mark.parametrize(("samples", "parts"), [(9, 1), (11, 2)])
def test_a_last_batch_that_is_too_small_is_refused_before_the_first_step(samples: int, parts: int) -> None:
    data = TensorDataset(torch.zeros(samples, 2), torch.zeros(samples, dtype=torch.int64))
    loader = DataLoader(data, batch_size=4)
    with pytest.raises(ValueError, match=r"the last batch of `batches` has \d samples, too few for 2 processes"):
        check_source(loader, Processes(0, 2), parts)
    check_source(loader, Processes(0, 1), parts)
    check_source(DataLoader(data, batch_size=4, drop_last=True), Processes(0, 2), parts)
