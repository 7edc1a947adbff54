"""What all networks here have in common: a first layer, stages of blocks, a last layer.

Contract: a layer is found by its role, never by its name. :attr:`StagedNetwork.stem` is the first layer and
:attr:`StagedNetwork.head` the last; the hidden states are what each stage gives.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from polydistill.learning.networks import Seen


class StagedNetwork(nn.Module, ABC):
    """First layer, stages, batch norm, ReLU, mean over the image, last layer.

    Attributes:
        stem: the first layer, a convolution of the image.
        norm: batch norm before the mean.
        head: the last layer, which gives the logits.
        stage_ends: number of blocks up to the end of each stage, rising; the last is the number of all blocks.
    """

    stem: nn.Conv2d
    norm: nn.BatchNorm2d
    head: nn.Linear
    stage_ends: Sequence[int]

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
        return self.finish(self.body(self.begin(images)))

    def see(self, images: Tensor) -> Seen:
        """The same logits, and the hidden state at the end of each stage, ``(batch, channels, height, width)``."""
        x, states = self.begin(images), []
        for number, block in enumerate(self.body, start=1):
            x = block(x)
            if number in self.stage_ends:
                states.append(x)
        return Seen(self.finish(x), states)
