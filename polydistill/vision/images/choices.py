"""Which images are held out for validation, and which few of each class are learned from.

Contract: a choice depends on the labels alone, not on any seed of a run: every run has the same images.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from polydistill.errors import UserError
from polydistill.streams import numpy_stream


def choose_validation(labels: NDArray[np.uint8], n: int) -> NDArray[np.bool_]:
    """Which ``n`` images are held out: the same share of every class, the same images in every run.

    Args:
        labels: ``(images,)``.
        n: how many; 5,000 of CIFAR-100's 50,000 are 50 of each class.

    Returns:
        ``(images,)`` bool.
    """
    by_class, ranks, counts = _shuffle_within_classes(labels, "validation split")
    share_of_class = (ranks + 0.5) / np.repeat(counts, counts)
    return _mark(by_class[np.argsort(share_of_class, kind="stable")[:n]], len(labels))


def choose_per_class(labels: NDArray[np.uint8], n: int, n_classes: int) -> NDArray[np.bool_]:
    """Which ``n`` images of each class are learned from: the same ones in every run, a smaller choice within a larger.

    Args:
        labels: ``(images,)``, below ``n_classes``.
        n: of each class.
        n_classes: how many classes there are.

    Returns:
        ``(images,)`` bool.

    Raises:
        UserError: a class has fewer images.
    """
    by_class, ranks, counts = _shuffle_within_classes(labels, "images per class")
    fewest = int(np.argmin(counts[:n_classes]))
    if counts[fewest] < n:
        raise UserError(
            f"data.images_per_class is {n:,}, but class {fewest} has {counts[fewest]:,} images beside those of "
            "validation"
        )
    return _mark(by_class[ranks < n], len(labels))


def _shuffle_within_classes(labels: NDArray[np.uint8], stream: str) -> tuple[NDArray[np.int64], ...]:
    """Rows class by class, within a class in random order; the place of each in its class, from 0; and the images of
    each of 256 classes."""
    order = numpy_stream(0, stream).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels, minlength=256)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    return by_class, np.arange(len(labels)) - starts, counts


def _mark(rows: NDArray[np.int64], n: int) -> NDArray[np.bool_]:
    marked = np.zeros(n, dtype=bool)
    marked[rows] = True
    return marked
