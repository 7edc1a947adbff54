"""Plain formulas on large batches, a block of rows after the other, so that what they make stays in the cache.

Contract: the values and gradients of the formula on the whole batch, since no row looks at another one; a last bit may
differ, since torch rounds the ends of an array differently.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat

import torch
from torch import Tensor

# scores of a side: four megabytes in float32. Smaller blocks of a million scores cost more in operations than they save
# in the cache, unless new pages must be fetched; of more scores a quarter of it is as good
BLOCK = 2**20


def by_rows(
    formula: Callable[..., Tensor],
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None,
    mask: Tensor | None,
    *options: float,
) -> Tensor:
    """``formula(student, teacher, labels, mask, *options)``, in blocks where that pays: on a CPU, for many scores.

    A compiler joins the operations by itself, and a GPU has no cache to speak of: there it is one block.

    Args:
        formula: a loss per row, in which no row looks at another one.
        student: ``(..., batch, classes)``.
        teacher: the same, or with a dimension of members before the others.
        labels: ``(..., batch)``, or None.
        mask: ``(classes,)``, or as ``student``, or None.
        options: of the formula.

    Returns:
        ``(..., batch)``.
    """
    if student.numel() <= BLOCK or student.device.type != "cpu" or torch.compiler.is_compiling():
        return formula(student, teacher, labels, mask, *options)
    split: Callable[..., tuple[Tensor, ...]] = Tensor.split  # torch leaves its type open
    n_rows = max(1, BLOCK * student.shape[-2] // student.numel())
    parts = zip(
        split(student, n_rows, -2),
        split(teacher, n_rows, -2),
        repeat(None) if labels is None else split(labels, n_rows, -1),
        repeat(mask) if mask is None or mask.dim() == 1 else split(mask, n_rows, -2),
        strict=False,  # what is repeated has no end
    )
    return torch.cat([formula(*part, *options) for part in parts], dim=-1)
