"""The logits of a classifier for a set of images, and a check that they are finite.

Contract: in evaluation mode, without gradients; float32 out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from polydistill.learning.measures import evaluation_mode
from polydistill.learning.rewind import NonFiniteError
from polydistill.vision.images.augmentation import Normalizer
from polydistill.vision.images.data import ImageSet

BATCH = 500


def predict(
    network: nn.Module, images: ImageSet, normalizer: Normalizer, seen: Callable[[int], None] | None = None
) -> Tensor:
    """``(images, classes)`` float32 logits on the device of the images; the network's mode is as before.

    Args:
        network: of normalised pixels.
        images: at least one.
        normalizer: of the pixels.
        seen: is called after each batch with its number of images.
    """
    logits = []
    with evaluation_mode(network):
        for part in torch.split(images.images, BATCH):
            logits.append(network(normalizer(part)).float())
            if seen is not None:
                seen(len(part))
    return torch.cat(logits)


def require_finite(logits: Tensor, images: ImageSet, whose: str) -> None:
    """Refuse ``(images, classes)`` logits that are not finite.

    Raises:
        NonFiniteError: naming ``whose`` they are; its batch has the ``rows`` of the first 100 such images, and their
            ``images`` (pixels), ``labels`` and ``scores``.
    """
    rows = logits.isfinite().all(dim=1).logical_not().nonzero().flatten()
    if len(rows):
        some = rows[:100]
        batch = {"rows": some, "images": images.images[some], "labels": images.labels[some], "scores": logits[some]}
        raise NonFiniteError(f"the scores of {whose} are not finite for {len(rows):,} of {len(images):,}", batch)
