"""Initial weights of all families: He et al. (2015), as in the published CIFAR code of Wide-ResNet and DenseNet."""

from __future__ import annotations

import math

from torch import nn


def initialize(network: nn.Module) -> None:
    """Set every weight of ``network`` in place, from torch's current generator.

    Convolutions: normal with deviation sqrt(2 / (kernel area x outputs)). Batch norms: 1 and 0. Linear layers: uniform
    in +-1/sqrt(inputs), bias 0. On the device "meta" there is nothing to set, and torch would load its compiler for it.
    """
    if any(weight.is_meta for weight in network.parameters()):
        return
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            bound = 1.0 / math.sqrt(module.in_features)
            nn.init.uniform_(module.weight, -bound, bound)
            nn.init.zeros_(module.bias)


def layers_per_stage(family: str, depth: int, per_block: int, outside: int) -> int:
    """Blocks in each of the three stages of a network of ``depth`` layers.

    Args:
        family: for the message.
        depth: layers with weights, counted as the paper of the family does.
        per_block: layers of a block.
        outside: layers outside the blocks.

    Raises:
        ValueError: the depth does not divide.
    """
    blocks, rest = divmod(depth - outside, 3 * per_block)
    if rest or blocks < 1:
        near = outside + 3 * per_block * max(1, round((depth - outside) / (3 * per_block)))
        raise ValueError(f"{family} has depths {3 * per_block}n + {outside}, got {depth}; the nearest is {near}")
    return blocks
