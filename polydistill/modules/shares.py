"""The processes that torchrun starts, for a lineage of one's own modules: each takes its share of every batch.

Every process goes through the same batches, so that each knows what counts in the whole batch, and a permutation or a
mean over it is the same as with one process. Contract: with two processes a run does what it does with one, up to the
order of sums; except for batch norm, which sees the share of its own process, and for what modules draw, as dropout,
which follows from (seed, generation, step, process). Without torchrun everything here does nothing.
"""

from __future__ import annotations

import atexit
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from polydistill.device import Device
from polydistill.errors import UserError
from polydistill.learning.processes import ALONE, Processes, open_processes
from polydistill.modules.batches import Batch
from polydistill.modules.feed import samplers_of
from polydistill.provenance import weights_sha256

_joined: list[tuple[str, Processes]] = []  # one at most, with the kind of device for which they are connected


def join_processes(device: torch.device | str | None) -> Processes:
    """The processes of this run, connected until the program ends. Where the program has connected them itself, as for
    ``DistributedDataParallel``, each trains on its own batches, and the program sees to it.

    Args:
        device: of the modules; None: the CPU.

    Raises:
        UserError: there are more processes than GPUs on this machine, or a lineage before was on the other kind of
            device.
    """
    kind: Device = "cuda" if device is not None and torch.device(device).type == "cuda" else "cpu"
    if not _joined and dist.is_available() and dist.is_initialized():
        return ALONE
    if not _joined:
        _joined.append((kind, _connect(kind)))
    ((other, processes),) = _joined
    if processes.size > 1 and kind != other:
        told = f"the processes of this program are connected for device {other}, and this lineage "
        if device is None:
            raise UserError(f"{told}names no device: give device={other!r}, if its modules are there")
        raise UserError(f"{told}is for {kind}: give it a program of its own")
    return processes


def check_may_keep(processes: Processes) -> None:
    """Refuse a run folder for several processes that know nothing of each other here.

    Raises:
        UserError: the program has connected them itself.
    """
    if processes.size == 1 and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise UserError("distill connects the processes of a run by itself: leave init_process_group out, or `run`")


def _connect(device: Device) -> Processes:
    with ExitStack() as stack:
        processes = stack.enter_context(open_processes(device))
        atexit.register(stack.pop_all().close)
    return processes


def take_share(batch: Batch, processes: Processes, parts: int, where: str) -> tuple[Batch, slice]:
    """This process's samples of a batch, and the places of their labels in it.

    Raises:
        ValueError: there is not a sample for each part of each process.
    """
    if processes.size == 1:
        return batch, slice(None)
    samples = batch.shape[0]
    if samples < processes.size * parts:
        raise ValueError(_too_few(where, samples, processes, parts))
    shares = batch.split(processes.size)
    start = sum(len(share.labels) for share in shares[: processes.rank])
    mine = shares[processes.rank]
    return mine, slice(start, start + len(mine.labels))


def check_source(source: Iterable[Any], processes: Processes, parts: int) -> None:
    """Refuse batches that are divided among the processes already, and a loader whose last one is too small.

    Raises:
        ValueError: they are, or it is.
    """
    if processes.size > 1 and any(isinstance(sampler, DistributedSampler) for sampler in samplers_of(source)):
        raise ValueError(
            "each process takes its share of each batch of `batches` by itself: leave DistributedSampler out"
        )
    rest = _size_of_last(source)
    if rest is not None and processes.size > 1 and rest < processes.size * parts:
        raise ValueError(_too_few("the last batch of `batches`", rest, processes, parts))


def _too_few(where: str, samples: int, processes: Processes, parts: int) -> str:
    each = f" of {parts} parts each" if parts > 1 else ""
    told = f"{where} has {samples} samples, too few for {processes.size} processes{each}"
    return f"{told}: larger batches, or drop_last=True"


def _size_of_last(source: Iterable[Any]) -> int | None:
    """Samples of a loader's last batch; None where that is not known, or it is left out."""
    if not isinstance(source, DataLoader) or source.batch_size is None or source.drop_last:
        return None
    try:
        samples = len(source.sampler)  # type: ignore[arg-type]
    except TypeError:  # an iterable data set has no length
        return None
    return samples % source.batch_size or min(samples, source.batch_size)


def check_module(module: nn.Module, name: str, processes: Processes) -> None:
    """Refuse a module that would share gradients a second time.

    Raises:
        ValueError: it is wrapped for data-parallel training.
    """
    if processes.size > 1 and isinstance(module, DistributedDataParallel):
        raise ValueError(f"distill sums gradients over the processes by itself: `{name}` must make a bare module")


def check_same_weights(
    weights: Mapping[str, Tensor], name: str, processes: Processes, device: torch.device | None
) -> None:
    """Refuse weights that differ from process to process, in all of them.

    Args:
        weights: of a module, by name; whole ones.
        name: of the argument that they come from.
        processes: all call this.
        device: of the processes' messages; None: there are no weights.

    Raises:
        ValueError: one is another than that of the first process.
    """
    if processes.size == 1 or device is None:
        return
    if not are_alike(weights_sha256(weights), processes, device):
        raise ValueError(
            f"the module of `{name}` does not have the same weights in all processes: draw them from torch's, numpy's "
            "or Python's global generator, which are seeded while `build` is called, or read them from a file"
        )


def check_alike(seen: str, processes: Processes, where: str, device: torch.device) -> None:
    """Refuse batches that differ from process to process, in all of them.

    Args:
        seen: a hash of this process's batch.
        processes: all call this.
        where: the batch is, for the error.
        device: of the processes' messages.

    Raises:
        ValueError: one is another than that of the first process.
    """
    if not are_alike(seen, processes, device):
        raise ValueError(
            f"{where} is not the same in all processes: `batches` must give the same to each, of which it takes its "
            "share"
        )


def are_alike(seen: str, processes: Processes, device: torch.device) -> bool:
    """Whether ``seen`` is the same in all processes, which all call this; ``device`` is that of their messages."""
    as_the_first = torch.tensor(float(processes.first_says(seen) == seen), device=device)
    return processes.sum_(as_the_first).item() == processes.size


@contextmanager
def fail_together(processes: Processes, device: torch.device, what: str) -> Iterator[None]:
    """An error of one process in the block is one of all, so that none waits for it in vain.

    Args:
        processes: all enter the block, as often.
        device: of their messages.
        what: is done in the block, for the others' error.

    Raises:
        UserError: another process has failed.
    """
    if processes.size == 1:
        yield
        return
    failed = torch.zeros(processes.size, device=device)
    try:
        yield
    except Exception:
        failed[processes.rank] = 1.0
        processes.sum_(failed)
        raise
    if ranks := processes.sum_(failed).nonzero().flatten().tolist():
        raise UserError(f"process {ranks[0]} of {processes.size} has failed while {what}, and says why")
