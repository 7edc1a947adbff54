"""DenseNet-BC (Huang et al. 2017, arXiv 1608.06993): dense blocks with bottlenecks, compression 0.5.

The born-again paper names four by depth and growth rate and gives their sizes, but 90 and 80 are no depths of a
DenseNet-BC (6n + 4), and no plain reading gives its four counts of parameters. :data:`PAPER_LAYERS` holds the layers
per block (equal, or with one block shorter by one) that come nearest with 10 outputs among networks that begin with 2k
channels, as DenseNet-BC does. With 24 channels at the beginning, three equal blocks of 15, 13 and 13 layers come nearer
for the last three networks (16.04M, 22.49M and 50.33M).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polydistill.vision.networks.initial import initialize, layers_per_stage

BOTTLENECK = 4  # the 1 x 1 convolution gives 4k channels
COMPRESSION = 0.5

# (depth, growth): layers in each block          # ours with 10 outputs   the paper's
PAPER_LAYERS: dict[tuple[int, int], tuple[int, int, int]] = {
    (112, 33): (17, 17, 17),  # 6.27M                  6.3M
    (90, 60): (15, 14, 15),  # 16.17M                 16.1M
    (80, 80): (13, 12, 13),  # 22.72M                 22.4M
    (80, 120): (13, 12, 13),  # 51.02M                 50.4M
}


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
    """Halves channels, height and width between two dense blocks."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.norm(x), inplace=True)), 2)


class DenseNet(nn.Module):
    """DenseNet-BC-depth-growth.

    Args:
        depth: 6n + 4, or one of the paper's four.
        growth: k, channels that each layer adds.
        classes: number of logits.
    """

    def __init__(self, depth: int, growth: int, classes: int) -> None:
        super().__init__()
        layers = PAPER_LAYERS.get((depth, growth))
        if layers is None:
            n_layers = layers_per_stage("densenet", depth, per_block=2, outside=4)
            layers = (n_layers, n_layers, n_layers)
        channels = 2 * growth
        self.stem = nn.Conv2d(3, channels, 3, 1, 1, bias=False)
        parts: list[nn.Module] = []
        for block, n_layers in enumerate(layers):
            if block:
                halved = int(COMPRESSION * channels)
                parts.append(Transition(channels, halved))
                channels = halved
            parts += [DenseLayer(channels + i * growth, growth) for i in range(n_layers)]
            channels += n_layers * growth
        self.parts = nn.Sequential(*parts)
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """``(batch, 3, height, width)`` normalised floats to ``(batch, classes)`` logits."""
        x = F.relu(self.norm(self.parts(self.stem(images))), inplace=True)
        return self.head(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]
