"""Labels that a training, a test or a validation can take: classes that there are, probabilities that are some.

Contract: what is wrong is named with the batch that has it. A GPU's labels are waited for.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from polydistill.losses.checks import are_probabilities, sum_to_one
from polydistill.losses.ignored import find_counted
from polydistill.modules.batches import CLASS_OF_EACH, read_batch


def check_labels(labels: Tensor, classes: int, where: str, ignore_index: int | None) -> None:
    """Refuse a label that is no class, and probabilities that are none.

    Raises:
        ValueError: naming it.
    """
    if are_probabilities(labels):
        _check_probabilities(labels, classes, where, ignore_index)
        return
    values = (labels if labels.device.type == "cpu" else labels.cpu()).numpy()
    wrong = values[((values < 0) | (values >= classes)) & (values != (0 if ignore_index is None else ignore_index))]
    if wrong.size:
        besides = "" if ignore_index is None else f", or {ignore_index} to be ignored"
        raise ValueError(f"labels must be from 0 to {classes - 1}{besides}; {where} has {wrong[0]}")


def _check_probabilities(labels: Tensor, classes: int, where: str, ignore_index: int | None) -> None:
    if labels.shape[-1] != classes:
        raise ValueError(
            f"labels that are probabilities must be those of {classes} classes; {where} has {labels.shape[-1]}"
        )
    counted = find_counted(labels, ignore_index)
    wrong = labels[~sum_to_one(labels) if counted is None else counted & ~sum_to_one(labels)]
    if len(wrong):
        besides = "" if ignore_index is None else ", or are all 0 to be ignored"
        row = f"a row from {wrong[0].min():g} to {wrong[0].max():g} that adds up to {wrong[0].sum():g}"
        raise ValueError(f"labels that are probabilities are at least 0 and add up to 1{besides}; {where} has {row}")


def require_classes(labels: Tensor, where: str) -> None:
    """Refuse labels that are probabilities, where students are measured.

    Raises:
        TypeError: they are.
    """
    if are_probabilities(labels):
        raise TypeError(f"{where} has labels that are probabilities, which are for `batches` alone: {CLASS_OF_EACH}")


def check_all_labels(batches: Any, name: str, classes: int, ignore_index: int | None) -> None:
    """Refuse a label that is no class in any batch of a list or tuple, which costs no loading.

    Raises:
        ValueError: naming it.
        TypeError: labels of others than ``batches`` are probabilities.
    """
    for number, batch in enumerate(batches if isinstance(batches, list | tuple) else ()):
        labels, where = read_batch(batch).labels, f"batch {number + 1} of `{name}`"
        if name != "batches":
            require_classes(labels, where)
        check_labels(labels, classes, where, ignore_index)
