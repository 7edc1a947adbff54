"""The batches of one's own data, epoch by epoch, each the same whenever it begins again.

Contract: what an epoch gives follows from (seed, epoch), as far as the source draws from torch's, numpy's or Python's
global generators, or from one that its loader holds; not from what is drawn between its batches: a student with dropout
gets them in the same order as one without. So an epoch that was left in the middle is gone through again up to there.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.random.mtrand import get_bit_generator, set_bit_generator
from torch.utils.data import DataLoader, IterableDataset

from polydistill.streams import derive_seed

END = object()


class Feed:
    """What ``source`` holds, drawn from streams of its own.

    torch's generator of the CPU and numpy's go on between two batches as if nobody else had drawn. To exchange Python's
    too would take twenty times as long: it is seeded before each batch for the source, and after it for all others.

    Args:
        source: iterated once per epoch.
        seed: of its streams.
    """

    def __init__(self, source: Iterable[Any], seed: int) -> None:
        self.source, self.seed, self._next = source, seed, 0

    def __iter__(self) -> Iterator[Any]:
        return self.epoch(self._next)

    def epoch(self, number: int) -> Iterator[Any]:
        """The batches of an epoch, counted from 0; a sampler with ``set_epoch``, as ``DistributedSampler``, is told."""
        self._next = number + 1
        for sampler in samplers_of(self.source):
            if callable(told := getattr(sampler, "set_epoch", None)):
                told(number)
        for place, generator in enumerate(generators_of(self.source)):
            generator.manual_seed(derive_seed(self.seed, f"held by the source, {place}", number))
        streams = _Streams(self.seed, number)
        with streams:
            batches = iter(self.source)
        while True:
            with streams:
                batch = next(batches, END)
            if batch is END:
                return
            yield batch


class _Streams:
    """Within the context the global generators are other ones; torch's and numpy's go on where they were left."""

    def __init__(self, root: int, epoch: int) -> None:
        seed = derive_seed(root, "batches", epoch)
        self._python, self._entered = derive_seed(seed, "python"), 0
        self._torch = torch.Generator().manual_seed(seed).get_state()
        self._numpy = np.random.MT19937(derive_seed(seed, "numpy"))

    def __enter__(self) -> None:
        self._others, self._legacy = torch.default_generator.get_state(), get_bit_generator()
        torch.default_generator.set_state(self._torch)
        set_bit_generator(self._numpy)
        self._entered += 1
        random.seed(self._python + (2 * self._entered << 64))

    def __exit__(self, *error: object) -> None:
        self._torch = torch.default_generator.get_state()
        torch.default_generator.set_state(self._others)
        set_bit_generator(self._legacy)
        random.seed(self._python + (2 * self._entered + 1 << 64))


def doubt(source: Iterable[Any]) -> str | None:
    """Why an epoch of ``source`` may not be the same a second time, in a few words; None: there is no reason."""
    if isinstance(source, Sequence):
        return None
    if not isinstance(source, DataLoader):
        return f"`batches` is a {type(source).__name__}, of which it is not known whether it repeats itself"
    if isinstance(source.dataset, IterableDataset):
        return "`batches` loads an iterable data set, of which it is not known whether it repeats itself"
    if source.num_workers and source.persistent_workers:
        return "the workers of `batches` persist, and what they draw goes on from epoch to epoch"
    return None


def promised(source: Iterable[Any], given: int) -> int | None:
    """How many batches an epoch of ``source`` must have, where it gave fewer, only ``given``; None: it did not, or does
    not know."""
    there = count_batches(source)
    return there if there is not None and given < there else None


def count_batches(source: Iterable[Any]) -> int | None:
    """Of an epoch; None where that is not known for certain."""
    try:
        there = len(source)  # type: ignore[arg-type]
    except TypeError:  # an iterable data set has no length
        return None
    return None if isinstance(source, DataLoader) and doubt(source) else there


def generators_of(source: object) -> list[torch.Generator]:
    """Those of a loader, its samplers and its data set, each once."""
    holders = [source, *samplers_of(source), getattr(source, "dataset", None)]
    found = [getattr(holder, "generator", None) for holder in holders]
    return list({id(held): held for held in found if isinstance(held, torch.Generator)}.values())


def dismiss_workers(source: object) -> None:
    """Let workers that persist end: they would keep what they drew before."""
    if isinstance(source, DataLoader) and source.persistent_workers:
        source._iterator = None


def samplers_of(source: object) -> list[object]:
    """The samplers of a loader, each once."""
    batch_sampler = getattr(source, "batch_sampler", None)
    found = [getattr(source, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)]
    return list({id(sampler): sampler for sampler in found if sampler is not None}.values())
