"""ResNets whose shortcuts have weights (He et al. 2016a, arXiv 1512.03385, "option B"), as most public code has them.

Where channels or size change, the shortcut is a 1 x 1 convolution and a batch norm.

- ``resnet-<depth>-projection``: three stages of 16, 32 and 64 channels (section 4.2). ``resnet-<depth>x4`` has 32
  behind the first layer, then 64, 128 and 256, as in code that compares ways of distillation.
- ``imagenet-resnet-<depth>``: the four stages of table 1, of 64, 128, 256 and 512 channels, from 50 layers on of
  bottlenecks with four times that. Two departures from the table, which public code for CIFAR shares: the first layer
  is 3 x 3 without a stride or pooling behind it, and a bottleneck's stride is that of its 3 x 3 convolution.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from polydistill.vision.networks.initial import initialize, layers_per_stage
from polydistill.vision.networks.resnet import PostActNetwork, shape_convolutions

BOTTLENECK = 4  # outputs of a bottleneck, for each channel inside
IMAGENET: dict[int, tuple[int, ...]] = {  # depth -> blocks of each stage, table 1
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
BOTTLENECKS_FROM = 50  # layers
NARROW = (16, 16, 32, 64)
WIDE = (32, 64, 128, 256)  # what others call x4


class Plan(NamedTuple):
    """What decides a network.

    Attributes:
        channels: behind the first layer, then inside the blocks of each stage.
        blocks: of each stage.
        bottleneck: three convolutions in a block, not two.
    """

    channels: tuple[int, ...]
    blocks: tuple[int, ...]
    bottleneck: bool = False


def plan_cifar(depth: int, *, wide: bool = False) -> Plan:
    """Of ``resnet-<depth>-projection``, or ``resnet-<depth>x4``.

    Raises:
        ValueError: the depth is not 6n + 2.
    """
    n_blocks = layers_per_stage("resnet", depth, per_block=2, outside=2)
    return Plan(WIDE if wide else NARROW, (n_blocks,) * 3)


def plan_imagenet(depth: int) -> Plan:
    """Of ``imagenet-resnet-<depth>``.

    Raises:
        ValueError: the table has no such depth.
    """
    if depth not in IMAGENET:
        raise ValueError(f"imagenet-resnet has depths {', '.join(map(str, IMAGENET))}, got {depth}")
    return Plan((64, 64, 128, 256, 512), IMAGENET[depth], bottleneck=depth >= BOTTLENECKS_FROM)


class ProjectionBlock(nn.Module):
    """Convolution and batch norm, two or three times, with a ReLU between; ReLU after the sum.

    Args:
        inputs: channels.
        width: channels inside.
        stride: of the first 3 x 3 convolution.
        bottleneck: three convolutions, of which the last gives four times ``width``.
    """

    def __init__(self, inputs: int, width: int, stride: int, *, bottleneck: bool) -> None:
        super().__init__()
        outputs = BOTTLENECK * width if bottleneck else width
        shapes = shape_convolutions(inputs, width, outputs, stride, bottleneck=bottleneck)
        self.convs = nn.ModuleList(nn.Conv2d(i, o, size, step, size // 2, bias=False) for i, o, size, step in shapes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _, channels, *_ in shapes)
        changes = inputs != outputs or stride != 1
        self.shortcut = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            if changes
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        residual, last = x, len(self.convs) - 1
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            residual = norm(conv(residual))
            if index < last:
                residual = F.relu(residual, inplace=True)
        return F.relu(residual + (x if self.shortcut is None else self.shortcut(x)), inplace=True)


class ProjectionResNet(PostActNetwork):
    """A ResNet whose shortcuts have weights.

    Args:
        plan: its sizes.
        classes: number of logits.
    """

    def __init__(self, plan: Plan, classes: int) -> None:
        super().__init__()
        inputs, *widths = plan.channels
        self.stem = nn.Conv2d(3, inputs, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(inputs)
        blocks: list[nn.Module] = []
        ends: list[int] = []
        for width, n_blocks in zip(widths, plan.blocks, strict=True):
            for index in range(n_blocks):
                stride = 2 if ends and not index else 1
                blocks.append(ProjectionBlock(inputs, width, stride, bottleneck=plan.bottleneck))
                inputs = BOTTLENECK * width if plan.bottleneck else width
            ends.append(len(blocks))
        self.blocks, self.stage_ends = nn.Sequential(*blocks), ends
        self.head = nn.Linear(inputs, classes)
        initialize(self)
