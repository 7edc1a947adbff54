"""ResNets for CIFAR: the original (He et al. 2016a, arXiv 1512.03385, section 4.2) and with pre-activation (2016b,
arXiv 1603.05027).

Widths 16, 32, 64 (bottlenecks: four times that). The original's shortcuts have no weights ("option A": every second
pixel, zeros for the new channels), as the paper used for CIFAR; those with weights are in
:mod:`~polydistill.vision.networks.projection`. Pre-activation shortcuts are 1 x 1 convolutions where the width changes.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from polydistill.vision.networks.initial import initialize, layers_per_stage
from polydistill.vision.networks.staged import StagedNetwork


class BasicBlock(nn.Module):
    """Convolution, batch norm, ReLU, convolution, batch norm; ReLU after the sum."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.stride, self.new_channels = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        residual = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)), inplace=True)))
        if self.new_channels or self.stride != 1:
            before = self.new_channels // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.new_channels - before))
        return F.relu(residual + x, inplace=True)


class PostActNetwork(StagedNetwork):
    """Batch norm and ReLU come behind the first layer and the blocks, and not again before the mean.

    Attributes:
        blocks: of all stages.
    """

    blocks: nn.Sequential

    @property
    def body(self) -> nn.Sequential:
        """The blocks."""
        return self.blocks

    def begin(self, images: Tensor) -> Tensor:
        """What the first block sees."""
        return F.relu(self.norm(self.stem(images)), inplace=True)

    def finish(self, x: Tensor) -> Tensor:
        """The logits for what the last block gives."""
        return self.head(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]


class ResNet(PostActNetwork):
    """CIFAR ResNet-depth.

    Args:
        depth: 6n + 2.
        classes: number of logits.
    """

    def __init__(self, depth: int, classes: int) -> None:
        super().__init__()
        n_blocks = layers_per_stage("resnet", depth, per_block=2, outside=2)
        self.stem = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        blocks: list[nn.Module] = []
        inputs = 16
        for stage, outputs in enumerate((16, 32, 64)):
            for index in range(n_blocks):
                blocks.append(BasicBlock(inputs, outputs, stride=2 if stage and not index else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.stage_ends = (n_blocks, 2 * n_blocks, 3 * n_blocks)
        self.head = nn.Linear(inputs, classes)
        initialize(self)


def shape_convolutions(
    inputs: int, width: int, outputs: int, stride: int, *, bottleneck: bool
) -> list[tuple[int, int, int, int]]:
    """(inputs, outputs, kernel, stride) of each convolution of a block; its stride is that of the first 3 x 3."""
    if bottleneck:
        return [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
    return [(inputs, width, 3, stride), (width, outputs, 3, 1)]


class PreActBlock(nn.Module):
    """Batch norm, ReLU, convolution: twice (3 x 3, 3 x 3), or as a bottleneck three times (1 x 1, 3 x 3, 1 x 1).

    Where channels or size change, the shortcut is a 1 x 1 convolution of the activated input.

    Args:
        inputs: channels.
        width: channels inside.
        outputs: channels.
        stride: of the first 3 x 3 convolution.
        bottleneck: three convolutions.
    """

    def __init__(self, inputs: int, width: int, outputs: int, stride: int, *, bottleneck: bool) -> None:
        super().__init__()
        shapes = shape_convolutions(inputs, width, outputs, stride, bottleneck=bottleneck)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for channels, *_ in shapes)
        self.convs = nn.ModuleList(nn.Conv2d(i, o, size, step, size // 2, bias=False) for i, o, size, step in shapes)
        changes = inputs != outputs or stride != 1
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        activated = residual = F.relu(self.norms[0](x), inplace=True)
        for index, conv in enumerate(self.convs):
            residual = conv(residual if index == 0 else F.relu(self.norms[index](residual), inplace=True))
        return residual + (x if self.shortcut is None else self.shortcut(activated))


class PreActResNet(StagedNetwork):
    """Pre-activation ResNet-depth.

    Args:
        depth: 6n + 2, or 9n + 2 with bottlenecks.
        classes: number of logits.
        bottleneck: three layers per block, not two.
    """

    def __init__(self, depth: int, classes: int, *, bottleneck: bool = False) -> None:
        super().__init__()
        family = "preact-bottleneck" if bottleneck else "preact"
        n_blocks = layers_per_stage(family, depth, per_block=3 if bottleneck else 2, outside=2)
        self.stem = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        blocks: list[nn.Module] = []
        inputs = 16
        for stage, width in enumerate((16, 32, 64)):
            for index in range(n_blocks):
                stride, outputs = 2 if stage and not index else 1, 4 * width if bottleneck else width
                blocks.append(PreActBlock(inputs, width, outputs, stride, bottleneck=bottleneck))
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
