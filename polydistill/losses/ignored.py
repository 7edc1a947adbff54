"""Samples that do not count: padding, which labels mark by a number that is no class.

The rule, for every loss: a sample whose label is ``ignore_index`` (of labels that are probabilities: whose row is all
zeros) has loss 0 and no gradient, from the label and from the teacher, and a loss that normalises over the batch leaves
it out. The mean over the samples that count is ``loss.sum() / (labels != ignore_index).sum()``; ``loss.mean()`` divides
by the number of all samples: it is too small.

Contract: nothing waits for a GPU.
"""

from __future__ import annotations

from torch import Tensor

from polydistill.losses.checks import are_probabilities, check_integer, check_integers

LEAST = -(1 << 63)


def find_counted(labels: Tensor | None, ignore_index: int | None) -> Tensor | None:
    """``(..., batch)`` bool, True where a sample counts; None: all samples count.

    Args:
        labels: ``(..., batch)`` integers, or ``(..., batch, classes)`` probabilities.
        ignore_index: None: all count.

    Raises:
        TypeError: ``ignore_index`` is no integer, or the labels are neither.
        ValueError: ``ignore_index`` is given without labels.
    """
    if ignore_index is None:
        return None
    check_integer("ignore_index", ignore_index, LEAST, -LEAST - 1)
    if labels is None:
        raise ValueError(f"ignore_index is {ignore_index}, and labels is None: pass labels, or leave ignore_index out")
    if are_probabilities(labels):
        return (labels != 0).any(dim=-1)  # NaN counts, and is seen in the loss
    check_integers("labels", labels)
    return labels != ignore_index


def set_aside(labels: Tensor, counted: Tensor | None) -> Tensor:
    """The labels, with class 0 where the sample does not count, or with equal probabilities of all classes."""
    if counted is None:
        return labels
    if are_probabilities(labels):
        return labels.masked_fill(~counted.unsqueeze(-1), 1 / labels.shape[-1])
    return labels.masked_fill(~counted, 0)


def most_likely(labels: Tensor, ignore_index: int | None) -> Tensor:
    """``(..., batch)`` int64: labels that are probabilities as the class that has most of each, and ``ignore_index``
    where none has anything; others as they are."""
    if not are_probabilities(labels):
        return labels
    classes, counted = labels.argmax(dim=-1), find_counted(labels, ignore_index)
    return classes if counted is None or ignore_index is None else classes.masked_fill(~counted, ignore_index)


def silence(values: Tensor, counted: Tensor | None) -> Tensor:
    """``values`` of each sample, 0 (False) without a gradient where it does not count."""
    return values if counted is None else values.masked_fill(~counted, 0)
