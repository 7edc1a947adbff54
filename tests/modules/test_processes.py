"""A lineage of modules that DistributedDataParallel wraps, in two processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")

WORKER = """
import sys
import torch, torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from polydistill.errors import UserError
from polydistill.modules import ModuleDomain

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)

def build():
    return DistributedDataParallel(nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)))

labels = torch.arange(12) % 3
inputs = torch.randn(12, 2, generator=torch.Generator().manual_seed(rank)) + labels.unsqueeze(1) + rank
batches = [(inputs, labels)] * 3  # others in each process: so are the running statistics of batch norm
domain = ModuleDomain(build, batches, [(torch.ones(6, 2), labels[:6])], epochs=2)
found = list(domain.distill(2))
given = ModuleDomain(build, batches, [(torch.ones(6, 2), labels[:6])], epochs=1, teacher=found[0].member)
taught = list(given.distill(1))
path = f"{store}_{rank}.pt"
torch.save(found[0].member.state_dict(), path)
of_file = ModuleDomain(build, batches, [(torch.ones(6, 2), labels[:6])], epochs=1, teacher=path)
taught.append(next(of_file.distill(1)))
try:
    next(domain.distill(1, run=f"{store}_run"))
except UserError as error:
    assert "leave init_process_group out" in str(error)
dist.destroy_process_group()
print("HASHES", [g.sha256[:12] for g in (*found, *taught)])
"""


def test_students_under_data_parallel_training_have_one_hash_in_all_processes(root: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(tmp_path / "store")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    outputs = [worker.communicate(timeout=240) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs[0][1][-2000:] + outputs[1][1][-2000:]
    first, second = (output.splitlines()[-1] for output, _ in outputs)
    assert first == second
    hashes = first.removeprefix("HASHES ").strip("[]").split(", ")
    assert hashes[5] == hashes[0], "the file of weights is the module"
    assert len(set(hashes[:3])) == 3
