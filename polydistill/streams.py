"""Random streams: every use of randomness has its own generator, derived from (seed, name, generation).

So a new draw in one place changes nothing in another, and no global generator is used or reseeded.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch


def derive_seed(seed: int, name: str, generation: int = 0) -> int:
    """A 63-bit seed for the stream ``name`` of ``generation``; equal arguments give equal seeds."""
    sequence = np.random.SeedSequence([seed, zlib.crc32(name.encode()), generation])
    return int(sequence.generate_state(1, np.uint64)[0]) >> 1


def repeated_seed(seed: int, repeat: int) -> int:
    """Root of the streams of a student: the seed, or another one for each number above 0.

    Args:
        seed: of the run.
        repeat: number of the student among those of one teacher.
    """
    return derive_seed(seed, "repeated student", repeat) if repeat else seed


def numpy_stream(seed: int, name: str, generation: int = 0) -> np.random.Generator:
    """The numpy generator of that stream."""
    return np.random.default_rng(derive_seed(seed, name, generation))


def torch_stream(seed: int, name: str, generation: int = 0) -> torch.Generator:
    """The torch generator (on the CPU) of that stream."""
    return torch.Generator().manual_seed(derive_seed(seed, name, generation))
