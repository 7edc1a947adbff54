"""Scores to test losses with."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from polydistill.losses import OBJECTIVES, draw_permutation


class Batch(NamedTuple):
    """Student scores, teacher scores and labels of one batch."""

    student: Tensor
    teacher: Tensor
    labels: Tensor

    def options(self, name: str, options: dict[str, object] | None = None) -> dict[str, object]:
        """``options`` with the permutation that objective ``name`` may need."""
        if not OBJECTIVES[name].needs_permutation:
            return dict(options or {})
        generator = torch.Generator().manual_seed(3)
        permutation = draw_permutation(*self.student.shape, generator=generator)
        return {"permutation": permutation, **(options or {})}


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., Batch]:
    """A batch of normal scores; the student's require a gradient."""

    def make(
        n_samples: int = 5, n_classes: int = 7, *, scale: float = 2.0, dtype: torch.dtype = torch.float64, seed: int = 0
    ) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        scores = torch.randn((2, n_samples, n_classes), generator=generator, dtype=torch.float64) * scale
        labels = torch.randint(n_classes, (n_samples,), generator=generator)
        return Batch(scores[0].to(dtype).requires_grad_(), scores[1].to(dtype), labels)

    return make
