"""Residual networks with the hidden states of a DenseNet, for table 5 of the born-again paper (Furlanello et al. 2018).

Each stage of dense layers is replaced by residual units; first layer, last layer and the hidden states at the end of
the stages are as large as the DenseNet's, so that the first and the last layer can be the teacher's own. H is the size
of a stage's hidden state, r the ratio in the network's name.

- Wide units (two 3 x 3 convolutions) have r H channels, and a 1 x 1 convolution behind the last of a stage gives H.
  That is not written in the paper, but its four sizes follow from it, counted without the two layers that do not learn:
  21.0M, 43.1M, 24.3M and 87.4M for 20.9M (1-1), 43.1M (2-1), 24.3M (4-0.5) and 87.3M (4-1).
- Bottleneck units (1 x 1, 3 x 3, 1 x 1) have H channels outside and r H / 4 inside. The paper's 7.3M (14-0.5) and 17.7M
  (14-1) fit no plain reading; ours have 7.6M and 19.2M.

What the paper calls BAN-Pre-ResNet-14-0.5 and BAN-Wide-ResNet-4-1 are ``bottleneck-14-0.5-like-densenet-90-60`` and
``wide-4-1-like-densenet-90-60``.
"""

from __future__ import annotations

from torch import nn

from polydistill.vision.networks.dense_stages import plan_stages
from polydistill.vision.networks.densenet import Transition
from polydistill.vision.networks.initial import initialize
from polydistill.vision.networks.resnet import PreActBlock
from polydistill.vision.networks.staged import StagedNetwork
from polydistill.vision.networks.wide_resnet import WideBlock


class MatchedResNet(StagedNetwork):
    """Residual units between the first and the last layer of DenseNet-BC-depth-growth.

    Args:
        units: in each stage, >= 1.
        ratio: r, > 0.
        depth: of the DenseNet.
        growth: of the DenseNet.
        classes: number of logits.
        bottleneck: the units are bottlenecks, not wide.

    Raises:
        ValueError: there is no such DenseNet, or the ratio leaves no channel.
    """

    def __init__(
        self, units: int, ratio: float, depth: int, growth: int, classes: int, *, bottleneck: bool = False
    ) -> None:
        super().__init__()
        stages = plan_stages(depth, growth)
        self.stem = nn.Conv2d(3, stages[0].inputs, 3, 1, 1, bias=False)
        blocks: list[nn.Module] = []
        ends = []
        for stage in stages:
            narrow = round(ratio * stage.hidden / (4 if bottleneck else 1))
            if not narrow:
                raise ValueError(f"ratio {ratio:g} leaves no channel of {stage.hidden}")
            outputs, halve = stage.hidden if bottleneck else narrow, stage is not stages[-1]
            for index in range(units):
                inputs = outputs if index else stage.inputs
                blocks.append(
                    PreActBlock(inputs, narrow, outputs, 1, bottleneck=True)
                    if bottleneck
                    else WideBlock(inputs, outputs, 1)
                )
            if not bottleneck:
                blocks.append(Transition(narrow, stage.hidden, halve=halve))
            elif halve:
                blocks.append(nn.AvgPool2d(2))
            ends.append(len(blocks))
        self.blocks, self.stage_ends = nn.Sequential(*blocks), tuple(ends)
        self.norm = nn.BatchNorm2d(stages[-1].hidden)
        self.head = nn.Linear(stages[-1].hidden, classes)
        initialize(self)

    @property
    def body(self) -> nn.Sequential:
        """The units, and what lies between two stages."""
        return self.blocks
