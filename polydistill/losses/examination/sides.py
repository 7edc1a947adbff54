"""A divergence of scores of which each side is divided by a temperature of its own.

Symbols: z student scores, t teacher scores, ``(R, C)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from polydistill.losses.examination.forms import Function

Divergence = Callable[[Tensor, Tensor], Tensor]  # of the scores of both sides, tempered


class Sides(NamedTuple):
    """By what the scores of each side are divided."""

    student: float
    teacher: float

    @property
    def square(self) -> float:
        """The temperature whose square is the factor of such a term: T where both sides have it, else 1."""
        return self.student if self.student == self.teacher else 1.0

    def of(self, divergence: Divergence) -> Function:
        """The divergence of scores that are divided so."""

        def term(z: Tensor, t: Tensor, y: Tensor) -> Tensor:
            return divergence(z / self.student, t / self.teacher)

        return term


def kl(z: Tensor, t: Tensor) -> Tensor:
    """KL(teacher || student), summed."""
    return F.kl_div(z.log_softmax(-1), t.log_softmax(-1), reduction="sum", log_target=True)
