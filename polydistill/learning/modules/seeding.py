"""Global generators for code that is not ours: a model's initial weights and dropout, a loader's shuffling.

Our own code draws from streams of its own, see :mod:`polydistill.streams`; modules and loaders draw from the global
generators of torch, numpy and Python. Contract: while :func:`seeded` lasts these follow from its seed alone, and
afterwards they are as if nothing had been drawn.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch

from polydistill.streams import derive_seed


@contextlib.contextmanager
def seeded(seed: int, source: object = None) -> Iterator[None]:
    """Seed the global generators, of the GPUs too, and those that ``source`` holds, while the context lasts.

    Args:
        seed: of torch's generators, not negative; those of the others derive from it.
        source: perhaps a ``DataLoader``: its ``generator`` and those of its sampler and data set are seeded too, and
            workers that persist are started again, since they would keep what they drew before.
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
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
        for generator, state in zip(held, states, strict=True):
            generator.set_state(state)
        _dismiss_workers(source)


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
    batch_sampler = getattr(source, "batch_sampler", None)
    holders = [source, getattr(source, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)]
    holders.append(getattr(source, "dataset", None))
    found = [getattr(holder, "generator", None) for holder in holders]
    return list({id(held): held for held in found if isinstance(held, torch.Generator)}.values())


def _dismiss_workers(source: object) -> None:
    if isinstance(source, torch.utils.data.DataLoader) and source.persistent_workers:
        source._iterator = None
