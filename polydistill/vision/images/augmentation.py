"""Flip and crop on whole batches, on the device, from numbers drawn beforehand.

The recipe of Wide-ResNet: flip left and right with probability 1/2, pad by 4 pixels of reflection, cut out 32 x 32 at
random. All random numbers of an epoch are drawn at once, on the CPU: the order of the images, and for each its flip and
its offset. So a batch depends on (seed, generation, epoch, position) and on nothing else: not on the device, not on
the number of processes, not on what was drawn before; and an epoch can be entered in the middle.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from polydistill.streams import torch_stream
from polydistill.vision.images.archives import SIDE
from polydistill.vision.images.data import ImageSet, Normalization

PAD = 4
INDEX, FLIP, ROW, COLUMN = range(4)  # the columns of a plan


class Normalizer(NamedTuple):
    """Turns uint8 pixels into normalised floats: ``pixel * scale + shift``, both ``(3, 1, 1)`` float32."""

    scale: Tensor
    shift: Tensor

    @classmethod
    def of(cls, normalization: Normalization, device: torch.device | str = "cpu") -> Normalizer:
        """The normaliser on ``device``."""
        mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in normalization)
        return cls((1 / (255 * std)).float().to(device), (-mean / std).float().to(device))

    def __call__(self, images: Tensor) -> Tensor:
        """``(batch, height, width, 3)`` uint8 to ``(batch, 3, height, width)`` float32, channels last in memory."""
        return torch.addcmul(self.shift, images.permute(0, 3, 1, 2).float(), self.scale)


def draw_plan(
    n_images: int, seed: int, generation: int, epoch: int, *, augment: bool | Literal["flip"] = True
) -> Tensor:
    """What one epoch does with each image.

    Args:
        n_images: size of the training set.
        seed: root of the random streams.
        generation: that learns from these images.
        epoch: from 0.
        augment: False leaves the images as they are, flip does not crop them; order and flips are the same.

    Returns:
        ``(n_images, 4)`` int64 on the CPU, in the order of learning: index of the image, flip (0 or 1), and row and
        column of the crop in the padded image (0 to 8; 4 is the middle).
    """
    order = torch.randperm(n_images, generator=torch_stream(seed, f"data order, epoch {epoch}", generation))
    if not augment:
        still = torch.tensor([0, PAD, PAD]).expand(n_images, 3)
        return torch.cat([order[:, None], still], dim=1)
    generator = torch_stream(seed, f"augmentation, epoch {epoch}", generation)
    flips = torch.randint(2, (n_images, 1), generator=generator)
    if augment == "flip":
        return torch.cat([order[:, None], flips, torch.full((n_images, 2), PAD)], dim=1)
    offsets = torch.randint(2 * PAD + 1, (n_images, 2), generator=generator)
    return torch.cat([order[:, None], flips, offsets], dim=1)


def take_batch(data: ImageSet, plan: Tensor) -> tuple[Tensor, Tensor]:
    """The augmented images and the labels of some rows of a plan; no synchronisation with the device.

    Args:
        data: the training set.
        plan: ``(batch, 4)`` int64 from :func:`draw_plan`, on the device of ``data``.

    Returns:
        ``(batch, 32, 32, 3)`` uint8 and ``(batch,)`` int64.
    """
    steps = torch.arange(SIDE, device=plan.device)
    rows = _reflect(plan[:, ROW, None] + steps)
    columns = _reflect(plan[:, COLUMN, None] + torch.where(plan[:, FLIP, None] > 0, SIDE - 1 - steps, steps))
    index = plan[:, INDEX]
    return data.images[index[:, None, None], rows[:, :, None], columns[:, None, :]], data.labels[index]


def _reflect(positions: Tensor) -> Tensor:
    """Positions in the padded image to those in the image: -1 is 1, 32 is 30."""
    last = SIDE - 1
    return last - (last - (positions - PAD).abs()).abs()
