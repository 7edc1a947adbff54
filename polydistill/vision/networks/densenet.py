"""DenseNet-BC (Huang et al. 2017, arXiv 1608.06993): dense blocks with bottlenecks and compression.

And the DenseNets of other depth and compression in table 4 of the born-again paper (Furlanello et al. 2018), whose
hidden states are as large as their teacher's.

The paper keeps "the size of the hidden states constant" and lets the growth follow. It does not say what a factor of
compression multiplies. Ours multiplies the share of channels that a transition takes away: of the readings tried it is
the one with the paper's order of sizes, 6.1M, 9.6M and 75.6M for 5.1M, 10.1M and 80.5M. For the factors of depth ours
have 21.3M, 13.7M, 13.0M and 12.6M parameters for 21.2M, 13.7M, 12.9M and 12.6M.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polydistill.vision.networks.dense_stages import compress, deepen, plan_stages
from polydistill.vision.networks.initial import initialize
from polydistill.vision.networks.staged import StagedNetwork

BOTTLENECK = 4  # the 1 x 1 convolution gives 4k channels


class DenseLayer(nn.Module):
    """Adds ``growth`` channels to its input: batch norm, ReLU, 1 x 1, batch norm, ReLU, 3 x 3."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, BOTTLENECK * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(BOTTLENECK * growth)
        self.conv2 = nn.Conv2d(BOTTLENECK * growth, growth, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        narrow = self.conv1(F.relu(self.norm1(x), inplace=True))
        return torch.cat([x, self.conv2(F.relu(self.norm2(narrow), inplace=True))], dim=1)


class Transition(nn.Module):
    """Other channels; between two stages half the height and width, too."""

    def __init__(self, inputs: int, outputs: int, *, halve: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.halve = halve

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.relu(self.norm(x), inplace=True))
        return F.avg_pool2d(x, 2) if self.halve else x


class DenseNet(StagedNetwork):
    """DenseNet-BC-depth-growth.

    Args:
        depth: 6n + 4, or one of the paper's four.
        growth: k, channels that each layer adds.
        classes: number of logits.
        depth_factor: layers of each stage, in those of that network, with the same hidden states.
        compression_factor: what transitions take away, in what that network's take, with the same hidden states.

    Raises:
        ValueError: there is no such network.
    """

    def __init__(
        self, depth: int, growth: int, classes: int, *, depth_factor: float = 1.0, compression_factor: float = 1.0
    ) -> None:
        super().__init__()
        stages = compress(deepen(plan_stages(depth, growth), depth_factor), compression_factor)
        self.stem = nn.Conv2d(3, stages[0].inputs, 3, 1, 1, bias=False)
        parts: list[nn.Module] = []
        ends = []
        for stage in stages:
            channels = stage.inputs
            for growth_of_layer in stage.growths():
                parts.append(DenseLayer(channels, growth_of_layer))
                channels += growth_of_layer
            if stage.outputs is not None:
                parts.append(Transition(channels, stage.outputs, halve=stage is not stages[-1]))
            ends.append(len(parts))
        self.parts, self.stage_ends = nn.Sequential(*parts), tuple(ends)
        self.norm = nn.BatchNorm2d(stages[-1].hidden)
        self.head = nn.Linear(stages[-1].hidden, classes)
        initialize(self)

    @property
    def body(self) -> nn.Sequential:
        """The layers, and the transitions between them."""
        return self.parts
