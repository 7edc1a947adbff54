"""Weights of public CIFAR code under this project's names.

Three conventions, which many repositories share:

- ResNets as torchvision, timm, kuangliu/pytorch-cifar and akamaster/pytorch_resnet_cifar10 write them: ``conv1``,
  ``bn1``, ``layer<stage>.<block>.conv1`` and so on, ``downsample`` or ``shortcut``, ``fc`` or ``linear``.
- ResNets as in weiaicunzai/pytorch-cifar100: ``conv1.0``, ``conv<stage + 1>_x.<block>.residual_function.0``, ``fc``.
- Wide-ResNets as in xternalz/WideResNet-pytorch: ``block<stage>.layer.<block>.bn1``, ``convShortcut``, ``fc``.

Contract: names and shapes alone decide; nothing here opens a file. What is of no convention stays as it is; what is of
one, but of no network here, is refused.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from polydistill.vision.networks import build_network
from polydistill.vision.networks.projection import BOTTLENECKS_FROM, IMAGENET, NARROW, WIDE

MOST_STAGES = 4
LARGE_STEM = 7  # kernel of the first layer of ResNets for large images
COUNTER = "num_batches_tracked"  # of a batch norm; files of torch before 0.4.1 have none, and evaluation needs none


class Convention(NamedTuple):
    """How other code calls the parts of a network.

    Attributes:
        block: matches names within a block, with the groups stage, block, part.
        first_stage: its number there.
        parts: of a block, there -> here.
        outside: layers outside of the blocks, there -> here.
    """

    block: re.Pattern[str]
    first_stage: int
    parts: Mapping[str, str]
    outside: Mapping[str, str]


_NUMBERED = {f"{word}{n}": f"{ours}{n}" for word, ours in (("conv", "conv"), ("bn", "norm")) for n in (1, 2, 3)}
_SHORTCUTS = {f"{word}.{n}": f"shortcut.{n}" for word in ("shortcut", "downsample") for n in (0, 1)}
_IN_SEQUENCE = {"conv1": 0, "norm1": 1, "conv2": 3, "norm2": 4, "conv3": 6, "norm3": 7}  # a ReLU lies between
_HEADS = {"linear": "head", "fc": "head"}
TORCHVISION = Convention(
    re.compile(r"layer(?P<stage>\d+)\.(?P<block>\d+)\.(?P<part>.+)"),
    1,
    _NUMBERED | _SHORTCUTS,
    {"conv1": "stem", "bn1": "norm", **_HEADS},
)
WEIAICUNZAI = Convention(
    re.compile(r"conv(?P<stage>\d+)_x\.(?P<block>\d+)\.(?P<part>.+)"),
    2,
    {f"residual_function.{place}": ours for ours, place in _IN_SEQUENCE.items()} | _SHORTCUTS,
    {"conv1.0": "stem", "conv1.1": "norm", **_HEADS},
)
XTERNALZ = Convention(
    re.compile(r"block(?P<stage>\d+)\.layer\.(?P<block>\d+)\.(?P<part>.+)"),
    1,
    _NUMBERED | {"convShortcut": "shortcut"},
    TORCHVISION.outside,
)
CONVENTIONS = (TORCHVISION, WEIAICUNZAI, XTERNALZ)


class Place(NamedTuple):
    """Where a tensor stands in a network.

    Attributes:
        part: conv1, norm1, ..., shortcut, shortcut.0; outside of blocks stem, norm, head.
        kind: weight, bias, running_mean, ...
        block: (stage from 0, block in it); None: outside of them.
    """

    part: str
    kind: str
    block: tuple[int, int] | None


class Translated(NamedTuple):
    """Weights under the names of this project.

    Attributes:
        architecture: name of the network that they are of.
        weights: its state.
    """

    architecture: str
    weights: dict[str, Tensor]


def translate(weights: Mapping[str, Tensor]) -> Translated | None:
    """The weights under our names; None where they are of no convention that is known here.

    Raises:
        ValueError: they are of one, but of no network that is here.
    """
    convention = next((each for each in CONVENTIONS if any(map(each.block.fullmatch, weights))), None)
    if convention is None:
        return None
    places = {name: _place(convention, name) for name in weights}
    sizes = {place: tuple(weights[name].shape) for name, place in places.items()}
    blocks = _count_blocks(sizes)
    architecture = _entitle(convention, blocks, sizes)
    ours = {name: _name(place, blocks, architecture) for name, place in places.items()}
    translated = _with_counters({ours[name]: tensor for name, tensor in weights.items()})
    _require_shapes(architecture, translated, {there: name for name, there in ours.items()})
    return Translated(architecture, translated)


def _place(convention: Convention, name: str) -> Place:
    match = convention.block.fullmatch(name)
    layer, _, kind = (name if match is None else match["part"]).rpartition(".")
    part = (convention.outside if match is None else convention.parts).get(layer)
    if part is None:
        raise ValueError(f"it has {name}, which no network here has")
    block = None if match is None else (int(match["stage"]) - convention.first_stage, int(match["block"]))
    return Place(part, kind, block)


def _count_blocks(places: Mapping[Place, tuple[int, ...]]) -> tuple[int, ...]:
    """The number of blocks of each stage."""
    found = {place.block for place in places if place.block is not None}
    if max(stage for stage, _ in found) >= MOST_STAGES:
        raise ValueError(f"it has more than {MOST_STAGES} stages")
    stages = range(1 + max(stage for stage, _ in found))
    blocks = tuple(sum(1 for stage, _ in found if stage == wanted) for wanted in stages)
    if found != {(stage, block) for stage in stages for block in range(blocks[stage])}:
        raise ValueError("blocks of its stages are missing")
    return blocks


def _entitle(convention: Convention, blocks: Sequence[int], sizes: Mapping[Place, tuple[int, ...]]) -> str:
    """The name of the network, by numbers of blocks and some sizes; :func:`_require_shapes` compares all."""
    stem, width = (sizes.get(Place(*of)) for of in (("stem", "weight", None), ("conv1", "weight", (0, 0))))
    parts = {place.part for place in sizes}
    if not stem or not width or "norm" not in parts:
        raise ValueError("its first layer or the batch norm beside it is missing")
    if stem[-1] == LARGE_STEM:
        raise ValueError(f"its first layer is {LARGE_STEM} x {LARGE_STEM}, for larger images than these")
    same, bottleneck = len(blocks) == 3 and len(set(blocks)) == 1, "conv3" in parts
    if convention is XTERNALZ and same:
        return f"wrn-{6 * blocks[0] + 4}-{width[0] // NARROW[0]}"
    if same and not bottleneck:
        ending = "" if "shortcut.0" not in parts else "x4" if stem[0] == WIDE[0] else "-projection"
        return f"resnet-{6 * blocks[0] + 2}{ending}"
    for depth, of_each in IMAGENET.items():
        if tuple(blocks) == of_each and bottleneck == (depth >= BOTTLENECKS_FROM):
            return f"imagenet-resnet-{depth}"
    kind = "bottlenecks" if bottleneck else "blocks"
    raise ValueError(f"its stages have {', '.join(map(str, blocks))} {kind}, as no network here")


def _name(place: Place, blocks: Sequence[int], architecture: str) -> str:
    """Our name; the blocks of all stages are counted through."""
    part, kind, block = place
    if block is None:
        return f"{part}.{kind}"
    number = [0, *itertools.accumulate(blocks)][block[0]] + block[1]
    if part[-1].isdecimal() and "." not in part and not _has_plain_names(architecture):
        part = f"{part[:-1]}s.{int(part[-1]) - 1}"
    return f"blocks.{number}.{part}.{kind}"


def _has_plain_names(architecture: str) -> bool:
    """Whether the blocks of that network have layers conv1, conv2, and not a list of them."""
    return re.fullmatch(r"wrn-.+|resnet-\d+", architecture) is not None


def _with_counters(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    norms = [name.removesuffix("running_var") for name in weights if name.endswith(".running_var")]
    return {**{norm + COUNTER: torch.zeros((), dtype=torch.int64) for norm in norms}, **weights}


def _require_shapes(architecture: str, weights: Mapping[str, Tensor], theirs: Mapping[str, str]) -> None:
    """Refuse weights of other names or shapes than those of the network, told by the names in their file."""
    head = weights.get("head.weight")
    if head is None or head.dim() != 2 or len(head) < 2:
        raise ValueError("its last layer is missing")
    with torch.device("meta"):
        wanted = {
            name: tuple(tensor.shape) for name, tensor in build_network(architecture, len(head)).state_dict().items()
        }
    for name, tensor in weights.items():
        if name not in wanted:
            raise ValueError(f"it has {theirs[name]}, which a {architecture} does not have")
        if tuple(tensor.shape) != wanted[name]:
            shapes = f"{tuple(tensor.shape)}, that of a {architecture} {wanted[name]}"
            raise ValueError(f"its {theirs[name]} has shape {shapes}")
    missing = next((name for name in wanted if name not in weights), None)
    if missing is not None:
        raise ValueError(f"it lacks the {missing} of a {architecture}")
