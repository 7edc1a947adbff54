"""The processes of one run, as torchrun starts them: who am I, which rows are mine, sums over all.

Contract: with the gradient summed over the processes and every random number drawn for the whole batch, a run does the
same on 1, 2 or n processes, except for batch norm, which sees the rows of its own process (or those of all, with
SyncBatchNorm). Without torchrun everything here does nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from polydistill.device import Device, resolve_device
from polydistill.errors import UserError
from polydistill.learning.sharded import is_piece

Result = TypeVar("Result")


@dataclass(frozen=True)
class Processes:
    """The processes of this run.

    Args:
        rank: of this process, from 0. Rank 0 writes the run folder.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def group(self) -> dist.ProcessGroup | None:
        """What objectives that normalise over the batch sum over; None where there is one process."""
        return dist.group.WORLD if self.size > 1 else None

    def share(self, rows: Tensor) -> Tensor:
        """This process's part of the rows of a batch: consecutive ones, as many as the others have or one more."""
        start, end = (len(rows) * rank // self.size for rank in (self.rank, self.rank + 1))
        return rows[start:end]

    def sum_(self, values: Tensor) -> Tensor:
        """Replace ``values``, in place, by their sum over the processes."""
        if self.size > 1:
            with self.peers_needed():
                dist.all_reduce(values)
        return values

    def sum_gradients_(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient, in place, by its sum over the processes: one message for all."""
        if self.size == 1:
            return
        given = (parameter.grad for parameter in parameters if parameter.grad is not None)
        gradients = [gradient for gradient in given if not is_piece(gradient)]  # FSDP has summed those
        if not gradients:
            return
        flat = self.sum_(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        start = 0
        for gradient in gradients:
            gradient.copy_(flat[start : start + gradient.numel()].view(gradient.shape))
            start += gradient.numel()

    def average_buffers_(self, network: nn.Module) -> None:
        """Replace the running statistics of batch norm, in place, by their mean over the processes."""
        self.average_(network.buffers())

    def average_(self, tensors: Iterable[Tensor]) -> None:
        """Replace those of floats, in place, by their mean over the processes."""
        if self.size == 1:
            return
        for tensor in tensors:
            if tensor.is_floating_point():
                self.sum_(tensor).div_(self.size)

    def first_says(self, value: Any) -> Any:
        """``value`` of rank 0, in every process; a plain object."""
        if self.size == 1:
            return value
        box = [value]
        with self.peers_needed():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def ask_first(self, read: Callable[[], Result]) -> Result:
        """``read()`` of rank 0, in every process: what is on that computer, where the others may be on another one.

        Raises:
            UserError: it did.
        """
        if self.size == 1:
            return read()
        found: Result | None = None
        why: str | None = None
        if self.rank == 0:
            try:
                found = read()
            except UserError as error:
                why = str(error)
        found, why = self.first_says((found, why))
        if why is not None:
            raise UserError(why)
        return cast(Result, found)

    def in_turn(self, read: Callable[[], Result]) -> Result:
        """``read()``, first in rank 0, so that the others find what it has downloaded."""
        if self.rank > 0:
            self.wait()
        result = read()
        if self.rank == 0:
            self.wait()
        return result

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            with self.peers_needed():
                dist.barrier()

    @contextlib.contextmanager
    def peers_needed(self, *, among_others: bool = False) -> Iterator[None]:
        """One line where a process that was to take part is gone: killed, or out of memory.

        Args:
            among_others: the block does other things too, whose errors stay as they are.
        """
        try:
            yield
        except RuntimeError as error:  # gloo's own, and what NCCL's is derived from
            if among_others and not (isinstance(error, dist.DistError) or "gloo" in str(error)):
                raise
            raise UserError(
                f"process {self.rank} of {self.size} has lost another, which ended or was killed; what was saved is "
                "kept, and the same command goes on from there"
            ) from error


ALONE = Processes()


def is_first_process() -> bool:
    """Whether this is the process that speaks, of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def open_processes(device: Device) -> Iterator[Processes]:
    """The processes that torchrun started, connected while the context lasts; a single one without torchrun.

    Args:
        device: "cpu" (gloo) or "cuda" (NCCL; process i of a machine takes GPU i), or "auto".

    Raises:
        UserError: there are more processes than GPUs on this machine, or none, and the device is one.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Processes()
        return
    if device == "auto":
        device = resolve_device(device)
    if device == "cuda":
        gpu, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if gpu >= there:
            raise UserError(
                f"each process needs a GPU of its own, and there are {there}: give --nproc_per_node {there}"
            )
        torch.cuda.set_device(gpu)
    rank = int(os.environ.get("RANK", "0"))
    with Processes(rank, size).peers_needed():
        # what is no tensor goes by gloo: by NCCL a whole checkpoint would lie on each GPU
        dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
