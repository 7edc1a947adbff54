"""The forms of batches that one's own data may have, and how they are read.

A batch is ``(inputs, labels)``, ``(input, input, ..., labels)`` with the labels last, or a mapping with the labels
under "labels" (or "label"), whose other entries are the module's keyword arguments.

Contract: ``Batch.labels`` are ``(positions,)`` int64, or ``(positions, classes)`` probabilities, where a position is a
sample, or each token of a sequence, or each pixel of an image. Nothing waits for a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from polydistill.losses.checks import are_probabilities, check_integers, describe

LABELS = ("labels", "label")
CLASS_OF_EACH = "give the class of each sample, as by labels.argmax(dim=-1)"


class Batch(NamedTuple):
    """One batch, ready for a module.

    Attributes:
        inputs: positional arguments.
        keywords: keyword arguments.
        labels: ``(positions,)`` int64, or ``(positions, classes)`` floats: probabilities.
        shape: of the positions, like ``(batch,)`` or ``(batch, time)``.
    """

    inputs: tuple[Any, ...]
    keywords: dict[str, Any]
    labels: Tensor
    shape: torch.Size

    def split(self, parts: int) -> list[Batch]:
        """The batch in so many parts of samples in a row, as equal as can be; fewer where it has fewer samples.

        Raises:
            ValueError: an input is no tensor with an entry for each sample, nor made of such.
        """
        samples, positions = self.shape[0], self.shape[1:].numel()
        ends = [samples * part // parts for part in range(parts + 1)]
        return [
            Batch(
                tuple(_part(one, start, end, samples) for one in self.inputs),
                _part(self.keywords, start, end, samples),
                self.labels[start * positions : end * positions],
                torch.Size((end - start, *self.shape[1:])),
            )
            for start, end in pairwise(ends)
            if end > start
        ]

    def to(self, device: torch.device | None) -> Batch:
        """The same on ``device``, where the module lies; None: as it is."""
        return Batch(move(self.inputs, device), move(self.keywords, device), move(self.labels, device), self.shape)


def read_batch(batch: Any) -> Batch:
    """Take a batch apart; its tensors stay where they are.

    Args:
        batch: see the head of this file.

    Raises:
        TypeError: it is none of these, or its labels are neither integers nor ``(..., classes)`` floats.
        ValueError: it is a sample, not a batch of them.
    """
    if isinstance(batch, Mapping):
        name = next((name for name in LABELS if name in batch), None)
        if name is None:
            raise TypeError(f'a batch must have its labels under "labels", this one has {", ".join(map(str, batch))}')
        inputs, keywords = (), {str(key): value for key, value in batch.items() if key != name}
        labels = batch[name]
    elif isinstance(batch, tuple | list) and len(batch) >= 2:
        inputs, keywords, labels = tuple(batch[:-1]), {}, batch[-1]
    else:
        what = f"a {type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, tuple | list) else "")
        raise TypeError(f"a batch must be (inputs, labels) or a mapping with labels, got {what}")
    if not isinstance(labels, Tensor):
        try:
            labels = torch.as_tensor(labels)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"labels must be a tensor of integers, got a {type(labels).__name__}") from None
    if are_probabilities(labels):
        return Batch(inputs, keywords, labels.flatten(0, -2), labels.shape[:-1])
    if labels.dtype is torch.bool or labels.dtype.is_floating_point:
        raise TypeError(f"labels must be a tensor of integers, got {describe(labels)}: labels.long() makes them so")
    check_integers("labels", labels)
    if not labels.dim():
        raise ValueError("labels must be those of a batch, got a single one: put a data set into a DataLoader")
    return Batch(inputs, keywords, labels.reshape(-1).long(), labels.shape)


def move(value: Any, device: torch.device | None) -> Any:
    """``value`` with its tensors on ``device``, in tuples, lists and mappings, and in what has a method ``to``."""
    if device is None or value is None or isinstance(value, nn.Module):
        return value
    if isinstance(value, Tensor):
        return value if value.device == device else value.to(device, non_blocking=True)
    if callable(getattr(value, "to", None)):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: move(entry, device) for key, entry in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(move(entry, device) for entry in value))
    if isinstance(value, tuple | list):
        return type(value)(move(entry, device) for entry in value)
    return value


def _part(value: Any, start: int, end: int, samples: int) -> Any:
    """Samples ``start`` to ``end`` of an input; what is neither a tensor nor texts belongs to all samples."""
    if isinstance(value, Tensor):
        if not value.dim() or len(value) != samples:
            raise ValueError(
                f"an input of shape {tuple(value.shape)} cannot be divided into parts of {samples} samples: leave "
                "`parts` out, or give inputs whose first dimension are the samples"
            )
        return value[start:end]
    if isinstance(value, Mapping):
        return {key: _part(entry, start, end, samples) for key, entry in value.items()}
    if are_texts(value, samples):
        return value[start:end]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_part(entry, start, end, samples) for entry in value))
    if isinstance(value, tuple | list):
        return type(value)(_part(entry, start, end, samples) for entry in value)
    return value


def are_texts(value: Any, samples: int) -> bool:
    """Whether it is a text for each sample, as a ``DataLoader`` gives their names: a list, while numbers become a
    tensor."""
    return isinstance(value, tuple | list) and len(value) == samples and all(isinstance(one, str) for one in value)


def float_types(value: Any) -> set[torch.dtype]:
    """Those of the floating-point tensors in ``value``, in tuples, lists and mappings too."""
    if isinstance(value, Tensor):
        return {value.dtype} if value.is_floating_point() else set()
    if isinstance(value, Mapping):
        value = list(value.values())
    return set().union(*map(float_types, value)) if isinstance(value, tuple | list) else set()


def device_of(module: nn.Module) -> torch.device | None:
    """The device of a module's first tensor; None where it has no tensor, or one on ``meta``."""
    tensor = next((tensor for tensors in (module.parameters(), module.buffers()) for tensor in tensors), None)
    return None if tensor is None or tensor.is_meta else tensor.device


def no_autocast(module: nn.Module) -> torch.autocast:
    """A context in which autocast around it is not heard: it would keep casts of weights that have learned since, and
    compute gradients of what was computed in float32. A module's own is."""
    device = device_of(module)
    return torch.autocast("cpu" if device is None else device.type, enabled=False)
