"""The losses that normalise over the batch, with the batch spread over two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from polydistill.losses import OBJECTIVES

WORKER = """
import json, sys
import torch, torch.distributed as dist
from polydistill.losses import OBJECTIVES
rank, store, batch = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
cut = slice(0, 2) if rank == 0 else slice(2, None)  # parts of 2 and 3 samples
z, t, y = torch.tensor(batch["z"])[cut].requires_grad_(), torch.tensor(batch["t"])[cut], torch.tensor(batch["y"])[cut]
found = {}
for name in ("cwtm", "uniform_confidence"):
    z.grad = None
    loss = OBJECTIVES[name](z, t, y, group=dist.group.WORLD)
    loss.sum().backward()
    found[name] = [loss.tolist(), z.grad.tolist()]
    none = OBJECTIVES[name](z[:0] if rank else z, t[:0] if rank else t, y[:0] if rank else y, group=dist.group.WORLD)
    found[name].append(none.tolist())
dist.destroy_process_group()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(0)
    z, t = torch.randn((2, 5, 4), generator=generator) * 2
    return z.requires_grad_(), t, torch.tensor([0, 3, 1, 1, 2])


@pytest.fixture(scope="module")
def found(batch, root: Path, tmp_path_factory: pytest.TempPathFactory):
    """What each of two processes finds for its part."""
    z, t, y = batch
    arguments = [
        str(tmp_path_factory.mktemp("store") / "store"),
        json.dumps({"z": z.tolist(), "t": t.tolist(), "y": y.tolist()}),
    ]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), *arguments],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    results = []
    for worker in workers:
        out, error = worker.communicate(timeout=300)
        assert worker.returncode == 0, error
        results.append(json.loads(out))
    return results


@pytest.mark.parametrize("name", ["cwtm", "uniform_confidence"])
def test_parts_of_a_batch_have_the_losses_and_gradients_of_the_whole(batch, found, name) -> None:
    z, t, y = batch
    whole = OBJECTIVES[name](z, t, y)
    (gradient,) = torch.autograd.grad(whole.sum(), z)
    losses, gradients = (torch.tensor(found[0][name][i] + found[1][name][i]) for i in range(2))
    torch.testing.assert_close(losses, whole.detach())
    torch.testing.assert_close(gradients, gradient)
    alone = OBJECTIVES[name](z[:2], t[:2], y[:2]).detach()
    assert (alone - whole[:2].detach()).abs().max() > 0.01  # without the group they would differ


@pytest.mark.parametrize("name", ["cwtm", "uniform_confidence"])
def test_a_process_without_samples_takes_part_and_adds_nothing(batch, found, name) -> None:
    z, t, y = batch
    alone = OBJECTIVES[name](z[:2], t[:2], y[:2]).detach()
    torch.testing.assert_close(torch.tensor(found[0][name][2]), alone)
    assert found[1][name][2] == []
