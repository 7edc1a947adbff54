"""Networks for 32 x 32 images, by name.

A name says everything that decides the architecture: family, depth, width. So a name in a config, a JSON card or a
report is enough to build the network again.

==========================  ======================================================================================
``wrn-<depth>-<width>``     Wide-ResNet (Zagoruyko and Komodakis 2016), depth 6n + 4
``densenet-<depth>-<k>``    DenseNet-BC with growth rate k (Huang et al. 2017), depth 6n + 4, and the four of the
                            born-again paper: 112-33, 90-60, 80-80, 80-120
``<densenet>-depth-<f>``    f times as many layers, and the hidden states of ``<densenet>``: 0.5, 2, 3, 4
``<densenet>-compression-<f>``
                            transitions take away f times as much, with the same hidden states: 0.5, 0.75, 1.5
``wide-<n>-<r>-like-<densenet>``
                            n wide residual units in each stage instead of dense layers, of r times the hidden states
``bottleneck-<n>-<r>-like-<densenet>``
                            the same of bottleneck units
``resnet-<depth>``          CIFAR ResNet (He et al. 2016a, section 4.2), depth 6n + 2: 20, 32, 44, 56, 110
``resnet-<depth>-projection``
                            the same with weights in its shortcuts, as in much public code
``resnet-<depth>x4``        the same, four times as wide behind the first layer: 8, 32
``imagenet-resnet-<depth>``
                            ResNet for ImageNet (He et al. 2016a, table 1) with a first layer for small images: 18, 34,
                            50, 101, 152
``preact-<depth>``          pre-activation ResNet of two-layer blocks (He et al. 2016b), depth 6n + 2: 110
``preact-bottleneck-<d>``   the same of bottleneck blocks, depth 9n + 2: 164, 1001
==========================  ======================================================================================

Contract: every network takes ``(batch, 3, 32, 32)`` floats, normalised, and gives ``(batch, classes)`` logits. Initial
weights come from torch's current generator; :func:`build_network` seeds it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch

from polydistill.errors import suggest
from polydistill.vision.networks.densenet import DenseNet
from polydistill.vision.networks.matched import MatchedResNet
from polydistill.vision.networks.projection import ProjectionResNet, plan_cifar, plan_imagenet
from polydistill.vision.networks.resnet import PreActResNet, ResNet
from polydistill.vision.networks.staged import StagedNetwork
from polydistill.vision.networks.wide_resnet import WideResNet

__all__ = [
    "EXAMPLES",
    "DenseNet",
    "MatchedResNet",
    "PreActResNet",
    "ProjectionResNet",
    "ResNet",
    "StagedNetwork",
    "WideResNet",
    "build_network",
    "check_name",
]

EXAMPLES = (
    "wrn-16-1",
    "wrn-16-2",
    "wrn-16-4",
    "wrn-28-1",
    "wrn-28-2",
    "wrn-28-5",
    "wrn-28-10",
    "wrn-40-2",
    "densenet-100-12",
    "densenet-112-33",
    "densenet-90-60",
    "densenet-80-80",
    "densenet-80-120",
    "densenet-90-60-depth-0.5",
    "densenet-90-60-compression-1.5",
    "wide-4-0.5-like-densenet-90-60",
    "bottleneck-14-1-like-densenet-90-60",
    "resnet-8",
    "resnet-20",
    "resnet-32",
    "resnet-56",
    "resnet-110",
    "resnet-20-projection",
    "resnet-56-projection",
    "resnet-8x4",
    "resnet-32x4",
    "imagenet-resnet-18",
    "imagenet-resnet-50",
    "preact-20",
    "preact-110",
    "preact-bottleneck-164",
    "preact-bottleneck-1001",
)

NUMBER = r"(\d+(?:\.\d+)?)"
DENSENET = r"densenet-(\d+)-(\d+)"
FAMILIES: tuple[tuple[str, Callable[..., StagedNetwork]], ...] = (
    (r"wrn-(\d+)-(\d+)", WideResNet),
    (DENSENET, DenseNet),
    (f"{DENSENET}-depth-{NUMBER}", lambda depth, k, f, classes: DenseNet(depth, k, classes, depth_factor=f)),
    (
        f"{DENSENET}-compression-{NUMBER}",
        lambda depth, k, f, classes: DenseNet(depth, k, classes, compression_factor=f),
    ),
    (rf"wide-(\d+)-{NUMBER}-like-{DENSENET}", MatchedResNet),
    (
        rf"(bottleneck)-(\d+)-{NUMBER}-like-{DENSENET}",
        lambda _, n, r, depth, k, classes: MatchedResNet(n, r, depth, k, classes, bottleneck=True),
    ),
    (r"resnet-(\d+)", ResNet),
    (r"resnet-(\d+)-projection", lambda depth, classes: ProjectionResNet(plan_cifar(depth), classes)),
    (r"resnet-(\d+)x4", lambda depth, classes: ProjectionResNet(plan_cifar(depth, wide=True), classes)),
    (r"imagenet-resnet-(\d+)", lambda depth, classes: ProjectionResNet(plan_imagenet(depth), classes)),
    (r"preact-(\d+)", PreActResNet),
    (r"preact-(bottleneck)-(\d+)", lambda _, depth, classes: PreActResNet(depth, classes, bottleneck=True)),
)
LARGEST = 2000  # of any number in a name: a mistyped depth must not take all the memory


def build_network(name: str, classes: int, *, seed: int | None = None) -> StagedNetwork:
    """A fresh network on the CPU, float32, in training mode.

    Args:
        name: see the table above.
        classes: number of logits, >= 2.
        seed: of the initial weights, any 63-bit number; None: they come from torch's global generator. The global
            generator is afterwards as it was before.

    Raises:
        ValueError: unknown name, or a depth that the family does not have.

    Example:
        >>> sum(p.numel() for p in build_network("wrn-28-1", 100, seed=0).parameters())
        375348
    """
    if classes < 2:
        raise ValueError(f"a classifier has at least 2 classes, got {classes}")
    build, numbers = _find(name)
    if seed is None:
        return build(*numbers, classes)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs' generators too
        return build(*numbers, classes)


def check_name(name: str) -> None:
    """Refuse a name that :func:`build_network` would refuse, at no cost in memory.

    Raises:
        ValueError: as there.
    """
    build, numbers = _find(name)
    with torch.device("meta"):
        build(*numbers, 10)


def _find(name: str) -> tuple[Callable[..., StagedNetwork], list[float | str]]:
    for pattern, build in FAMILIES:
        match = re.fullmatch(pattern, name)
        if match:
            numbers = [_read(text) for text in match.groups()]
            if any(not isinstance(number, str) and not 0 < number <= LARGEST for number in numbers):
                raise ValueError(f"network {name!r}: its numbers must lie between 1 and {LARGEST}")
            return build, numbers
    raise ValueError(f"unknown network {name!r}{suggest(name, EXAMPLES)} (for example {', '.join(EXAMPLES[3:7])}, ...)")


def _read(text: str) -> float | str:
    """A part of a name: a whole number, a number, or a word."""
    if text.isdecimal():
        return int(text)
    return float(text) if text[0].isdecimal() else text
