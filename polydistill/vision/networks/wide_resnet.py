"""Wide-ResNet (Zagoruyko and Komodakis 2016, arXiv 1605.07146): pre-activation blocks of two 3 x 3 convolutions.

Widths 16, 16k, 32k, 64k; n = (depth - 4) / 6 blocks in each of three stages; no dropout (the published code's default).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from polydistill.vision.networks.initial import initialize, layers_per_stage
from polydistill.vision.networks.staged import StagedNetwork


class WideBlock(nn.Module):
    """Batch norm, ReLU, convolution, twice. Where the width changes, the shortcut is a 1 x 1 convolution of the
    activated input."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        changes = inputs != outputs or stride != 1
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.norm1(x), inplace=True)
        residual = self.conv2(F.relu(self.norm2(self.conv1(activated)), inplace=True))
        return residual + (x if self.shortcut is None else self.shortcut(activated))  # type: ignore[no-any-return]


class WideResNet(StagedNetwork):
    """WRN-depth-width.

    Args:
        depth: 6n + 4.
        width: k >= 1.
        classes: number of logits.
    """

    def __init__(self, depth: int, width: int, classes: int) -> None:
        super().__init__()
        n_blocks = layers_per_stage("wrn", depth, per_block=2, outside=4)
        self.stem = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        blocks: list[nn.Module] = []
        inputs = 16
        for stage in range(3):
            outputs = 16 * width * 2**stage
            for index in range(n_blocks):
                blocks.append(WideBlock(inputs, outputs, stride=2 if stage and not index else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.stage_ends = (n_blocks, 2 * n_blocks, 3 * n_blocks)
        self.norm = nn.BatchNorm2d(inputs)
        self.head = nn.Linear(inputs, classes)
        initialize(self)

    @property
    def body(self) -> nn.Sequential:
        """The blocks."""
        return self.blocks
