"""timm's transforms: from an image of Pillow to ``(3, side, side)`` bytes, not normalised for any network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch.utils.data import default_collate

from polydistill.config.fields import check_fields
from polydistill.errors import UserError, require_at_least, require_at_most
from polydistill.image_folders.library import load_timm

Transform = Callable[[Any], Tensor]
Interpolation = Literal["bilinear", "bicubic", "random"]


@dataclass(frozen=True)
class AugmentationConfig:
    """timm's transforms of the training pictures, which teacher and student see alike.

    Args:
        scale: smallest and largest share of a picture's area that is cut out, like [0.08, 1.0].
        ratio: smallest and largest ratio of its width to its height, like [0.75, 1.3333].
        hflip: probability of a mirror image.
        vflip: probability of a picture upside down.
        color_jitter: largest change of brightness, contrast and saturation, as a share; 0: none.
        auto_augment: timm's name of a policy, like rand-m9-mstd0.5, augmix-m5-w3 or original; empty: none.
        interpolation: bilinear, bicubic, or random: one of both for each picture.
        random_erasing: probability that a rectangle is blackened.
        mixup: alpha of the shares in which two pictures, and their labels, are mixed; 0: none.
        cutmix: alpha of the sizes of a piece of another picture that is put in; 0: none. With mixup too, a coin decides
            for each batch.
    """

    scale: tuple[float, ...] = (0.08, 1.0)
    ratio: tuple[float, ...] = (0.75, 4 / 3)
    hflip: float = 0.5
    vflip: float = 0.0
    color_jitter: float = 0.4
    auto_augment: str = ""
    interpolation: Interpolation = "random"
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        require_at_least(0, self, "hflip", "vflip", "color_jitter", "random_erasing", "mixup", "cutmix")
        require_at_most(1, self, "hflip", "vflip", "random_erasing")
        for name in ("scale", "ratio"):
            bounds = getattr(self, name)
            if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
                raise ValueError(f"{name} must be two numbers above 0, the smaller first, got {list(bounds)}")
        if self.scale[1] > 1:
            raise ValueError(f"scale must not be above 1, got {list(self.scale)}")

    @property
    def mixes(self) -> bool:
        """Whether labels become probabilities."""
        return bool(self.mixup or self.cutmix)


def make_augmenting(augmentation: AugmentationConfig, side: int) -> Transform:
    """That of training pictures."""
    made = load_timm().data.create_transform(
        side,
        is_training=True,
        normalize=False,
        scale=augmentation.scale,
        ratio=augmentation.ratio,
        hflip=augmentation.hflip,
        vflip=augmentation.vflip,
        color_jitter=augmentation.color_jitter or None,
        auto_augment=augmentation.auto_augment or None,
        interpolation=augmentation.interpolation,
    )
    if augmentation.random_erasing:
        made.transforms.append(_Erasing(augmentation.random_erasing))
    return made  # type: ignore[no-any-return]


def make_plain(side: int, crop: float, interpolation: str) -> Transform:
    """That of test pictures: resized, and the middle cut out.

    Args:
        side: pixels.
        crop: share of the shorter side that is kept.
        interpolation: bilinear or bicubic.
    """
    made: Transform = load_timm().data.create_transform(
        side, is_training=False, normalize=False, interpolation=interpolation, crop_pct=crop
    )
    return made


def require_policy(name: str) -> None:
    """Refuse a policy of augmentation that timm does not know.

    Raises:
        UserError: with what timm says of it.
    """
    try:
        load_timm().data.create_transform(8, is_training=True, normalize=False, auto_augment=name)
    except (AssertionError, KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"augmentation.auto_augment: timm knows no policy {name!r} ({type(error).__name__}: {error}); there are "
            "rand-m9-mstd0.5, augmix-m5-w3, original, originalr, v0, v0r, 3a, and others"
        ) from None


class Mixing:
    """timm's mixup and CutMix of a batch: pictures as floats from 0 to 255, labels as probabilities."""

    def __init__(self, augmentation: AugmentationConfig, classes: int) -> None:
        self._mix = load_timm().data.Mixup(
            mixup_alpha=augmentation.mixup, cutmix_alpha=augmentation.cutmix, label_smoothing=0.0, num_classes=classes
        )

    def __call__(self, samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        pictures, labels = default_collate(samples)
        mixed: tuple[Tensor, Tensor] = self._mix(pictures.float(), labels)
        return mixed


class _Erasing:
    """timm's random erasing, of bytes: a rectangle becomes black."""

    def __init__(self, probability: float) -> None:
        self._erase = load_timm().data.random_erasing.RandomErasing(probability, mode="const", device="cpu")

    def __call__(self, picture: Tensor) -> Tensor:
        erased: Tensor = self._erase(picture)
        return erased
