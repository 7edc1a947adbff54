"""Samples that count for nothing: padding, which labels mark by a number that is no class.

The rule, for every loss: a sample whose label is ``ignore_index`` has loss 0 and no gradient, from the labels and from
the teacher, and is not there for a loss that normalises over the batch. The mean over the samples that count is
``loss.sum() / (labels != ignore_index).sum()``; ``loss.mean()`` divides by the others too, which is too small.

Contract: nothing waits for a GPU.
"""

from __future__ import annotations

from torch import Tensor

from polydistill.losses.checks import check_integer, check_integers

LEAST = -(1 << 63)


def find_counted(labels: Tensor | None, ignore_index: int | None) -> Tensor | None:
    """``(..., batch)`` bool, True where a sample counts; None: all do, since nothing is to be ignored.

    Raises:
        TypeError: ``ignore_index`` is no integer, or the labels are no tensor of integers.
        ValueError: there are no labels to be ignored.
    """
    if ignore_index is None:
        return None
    check_integer("ignore_index", ignore_index, LEAST, -LEAST - 1)
    if labels is None:
        raise ValueError(f"ignore_index {ignore_index} is looked for in labels, and labels is None")
    check_integers("labels", labels)
    return labels != ignore_index


def set_aside(labels: Tensor, counted: Tensor | None) -> Tensor:
    """The labels with a class, 0, where the sample does not count."""
    return labels if counted is None else labels.masked_fill(~counted, 0)


def silence(values: Tensor, counted: Tensor | None) -> Tensor:
    """``values`` of each sample, 0 (False) without a gradient where it does not count."""
    return values if counted is None else values.masked_fill(~counted, 0)
