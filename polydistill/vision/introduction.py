"""How good a teacher from a file is, said before its student learns; and whether another normalisation suits it better.

Public code normalises the pixels of CIFAR in several ways, and a file of weights does not say in which. The wrong one
costs a teacher some points of accuracy, or nearly all.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from polydistill.learning.taught import tell_accuracy
from polydistill.vision.evaluation import predict
from polydistill.vision.images.augmentation import Normalizer
from polydistill.vision.images.data import ImageSet, Normalization

TRIED = 1_000  # images
MUCH = 0.02  # of accuracy on them; two normalisations differ by less where they are nearly the same
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
KNOWN = {  # what public code takes, and which code does
    "CIFAR-10's": Normalization(CIFAR10_MEAN, (0.247, 0.2435, 0.2616)),  # xternalz, for CIFAR-100 too
    "kuangliu's": Normalization(CIFAR10_MEAN, (0.2023, 0.1994, 0.201)),  # chenyaofo: the mean over images of their std
    "CIFAR-100's": Normalization((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),  # RepDistiller, weiaicunzai
    "ImageNet's": Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # akamaster
    "0.5 for all": Normalization((0.5,) * 3, (0.5,) * 3),
    "none": Normalization((0.0,) * 3, (1.0,) * 3),
}


class Better(NamedTuple):
    """A normalisation that suits a teacher better than the one that it was given.

    Attributes:
        name: in :data:`KNOWN`.
        accuracy: with it.
        before: with the given one, on the same images.
        images: how many they are.
    """

    name: str
    accuracy: float
    before: float
    images: int


def find_better(network: nn.Module, images: ImageSet, given: Normalization) -> Better | None:
    """Try what is known on some images; None: nothing is much better.

    Args:
        network: of pixels normalised by ``given``; in evaluation mode.
        images: of the test; up to 1,000 that lie apart by the same step are seen.
        given: the normalisation.
    """
    n = min(TRIED, len(images))
    chosen = torch.arange(n, device=images.labels.device) * len(images) // n
    some = ImageSet(images.images[chosen], images.labels[chosen])

    def accuracy(normalization: Normalization) -> float:
        logits = predict(network, some, Normalizer.of(normalization, some.labels.device))
        return int((logits.argmax(dim=1) == some.labels).sum()) / n

    before = accuracy(given)
    found = {name: accuracy(normalization) for name, normalization in KNOWN.items()}
    best = max(found, key=lambda name: found[name])
    return Better(best, found[best], before, n) if found[best] >= before + MUCH else None


def introduce(path: str, accuracy: float, classes: int, better: Better | None, *, supposed: bool) -> str:
    """One line: how good the teacher is, and what to change where something seems wrong.

    Args:
        path: of its file.
        accuracy: on the test images.
        classes: how many there are.
        better: of :func:`find_better`.
        supposed: nothing says how its pixels were normalised.
    """
    if better is not None:
        mean, std = map(list, KNOWN[better.name])
        return (
            f"{path} is right in {accuracy:.2%} of the test images; on {better.images:,} of them {better.before:.2%}, "
            f"but {better.accuracy:.2%} with another normalisation ({better.name}): choose --teacher.mean "
            f'"{mean}" --teacher.std "{std}"'
        )
    question = "are its classes in this order?"
    if supposed:
        question = f"were its pixels normalised as here (--teacher.mean, --teacher.std), {question}"
    return tell_accuracy(path, accuracy, "test images", classes, question)
