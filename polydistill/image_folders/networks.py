"""Networks for pictures by name, timm's and this project's own, each with the normalisation that it expects.

``timm:<name>`` is any classifier of timm, as timm:resnet18 or timm:vit_small_patch16_224; a name without the prefix is
one of :mod:`polydistill.vision.networks`, as resnet-20, made for small pictures.

Contract: :class:`PictureNetwork` takes pictures as a loader gives them, so that teacher and student see the same
picture each in its own normalisation and size. Its weights have the network's own names: timm opens its files.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polydistill.errors import UserError, printable
from polydistill.image_folders.library import PREFIX, load_timm
from polydistill.image_folders.pretrained import not_fetched, require_weights
from polydistill.vision.networks import build_network, check_name

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OWN_SIDE = 32  # pixels, that this project's own networks are made for
NEAR = 3  # names to suggest


class Expectations(NamedTuple):
    """What a network expects of its pictures.

    Attributes:
        mean: of red, green and blue, of values in [0, 1].
        std: their standard deviations.
        side: pixels of the square picture that it was made for.
        fixed_side: whether it takes no other, unless it is built for it.
        crop: share of a test picture's shorter side that is kept.
        interpolation: with which test pictures are resized.
        heads: names of its last layers, mostly one, whose weights have a row for each class.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    side: int
    fixed_side: bool
    crop: float
    interpolation: str
    heads: tuple[str, ...]


OWN = Expectations(IMAGENET_MEAN, IMAGENET_STD, OWN_SIDE, False, 1.0, "bilinear", ("head",))


def require_network(name: str) -> None:
    """Refuse a name that no network has.

    Raises:
        UserError: with the nearest names that timm has; or timm cannot be imported.
    """
    if not name.startswith(PREFIX):
        try:
            check_name(name)
        except ValueError as error:
            raise UserError(f"{error}; networks of timm begin with {PREFIX}, as timm:resnet18") from None
        return
    timm, bare = load_timm(), name.removeprefix(PREFIX)
    if not timm.is_model(bare.partition(".")[0]):
        near = difflib.get_close_matches(bare, timm.list_models(), n=NEAR)
        hint = f"; did you mean {', '.join(PREFIX + one for one in near)}?" if near else ""
        raise UserError(f"timm has no network {printable(bare)!r}{hint}")
    if "." in bare and not timm.models.is_model_pretrained(bare):
        there = timm.list_models(f"{bare.partition('.')[0]}*", pretrained=True)[:NEAR]
        raise UserError(f"timm has no weights {printable(bare)!r} (there are {', '.join(there) or 'none'})")


@functools.cache
def expectations(name: str) -> Expectations:
    """What the network of that name expects."""
    if not name.startswith(PREFIX):
        return OWN
    config = load_timm().models.get_pretrained_cfg(name.removeprefix(PREFIX))
    known = {} if config is None else config.to_dict()
    head = known.get("classifier") or "fc"
    return Expectations(
        mean=tuple(known.get("mean", IMAGENET_MEAN)),
        std=tuple(known.get("std", IMAGENET_STD)),
        side=int(known.get("input_size", (3, 224, 224))[-1]),
        fixed_side=bool(known.get("fixed_input_size", False)),
        crop=float(known.get("crop_pct", 0.875)),
        interpolation=str(known.get("interpolation", "bicubic")),
        heads=(head,) if isinstance(head, str) else tuple(head),
    )


def size_option(name: str, side: int) -> dict[str, int]:
    """What a network must be told to be built for pictures of ``side`` pixels; most take any size."""
    wants = expectations(name)
    return {"img_size": side} if wants.fixed_side and side != wants.side else {}


def make_network(name: str, classes: int, side: int, *, pretrained: bool = False) -> nn.Module:
    """A network on the CPU, float32, with initial weights from torch's global generator.

    Args:
        name: see the head of this file.
        classes: number of its scores.
        side: pixels of the pictures that it will take.
        pretrained: with timm's weights, and as many scores as these have.

    Raises:
        UserError: the network cannot be built so, or its weights cannot be fetched.
    """
    if not name.startswith(PREFIX):
        return build_network(name, classes)
    timm, bare = load_timm(), name.removeprefix(PREFIX)
    options: dict[str, Any] = {"pretrained": True} if pretrained else {"num_classes": classes}
    options |= size_option(name, side)
    if pretrained:
        require_weights(name)
    try:
        network: nn.Module = timm.create_model(bare, **options)
    except Exception as error:  # whatever timm, its networks and the client of the Hub raise
        if pretrained:
            raise not_fetched(name, error) from error
        told = printable(str(error).strip().partition("\n")[0])
        raise UserError(f"{name} cannot be built for {classes} classes and {side} pixels: {told}") from error
    return network


class PictureNetwork(nn.Module):
    """A network with its own normalisation and size.

    Args:
        network: gives scores of normalised pictures.
        wants: its normalisation.
        side: pixels to which pictures are resized for it.
        channels_last: memory format of its inputs.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        network: nn.Module,
        wants: Expectations,
        side: int,
        *,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.network, self.side = network, side
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (wants.mean, wants.std))
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)
        self.to(memory_format=self.memory_format)  # type: ignore[call-overload]

    def forward(self, pictures: Tensor) -> Tensor:
        """``(batch, 3, height, width)`` pixels from 0 to 255 to ``(batch, classes)`` scores. Gradient flows."""
        pixels = pictures.to(self.scale.dtype)
        if pictures.shape[-2:] != (self.side, self.side):
            pixels = F.interpolate(pixels, (self.side, self.side), mode="bilinear", antialias=True)
        normalised = (pixels * self.scale + self.shift).contiguous(memory_format=self.memory_format)
        return self.network(normalised)  # type: ignore[no-any-return]

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """That of the network, under its own names."""
        return self.network.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Into the network."""
        return self.network.load_state_dict(state_dict, *args, **kwargs)
