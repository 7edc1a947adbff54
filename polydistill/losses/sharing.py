"""Where tensors lie: whether two networks, or the scores of both, are the same memory.

The contract: a tensor's place is the range of bytes from its first element to its last, on its device. So two slices
of one buffer do not overlap, and a view overlaps the tensor that it is a view of; two views that interleave, as
the columns of one matrix, count as overlapping. Nothing is copied, and no device is waited for.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

STATISTICS = ("running_", "num_batches_tracked")  # prefixes of the buffers that training changes


class Place(NamedTuple):
    """Bytes ``start`` to ``end`` (not included) of a device."""

    device: str
    start: int
    end: int


class Shared(NamedTuple):
    """Names, in the first network, of the tensors that overlap the second.

    Attributes:
        weights: parameters, and the batch statistics, which training changes as well.
        buffers: all other buffers; constants may be shared.
    """

    weights: list[str]
    buffers: list[str]


def find_place(tensor: Tensor) -> Place | None:
    """The tensor's place, of a sharded one that of this process's piece; None where it lies nowhere: without elements,
    on ``meta``, not yet made, or not strided."""
    if hasattr(tensor, "to_local"):
        tensor = tensor.to_local()
    if is_lazy(tensor) or tensor.layout is not torch.strided or not tensor.numel():
        return None
    start = tensor.data_ptr()
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return Place(str(tensor.device), start, start + (last + 1) * tensor.element_size()) if start else None


def find_shared(first: nn.Module, second: nn.Module) -> Shared:
    """Which parameters and buffers of one network overlap any of another."""
    taken = _join(place for _, tensor in _tensors(second) if (place := find_place(tensor)))
    statistics = {name for name, _ in first.named_buffers() if name.rpartition(".")[-1].startswith(STATISTICS)}
    weights = {name for name, _ in first.named_parameters()} | statistics
    shared = [name for name, tensor in _tensors(first) if (place := find_place(tensor)) and _meets(place, taken)]
    return Shared([name for name in shared if name in weights], [name for name in shared if name not in weights])


def _tensors(network: nn.Module) -> list[tuple[str, Tensor]]:
    return [*network.named_parameters(), *network.named_buffers()]


def _join(places: Iterable[Place]) -> list[Place]:
    """The places in order, those that overlap joined to one."""
    joined: list[Place] = []
    for place in sorted(places):
        if joined and joined[-1].device == place.device and place.start < joined[-1].end:
            joined[-1] = joined[-1]._replace(end=max(joined[-1].end, place.end))
        else:
            joined.append(place)
    return joined


def _meets(place: Place, joined: list[Place]) -> bool:
    """Whether the place overlaps one of these, which are in order and apart: the last that begins before its end."""
    before = bisect_left(joined, Place(place.device, place.end, 0))
    return before > 0 and joined[before - 1].device == place.device and joined[before - 1].end > place.start
