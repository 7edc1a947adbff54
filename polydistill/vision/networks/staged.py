"""What all networks here have in common: a first layer, stages of blocks, a last layer.

Contract: a layer is found by its role, never by its name. :attr:`StagedNetwork.stem` is the first layer and
:attr:`StagedNetwork.head` the last; the hidden states are what each stage gives.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polydistill.learning.networks import Seen


class Renormalizer(nn.Module):
    """Takes pixels that are normalised in one way to the same pixels, normalised in another: ``x * scale + shift``.

    Args:
        scale: of each channel.
        shift: of each channel.
    """

    def __init__(self, scale: Sequence[float], shift: Sequence[float]) -> None:
        super().__init__()
        self._said = f"scale={list(scale)}, shift={list(shift)}"
        for name, values in (("scale", scale), ("shift", shift)):  # no part of the state: the weights are the same
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return torch.addcmul(self.shift, images, self.scale)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        """What tells it from another."""
        return self._said


class StagedNetwork(nn.Module, ABC):
    """First layer, stages, batch norm, ReLU, mean over the image, last layer.

    Attributes:
        renormalizer: of the images, for a network that was trained on pixels normalised in another way than those that
            it is given; None: they are as they were.
        stem: the first layer, a convolution of the image.
        norm: batch norm before the mean.
        head: the last layer, which gives the logits.
        stage_ends: number of blocks up to the end of each stage, rising; the last is the number of all blocks.
    """

    stem: nn.Conv2d
    norm: nn.BatchNorm2d
    head: nn.Linear
    stage_ends: Sequence[int]

    def __init__(self) -> None:
        super().__init__()
        self.renormalizer: Renormalizer | None = None

    @property
    @abstractmethod
    def body(self) -> nn.Sequential:
        """The blocks of all stages."""

    def begin(self, images: Tensor) -> Tensor:
        """What the first block sees."""
        return self.stem(images)  # type: ignore[no-any-return]

    def finish(self, x: Tensor) -> Tensor:
        """The logits for what the last block gives."""
        x = F.relu(self.norm(x), inplace=True)
        return self.head(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> Tensor:
        """``(batch, 3, height, width)`` normalised floats to ``(batch, classes)`` logits."""
        return self.finish(self.body(self.begin(self._renormalize(images))))

    def see(self, images: Tensor) -> Seen:
        """The same logits, and the hidden state at the end of each stage, ``(batch, channels, height, width)``."""
        x, states = self.begin(self._renormalize(images)), []
        for number, block in enumerate(self.body, start=1):
            x = block(x)
            if number in self.stage_ends:
                states.append(x)
        return Seen(self.finish(x), states)

    def _renormalize(self, images: Tensor) -> Tensor:
        return images if self.renormalizer is None else self.renormalizer(images)
