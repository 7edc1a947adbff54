"""Global generators for code that is not ours: a model's initial weights and dropout, a loader's shuffling.

Our own code draws from streams of its own, see :mod:`polydistill.streams`; modules and loaders draw from the global
generators of torch, numpy and Python. Contract: while :func:`seeded` lasts these follow from its seed alone, and
afterwards they are as if nothing had been drawn. What a source of batches draws does not depend on what is drawn
between its batches: a student with dropout gets them in the same order as one without.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.random.mtrand import get_bit_generator, set_bit_generator

from polydistill.streams import derive_seed


@contextlib.contextmanager
def seeded(seed: int, source: Iterable[Any] = ()) -> Iterator[Iterable[Any]]:
    """Seed the global generators, of the GPUs too, and those that ``source`` holds, while the context lasts.

    Args:
        seed: of torch's generators, not negative; those of the others derive from it.
        source: perhaps a ``DataLoader``: its ``generator`` and those of its sampler and data set are seeded too, and
            workers that persist are started again, since they would keep what they drew before.

    Returns:
        ``source``, which draws from a stream of its own; see :class:`_Apart`.
    """
    held = _generators_of(source)
    states = [generator.get_state() for generator in held]
    python, legacy = random.getstate(), np.random.get_state()
    _dismiss_workers(source)
    try:
        with _torch_seeded(seed):
            random.seed(derive_seed(seed, "python"))
            np.random.seed(derive_seed(seed, "numpy") % 2**32)
            for number, generator in enumerate(held):
                generator.manual_seed(derive_seed(seed, "held by the source", number))
            yield _Apart(source, derive_seed(seed, "batches"))
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
        for generator, state in zip(held, states, strict=True):
            generator.set_state(state)
        _dismiss_workers(source)


class _Apart:
    """What ``source`` holds, drawn from global generators that go on between its batches as if nobody else had drawn:
    torch's of the CPU and numpy's. (To exchange Python's takes twenty times as long as these two: it is not.)

    A sampler with ``set_epoch``, as ``DistributedSampler``, is told how often ``source`` has been iterated before.
    """

    def __init__(self, source: Iterable[Any], seed: int) -> None:
        self._source, self._epoch = source, 0
        self._torch = torch.Generator().manual_seed(seed).get_state()
        self._numpy = np.random.MT19937(derive_seed(seed, "numpy"))

    def __iter__(self) -> Iterator[Any]:
        for sampler in _samplers_of(self._source):
            if callable(told := getattr(sampler, "set_epoch", None)):
                told(self._epoch)
        self._epoch += 1
        with self._drawing():
            batches = iter(self._source)
        nothing = object()
        while True:
            with self._drawing():
                batch = next(batches, nothing)
            if batch is nothing:
                return
            yield batch

    @contextlib.contextmanager
    def _drawing(self) -> Iterator[None]:
        theirs, legacy = torch.default_generator.get_state(), get_bit_generator()
        torch.default_generator.set_state(self._torch)
        set_bit_generator(self._numpy)
        try:
            yield
        finally:
            self._torch = torch.default_generator.get_state()
            torch.default_generator.set_state(theirs)
            set_bit_generator(legacy)


@contextlib.contextmanager
def _torch_seeded(seed: int) -> Iterator[None]:
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    gpus = list(range(torch.cuda.device_count())) if in_use else []
    try:
        with torch.random.fork_rng(devices=gpus):
            torch.manual_seed(seed)
            yield
    finally:
        if not in_use:  # what torch.manual_seed leaves a GPU that is used for the first time, here or later
            torch.cuda.manual_seed_all(torch.initial_seed())


def _generators_of(source: object) -> list[torch.Generator]:
    """Those of a loader, its samplers and its data set, each once."""
    holders = [source, *_samplers_of(source), getattr(source, "dataset", None)]
    found = [getattr(holder, "generator", None) for holder in holders]
    return list({id(held): held for held in found if isinstance(held, torch.Generator)}.values())


def _samplers_of(source: object) -> list[object]:
    """Of a loader: each once."""
    batch_sampler = getattr(source, "batch_sampler", None)
    found = [getattr(source, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)]
    return list({id(sampler): sampler for sampler in found if sampler is not None}.values())


def _dismiss_workers(source: object) -> None:
    if isinstance(source, torch.utils.data.DataLoader) and source.persistent_workers:
        source._iterator = None
