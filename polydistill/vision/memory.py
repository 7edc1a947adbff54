"""When a GPU's memory is not enough: how large a batch would have fitted."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from polydistill.errors import UserError

if TYPE_CHECKING:
    from polydistill.vision.domain import CifarDomain
    from polydistill.vision.lesson import Lesson

STEP = 8  # batches are tried in multiples of this


def find_largest_batch(fits: Callable[[int], bool], too_large: int) -> int:
    """The largest multiple of 8 below ``too_large`` for which ``fits`` is true; 0 if none is.

    Args:
        fits: whether a batch of that size can be trained on; a smaller one fits where a larger one does.
        too_large: a size that does not fit.

    Example:
        >>> find_largest_batch(lambda size: size <= 100, 1024)
        96
    """
    low, high = 0, -(-too_large // STEP)
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle * STEP):
            low = middle
        else:
            high = middle
    return low * STEP


def explain_out_of_memory(domain: CifarDomain, architecture: str, lesson: Lesson, generation: int) -> UserError:
    """The one line for a batch that does not fit, with the largest one that does, found by trying.

    With several processes nothing is tried: the others wait in the middle of a step.
    """
    batch = domain.config.training.batch_size
    text = f"out of memory on {domain.device} with training.batch_size {batch:,} for {architecture}"
    if domain.processes.size > 1:
        return UserError(f"{text}; give it a smaller one")

    def fits(size: int) -> bool:
        gc.collect()
        if domain.device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            domain.try_batch(architecture, lesson, generation, size)
        except torch.OutOfMemoryError:
            return False
        return True

    largest = find_largest_batch(fits, batch)
    return UserError(f"{text}; " + (f"the largest that fits is {largest:,}" if largest else "not even 8 images fit"))
