"""The logits of a classifier for a set of images, a check that they are finite, and the validation of a course.

Contract: in evaluation mode, without gradients; float32 out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from polydistill.errors import UserError
from polydistill.learning.measures import evaluation_mode, measure, require_finite_metrics
from polydistill.learning.rewind import NonFiniteError
from polydistill.lineage.course import Validation
from polydistill.vision.config import EvaluationConfig
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


def validation_of(images: ImageSet, normalizer: Normalizer, config: EvaluationConfig) -> Validation | None:
    """How a course measures its student on the validation ``images``; None where there are none, or it need not."""
    if not len(images) or not config.every_epochs:
        return None

    def measure_on_images(student: nn.Module, whose: str) -> dict[str, float]:
        try:
            logits = predict(student, images, normalizer)
        except torch.OutOfMemoryError as error:  # a smaller batch in training would not help
            raise UserError(
                f"out of memory on {images.labels.device} for {whose}, while predicting {BATCH} images at a time"
            ) from error
        require_finite(logits, images, whose)
        measured = measure(logits, images.labels)
        require_finite_metrics(measured, whose)
        return measured

    keep_best = config.selection == "best_val"
    return Validation(measure_on_images, "the validation images", config.every_epochs, keep_best)
