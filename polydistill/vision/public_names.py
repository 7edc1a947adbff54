"""Weights of public CIFAR code under this project's names.

Two conventions, which many repositories share. ResNets of 6n + 2 layers whose shortcuts have no weights, as in
akamaster/pytorch_resnet_cifar10: ``conv1``, ``bn1``, ``layer<stage>.<block>.conv1`` and so on, ``linear`` or ``fc``.
Wide-ResNets, as in xternalz/WideResNet-pytorch: ``block<stage>.layer.<block>.bn1``, ``convShortcut``, ``fc``.

Contract: names and shapes alone decide; nothing here opens a file. What is of neither convention stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

STAGES = 3
FIRST_CHANNELS = 16


class Convention(NamedTuple):
    """How other code calls the parts of a network.

    Attributes:
        family: as in :func:`polydistill.vision.networks.build_network`.
        outside: layers outside of 6n.
        block: matches names within a block, with the groups stage, block, part.
        parts: of a block: its name there -> here; a trailing number stays.
    """

    family: str
    outside: int
    block: re.Pattern[str]
    parts: dict[str, str]


_CONVENTIONS = (
    Convention(
        "resnet", 2, re.compile(r"layer(?P<stage>\d+)\.(?P<block>\d+)\.(?P<part>.+)"), {"conv": "conv", "bn": "norm"}
    ),
    Convention(
        "wrn",
        4,
        re.compile(r"block(?P<stage>\d+)\.layer\.(?P<block>\d+)\.(?P<part>.+)"),
        {"convShortcut": "shortcut", "conv": "conv", "bn": "norm"},
    ),
)
_OUTSIDE = {"conv1": "stem", "bn1": "norm", "linear": "head", "fc": "head"}


class Translated(NamedTuple):
    """Weights under the names of this project.

    Attributes:
        architecture: name of the network that they are of.
        weights: its state.
    """

    architecture: str
    weights: dict[str, Tensor]


def translate(weights: Mapping[str, Tensor]) -> Translated | None:
    """The weights under our names; None where they are of no convention that is known here."""
    for convention in _CONVENTIONS:
        found = [match for name in weights if (match := convention.block.fullmatch(name))]
        if found:
            return _translate(convention, found, weights)
    return None


def _translate(convention: Convention, found: list[re.Match[str]], weights: Mapping[str, Tensor]) -> Translated | None:
    """None where stages or parts are others than those of the family."""
    n_blocks = [len({match["block"] for match in found if match["stage"] == str(1 + stage)}) for stage in range(STAGES)]
    if any(int(match["stage"]) > STAGES for match in found) or len({*n_blocks}) != 1:
        return None
    places = {match.string: match for match in found}
    translated: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        match = places.get(name)
        ours = _outside(name) if match is None else _inside(convention, match, n_blocks[0])
        if ours is None:
            return None
        translated[ours] = tensor
    return Translated(_entitle(convention, n_blocks[0], translated), translated)


def _outside(name: str) -> str | None:
    layer, _, rest = name.partition(".")
    return f"{_OUTSIDE[layer]}.{rest}" if layer in _OUTSIDE else None


def _inside(convention: Convention, match: re.Match[str], n_blocks: int) -> str | None:
    """A name within a block; the blocks of all stages are counted through."""
    layer, _, rest = match["part"].partition(".")
    word = layer.rstrip("0123456789")
    if word not in convention.parts:
        return None
    index = (int(match["stage"]) - 1) * n_blocks + int(match["block"])
    return f"blocks.{index}.{convention.parts[word]}{layer.removeprefix(word)}.{rest}"


def _entitle(convention: Convention, n_blocks: int, weights: Mapping[str, Tensor]) -> str:
    depth = 2 * STAGES * n_blocks + convention.outside
    if convention.family == "resnet":
        return f"resnet-{depth}"
    first = weights.get("blocks.0.conv1.weight")
    width = len(first) // FIRST_CHANNELS if first is not None else 0
    return f"wrn-{depth}-{width}"
