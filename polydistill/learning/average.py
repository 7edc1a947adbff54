"""The mean of a network's weights over its last updates, which is better than each of them while the rate is high.

Symbols: w_k the weights after update k, m_k their mean, s the share of the updates that it reaches back over:

    m_k = m_{k-1} + min(1, 1 / (s k)) (w_k - m_{k-1})

so that the mean reaches over about the last s k updates, however many there will be (Polyak and Juditsky 1992, with
the weights of older updates falling as a power of their age instead of being equal).

Contract: the network holds one of the two sets of weights, and the other lies aside; nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """A mean of the weights of ``network`` beside those that learn.

    Args:
        network: its parameters; it has no other state that learns.
        share: s, of the updates so far; above 0, at most 1.

    Attributes:
        updates: k, that the mean is of.
    """

    def __init__(self, network: nn.Module, share: float) -> None:
        self.network, self.share, self.updates = network, share, 0
        self._aside: list[Tensor] = []
        self._versions: list[tuple[int, int]] = []

    @torch.no_grad()
    def add(self) -> None:
        """Take what the network has learned by one more update into the mean, which lies aside."""
        weights: list[Tensor] = list(self.network.parameters())
        self.updates += 1
        if not self._aside:
            self._aside = [weight.clone() for weight in weights]
        torch._foreach_lerp_(self._aside, weights, min(1.0, 1 / (self.share * self.updates)))

    @torch.no_grad()
    def show(self) -> None:
        """Put the mean into the network, and what learns aside; of one update at least."""
        self._exchange()
        self._versions = self._weight_versions()

    @torch.no_grad()
    def hide(self) -> None:
        """Put what learns into the network again. If others have set its weights, these learn, and nothing is kept."""
        if self._aside and self._weight_versions() == self._versions:
            self._exchange()
        else:
            self._aside, self.updates = [], 0

    def state(self) -> dict[str, Any]:
        """What is aside, and of how many updates; not a copy."""
        return {"updates": self.updates, "aside": self._aside}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`, once the network has the weights that it had then."""
        self.updates = state["updates"]
        weights = self.network.parameters()
        self._aside = [aside.to(like.device, copy=True) for aside, like in zip(state["aside"], weights, strict=False)]
        self._versions = self._weight_versions()

    def _exchange(self) -> None:
        for number, weight in enumerate(self.network.parameters()):  # they change places: nothing is copied
            weight.data, self._aside[number] = self._aside[number], weight.data

    def _weight_versions(self) -> list[tuple[int, int]]:
        return [(id(weight), weight._version) for weight in self.network.parameters()]
