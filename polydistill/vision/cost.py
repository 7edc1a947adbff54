"""The cost of a network for small images, counted without computing anything."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from polydistill.vision.images.archives import SIDE
from polydistill.vision.networks import build_network

BACKWARD = 2  # a backward pass costs about two forward passes


class Cost(NamedTuple):
    """The cost of one network: operations of a forward pass for one image (2 per multiply-add), numbers in its
    layers' outputs for one image, parameters."""

    operations: int
    outputs: int
    parameters: int


@functools.cache
def count_cost(architecture: str, classes: int) -> Cost:
    """The cost of a network, counted without computing anything.

    Example:
        >>> count_cost("resnet-20", 10).operations / 2e6  # million multiply-adds of one image
        40.55104
    """
    with torch.device("meta"):
        network = build_network(architecture, classes)
    return count_network(network, SIDE)


def count_network(network: nn.Module, side: int) -> Cost:
    """The cost of ``network``, which lies on the device "meta" and is of no other use, for one image of ``side`` x
    ``side`` pixels."""
    outputs = 0

    def add(module: nn.Module, inputs: object, output: object) -> None:
        nonlocal outputs
        outputs += output.numel() if isinstance(output, torch.Tensor) else 0

    network.eval()
    for module in network.modules():
        if not list(module.children()):
            module.register_forward_hook(add)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, side, side))
    return Cost(counter.get_total_flops(), outputs, sum(p.numel() for p in network.parameters()))
