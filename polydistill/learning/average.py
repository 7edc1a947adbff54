"""The mean of a network's weights over its last updates, which is better than each of them while the rate is high.

Symbols: w_k the weights after update k, m_k their mean, s the share of the updates that it reaches over, d a decay:

    WeightAverage:   m_k = m_{k-1} + min(1, 1 / (s k)) (w_k - m_{k-1})
    MovingAverage:   m_k = d_k m_{k-1} + (1 - d_k) w_k,   d_k = min(d, k / (k + 9))

The first reaches over about the last s k updates, however many there will be (Polyak and Juditsky 1992, with the
weights of older updates falling as a power of their age instead of being equal). The second is the usual exponential
mean, over about the last 1 / (1 - d) updates; its decay begins low, so that the initial weights are soon forgotten
(TensorFlow's ExponentialMovingAverage has the same form).

Contract: the network holds one of the two sets of weights, and the other lies aside; nothing waits for the device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from polydistill.learning.sharded import as_pieces


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


class MovingAverage:
    """The exponential mean of a network's weights and running statistics, beside those that learn.

    Integer and boolean buffers are taken as they are. The mean of no update is the network as it is.

    Args:
        network: any, on its device.
        decay: d, in (0, 1).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network, self.decay, self.updates = network, decay, 0
        self._mean = [tensor.detach().clone() for tensor in self._tensors()]

    @torch.no_grad()
    def add(self) -> None:
        """Take in what the network has learned by one more update."""
        self.updates += 1
        rate = 1.0 - min(self.decay, self.updates / (self.updates + 9))
        for mean, tensor in zip(self._mean, self._tensors(), strict=True):
            if mean.dtype.is_floating_point:
                mean.lerp_(tensor, rate)
            else:
                mean.copy_(tensor)

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """The network has the mean while the context lasts, then what learns again."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def keep(self) -> None:
        """Give the network the mean, for good."""
        for mean, tensor in zip(self._mean, self._tensors(), strict=True):
            tensor.copy_(mean)

    def buffers(self) -> list[Tensor]:
        """The means of the network's buffers; not copies."""
        return self._mean[len(list(self.network.parameters())) :]

    def state(self) -> dict[str, Any]:
        """Copies."""
        return {"updates": self.updates, "mean": [mean.clone() for mean in self._mean]}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`."""
        self.updates = int(state["updates"])
        for mean, saved in zip(self._mean, state["mean"], strict=True):
            mean.copy_(as_pieces(saved, mean))

    def _tensors(self) -> list[Tensor]:
        return [*self.network.parameters(), *self.network.buffers()]

    @torch.no_grad()
    def _exchange(self) -> None:
        for mean, tensor in zip(self._mean, self._tensors(), strict=True):
            aside = tensor.detach().clone()
            tensor.copy_(mean)  # by value: a sharded network keeps its memory
            mean.copy_(aside)
