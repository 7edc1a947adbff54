"""Plain formulas on large batches, one block of rows after another, so that intermediate values stay in the cache.

Contract: values and gradients are those of the formula on the whole batch, since no row depends on another; the last
bit may differ, since torch rounds the ends of an array differently.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from itertools import repeat

import torch
from torch import Tensor

# scores of a side in one block: four megabytes in float32. Of a million scores, smaller blocks cost more in operations
# than they save in the cache, unless new pages must be fetched; of more scores, blocks of a quarter are as fast
BLOCK = 2**20


def by_rows(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A formula that computes in blocks where that pays: on a CPU, for many scores.

    ``torch.compile`` fuses the operations itself, and a GPU gains nothing from blocks: there it is one block.

    Args:
        formula: a loss per row, ``(..., batch)``, in which no row depends on another. It takes the student's scores,
            then other tensors by position, and options by keyword.
    """

    @functools.wraps(formula)
    def in_blocks(student: Tensor, *others: Tensor, **options: float) -> Tensor:
        if student.numel() <= BLOCK or student.device.type != "cpu" or torch.compiler.is_compiling():
            return formula(student, *others, **options)
        n_rows = max(1, BLOCK * student.shape[-2] // student.numel())
        return torch.cat([formula(*block, **options) for block in cut(n_rows, student, *others)], dim=-1)

    return in_blocks


def cut(n_rows: int, student: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Blocks of at most ``n_rows`` rows; a mask ``(classes,)`` is that of each block."""

    def parts(tensor: Tensor) -> Iterable[Tensor]:
        if tensor.dim() < student.dim() and tensor.dtype is torch.bool:
            return repeat(tensor)
        of_scores = tensor.dim() >= student.dim()  # those of an ensemble have one dimension more
        split: Callable[..., tuple[Tensor, ...]] = Tensor.split  # torch leaves its type open
        return split(tensor, n_rows, -2 if of_scores else -1)

    return zip(parts(student), *map(parts, others), strict=False)  # what is repeated has no end
