"""Global generators for code that is not ours: a model's initial weights and dropout, a loader's shuffling.

Our own code draws from streams of its own, see :mod:`polydistill.streams`; modules and loaders draw from the global
generators of torch, numpy and Python. Contract: while :func:`seeded` lasts these follow from its seed alone, and
afterwards they are as if nothing had been drawn.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from polydistill.modules.feed import Feed, dismiss_workers, generators_of
from polydistill.streams import derive_seed


@contextlib.contextmanager
def seeded(seed: int, source: Iterable[Any] = ()) -> Iterator[Feed]:
    """Seed the global generators, of the GPUs too, while the context lasts.

    Args:
        seed: of torch's generators, not negative; those of the others derive from it.
        source: perhaps a ``DataLoader``: its ``generator`` and those of its sampler and data set are as before
            afterwards too, and workers that persist are started again.

    Returns:
        ``source``, which draws from streams of its own.
    """
    held = generators_of(source)
    states = [generator.get_state() for generator in held]
    python, legacy = random.getstate(), np.random.get_state()
    dismiss_workers(source)
    try:
        with _torch_seeded(seed):
            seed_globals(seed)
            yield Feed(source, seed)
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
        for generator, state in zip(held, states, strict=True):
            generator.set_state(state)
        dismiss_workers(source)


def seed_globals(seed: int) -> None:
    """Seed the global generators, within :func:`seeded`."""
    torch.manual_seed(seed)
    random.seed(derive_seed(seed, "python"))
    np.random.seed(derive_seed(seed, "numpy") % 2**32)


def global_streams(device: torch.device) -> dict[str, Any]:
    """Where torch's and numpy's global generators are, and that of ``device`` if it is a GPU: tensors, plain values.

    (Python's is seeded for each batch, see :class:`~polydistill.modules.feed.Feed`.)
    """
    _, key, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": [np.asarray(key).tolist(), int(position), int(has_gauss), float(cached)],
    }


def set_global_streams(streams: Mapping[str, Any], device: torch.device) -> None:
    """Put the global generators where :func:`global_streams` found them."""
    torch.set_rng_state(streams["torch"])
    if streams["device"] is not None:
        torch.cuda.set_rng_state(streams["device"], device)
    key, position, has_gauss, cached = streams["numpy"]
    np.random.set_state(("MT19937", np.array(key, dtype=np.uint32), position, has_gauss, cached))


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
