"""The sizes of a DenseNet-BC, stage by stage, and of DenseNets with the same hidden states.

Symbols: k growth rate, a stage takes c_0 channels, each of its n layers adds some, and a transition leaves a share of
them for the next stage, in plain DenseNet-BC a half.

The born-again paper (Furlanello et al. 2018) names four networks by depth and k and gives their sizes; it does not say
how many layers they have. 90 and 80 are no depths of a DenseNet-BC, which are 6n + 4. With n = (depth - 4) // 6 and a
transition behind the last stage too, three come out as printed; table 5 says the same, since only so its residual
networks, which take over the last layer, have the sizes printed there. DenseNet-112-33 does not follow: with 18 layers
it would have 7.4M parameters for a printed 6.3M. It has 17 here, and no transition at its end.
"""

from __future__ import annotations

from typing import NamedTuple

from polydistill.vision.networks.initial import layers_per_stage

COMPRESSION = 0.5  # share of the channels that a transition leaves

# (depth, growth) -> layers of each stage, transition behind the last   # ours with 10 outputs   the paper's
PAPERS: dict[tuple[int, int], tuple[int, bool]] = {
    (112, 33): (17, False),  #  6.27M    6.3M (in a sentence 6.5M)
    (90, 60): (14, True),  # 16.17M   16.1M (in table 4 22.4M, which is DenseNet-80-80's)
    (80, 80): (12, True),  # 22.42M   22.4M
    (80, 120): (12, True),  # 50.36M   50.4M
}


class Stage(NamedTuple):
    """Channels of one stage.

    Attributes:
        inputs: that it takes.
        layers: how many there are.
        grown: channels behind the last of them.
        outputs: that the transition leaves; None: there is no transition.
    """

    inputs: int
    layers: int
    grown: int
    outputs: int | None

    @property
    def hidden(self) -> int:
        """Channels of the hidden state at its end."""
        return self.grown if self.outputs is None else self.outputs

    def growths(self) -> list[int]:
        """The channels that each layer adds: the same, or where that does not divide, one more for some."""
        added = self.grown - self.inputs
        return [added * (index + 1) // self.layers - added * index // self.layers for index in range(self.layers)]


def plan_stages(depth: int, growth: int) -> list[Stage]:
    """The three stages of DenseNet-BC-depth-growth.

    Args:
        depth: 6n + 4, or of a network of the born-again paper.
        growth: k.

    Raises:
        ValueError: another depth.
    """
    layers, ends_in_transition = PAPERS.get((depth, growth), (0, False))
    layers = layers or layers_per_stage("densenet", depth, per_block=2, outside=4)
    stages: list[Stage] = []
    inputs = 2 * growth
    for number in range(3):
        grown = inputs + layers * growth
        outputs = int(COMPRESSION * grown) if number < 2 or ends_in_transition else None
        stages.append(Stage(inputs, layers, grown, outputs))
        inputs = stages[-1].hidden
    return stages


def deepen(stages: list[Stage], factor: float) -> list[Stage]:
    """The same channels by ``factor`` times as many layers, each of which adds 1/``factor`` of the channels.

    Raises:
        ValueError: that is no whole number of layers, or more layers than channels.
    """
    deeper = []
    for stage in stages:
        layers = round(stage.layers * factor)
        if not layers or layers != stage.layers * factor:
            raise ValueError(f"depth {factor:g} times of {stage.layers} layers is no whole number of layers")
        deeper.append(stage._replace(layers=layers))
    if any(0 in stage.growths() for stage in deeper):
        raise ValueError(f"depth {factor:g} times leaves layers without a channel to add")
    return deeper


def compress(stages: list[Stage], factor: float) -> list[Stage]:
    """The same hidden states, with transitions that take away ``factor`` times the share of channels.

    The more a transition takes away, the more channels the layers before it add, since what is left stays the same.

    Raises:
        ValueError: the transitions would take away all, or more than there is to begin with.
    """
    left = 1 - factor * (1 - COMPRESSION)
    if left <= 0:
        raise ValueError(f"compression {factor:g} times takes away every channel: choose less than 2")
    changed = [
        stage if stage.outputs is None else stage._replace(grown=round(stage.outputs / left)) for stage in stages
    ]
    if any(stage.grown - stage.inputs < stage.layers for stage in changed):
        raise ValueError(f"compression {factor:g} times leaves layers without a channel to add")
    return changed
