"""A batch spread over two processes: under DDP, and for the losses that normalise over the batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from polydistill.losses import OBJECTIVES
from polydistill.losses.backend import HAS_TRITON

WORKER = """
import json, sys
import torch, torch.distributed as dist
from polydistill.losses import OBJECTIVES
rank, store, batch = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
cut = slice(0, 2) if rank == 0 else slice(2, None)  # parts of 2 and 3 samples
z, t, y = torch.tensor(batch["z"])[cut].requires_grad_(), torch.tensor(batch["t"])[cut], torch.tensor(batch["y"])[cut]
members = torch.tensor(batch["members"])[:, cut]
found = {}
for name in ("cwtm", "uniform_confidence"):
    z.grad = None
    loss = OBJECTIVES[name](z, t, y, group=dist.group.WORLD)
    loss.sum().backward()
    found[name] = [loss.tolist(), z.grad.tolist()]
    none = OBJECTIVES[name](z[:0] if rank else z, t[:0] if rank else t, y[:0] if rank else y, group=dist.group.WORLD)
    found[name].append(none.tolist())
    found[name].append(OBJECTIVES[name](z, members, y, group=dist.group.WORLD).tolist())
dist.destroy_process_group()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(0)
    z, t = torch.randn((2, 5, 4), generator=generator) * 2
    return z.requires_grad_(), t, torch.tensor([0, 3, 1, 1, 2])


@pytest.fixture(scope="module")
def members():
    return torch.randn((3, 5, 4), generator=torch.Generator().manual_seed(1)) * 2


@pytest.fixture(scope="module")
def found(batch, members, root: Path, tmp_path_factory: pytest.TempPathFactory):
    """What each of two processes finds for its part."""
    z, t, y = batch
    arguments = [
        str(tmp_path_factory.mktemp("store") / "store"),
        json.dumps({"z": z.tolist(), "t": t.tolist(), "y": y.tolist(), "members": members.tolist()}),
    ]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return run_both(WORKER, arguments, environment)


def run_both(code: str, arguments: list[str], environment: dict[str, str]) -> list[dict]:
    """What two processes of one group print last, as JSON; older Gloo tells of its connections before."""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank), *arguments],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    results = []
    for worker in workers:
        out, error = worker.communicate(timeout=300)
        assert worker.returncode == 0, error
        results.append(json.loads(out.splitlines()[-1]))
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


@pytest.mark.parametrize("name", ["cwtm", "uniform_confidence"])
def test_parts_of_a_batch_taught_by_an_ensemble_have_the_losses_of_the_whole(batch, members, found, name) -> None:
    z, _, y = batch
    losses = torch.tensor(found[0][name][3] + found[1][name][3])
    torch.testing.assert_close(losses, OBJECTIVES[name](z, members, y).detach())
    alone = OBJECTIVES[name](z[:2], members[:, :2], y[:2]).detach()
    assert (alone - losses[:2]).abs().max() > 0.01


TRAINER = """
import json, sys
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from polydistill.losses import OBJECTIVES, use_backend
rank, store = int(sys.argv[1]), sys.argv[2]
backends = json.loads(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
generator = torch.Generator().manual_seed(0)
x, t = torch.randn(6, 3, generator=generator), torch.randn(6, 4, generator=generator) * 2
weight, y = torch.randn(4, 3, generator=generator), torch.tensor([0, 3, 1, 1, 2, 0])
part = slice(0, 3) if rank == 0 else slice(3, 6)
found = {}
for backend in backends:
    for name in ("policy_kl", "hinton_kd", "jsd", "ban_l"):
        def gradient(network, cut):
            with use_backend(backend):
                OBJECTIVES[name](network(x[cut]), t[cut], y[cut]).mean().backward()
            return network.get_parameter(next(iter(dict(network.named_parameters())))).grad.tolist()
        networks = [torch.nn.Linear(3, 4, bias=False) for _ in range(2)]
        for network in networks:
            network.weight.data.copy_(weight)
        found[f"{backend} {name}"] = [
            gradient(DistributedDataParallel(networks[0]), part), gradient(networks[1], slice(None)),
        ]
dist.destroy_process_group()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def trained(root: Path, tmp_path_factory: pytest.TempPathFactory):
    """Of each process, backend and objective: the gradient of its part of the batch after DDP, and of the whole."""
    backends = ["torch", "triton"] if HAS_TRITON else ["torch"]
    arguments = [str(tmp_path_factory.mktemp("store") / "store"), json.dumps(backends)]
    environment = {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "TRITON_INTERPRET": "1"}
    return run_both(TRAINER, arguments, os.environ | environment)


@pytest.mark.parametrize("name", ["policy_kl", "hinton_kd", "jsd", "ban_l"])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_two_processes_under_ddp_learn_as_one(trained, backend, name) -> None:
    """From the plain formulas, and from the kernels in Triton's interpreter."""
    if backend == "triton" and not HAS_TRITON:
        pytest.skip("needs Triton, which is not installed")
    (first, whole), (second, _) = (torch.tensor(process[f"{backend} {name}"]) for process in trained)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, whole, rtol=1e-5, atol=1e-6)
    assert whole.abs().max() > 1e-2
