r"""Outputs on a fixed scale: a student of Q-values learns as if they had mean 0 and deviation 1.

The Q-values of one environment are near 0, those of another near 100, and a network that begins near 0 needs thousands
of updates to come there. So the last layer's outputs h become Q-values by a fixed map,

.. math:: s_a = c + \sigma h_a

with c and sigma the mean and the deviation of the teacher's Q-values over the first states of play. It is part of the
network while it learns, and is folded into the last layer when it is saved: a stock network computes the same.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

CONSTANT = 1e-6  # a deviation below, as a share of the mean, is none: the outputs keep their scale


class QScale(nn.Linear):
    """A last layer whose outputs are on the scale above; at first on that of a plain one.

    Args:
        layer: whose weights learn: the same parameters, not copies.
    """

    shift: Tensor  # c
    scale: Tensor  # sigma
    is_fitted: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        device = layer.weight.device
        self.register_buffer("shift", torch.zeros((), device=device))
        self.register_buffer("scale", torch.ones((), device=device))
        self.register_buffer("is_fitted", torch.zeros((), dtype=torch.bool, device=device))

    def forward(self, features: Tensor) -> Tensor:
        """``(batch, units)`` to Q-values ``(batch, actions)``."""
        return torch.addcmul(self.shift, super().forward(features), self.scale)

    @torch.no_grad()
    def fit(self, q_values: Tensor) -> None:
        """Take the scale of a teacher's Q-values, of any shape; -inf, for what is masked, does not count. The weights
        stay, and give others.
        """
        deviation, mean = torch.std_mean(q_values[~q_values.isneginf()].double(), correction=0)
        self.shift.copy_(mean)
        self.scale.copy_(torch.where(deviation > CONSTANT * mean.abs(), deviation, 1.0))
        self.is_fitted.fill_(True)

    @torch.no_grad()
    def load(self, plain: nn.Linear) -> None:
        """Take the function of a plain layer, on the scale that there is."""
        self.weight.copy_(plain.weight.double() / self.scale.double())
        self.bias.copy_((plain.bias.double() - self.shift.double()) / self.scale.double())

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        """A plain layer of the same function."""
        plain = nn.Linear(self.in_features, self.out_features, device="meta").to_empty(device=self.weight.device)
        plain.weight.copy_(self.weight.double() * self.scale.double())
        plain.bias.copy_(self.bias.double() * self.scale.double() + self.shift.double())
        return plain


def find_q_scale(network: nn.Module) -> QScale | None:
    """The last layer of a Q-network whose outputs are on a scale; None of any other."""
    last = cast(Any, network).q_net[-1]
    return last if isinstance(last, QScale) else None


def put_on_scale(layers: nn.Sequential) -> None:
    """Put a scale behind the last of some layers; its parameters stay the same, and so does its function."""
    layers[-1] = QScale(cast(nn.Linear, layers[-1]))
