"""A divergence of scores in which each side is divided by its own temperature.

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
    """The temperature of each side."""

    student: float
    teacher: float

    @property
    def square(self) -> float:
        """The temperature whose square is the factor of such a term: T where both sides have it, else 1."""
        return self.student if self.student == self.teacher else 1.0

    def of(self, divergence: Divergence) -> Function:
        """The divergence of scores divided by these temperatures."""

        def term(z: Tensor, t: Tensor, y: Tensor) -> Tensor:
            return divergence(z / self.student, t / self.teacher)

        return term


def kl(z: Tensor, t: Tensor) -> Tensor:
    """KL(teacher || student), summed."""
    return F.kl_div(z.log_softmax(-1), t.log_softmax(-1), reduction="sum", log_target=True)
