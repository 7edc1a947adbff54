"""What one's own modules give for a batch, and how scores are read from it.

An output is a tensor of scores, anything with ``.logits`` or ``["logits"]``, or a tuple whose first is one of these;
or what :class:`Reading` says. Contract: scores are ``(positions, classes)``, in the order of the batch's labels.
Nothing waits for a GPU.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from polydistill.losses.checks import describe
from polydistill.losses.outputs import logits_of
from polydistill.modules.batches import CLASS_OF_EACH, Batch

# module -> the dimension of the classes in its scores of more than two dimensions: -1 or 1
_CLASSES: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
Output = int | str | Callable[[Any], Any] | None


@dataclass(frozen=True)
class Reading:
    """How a network is asked, and where its scores are in what it gives.

    Args:
        output: the index or the key (or the name of the attribute) of the element that holds them, or a function of the
            output; None: see the head of this file.
        inputs: a function of what the network is called with, which gives what it sees instead: one input, a tuple of
            them, or a mapping of keyword arguments; None: it sees the batch's.
        name: by which the user gives ``output``, for errors.
    """

    output: Output = None
    inputs: Callable[..., Any] | None = None
    name: str = "output"

    def score(self, module: nn.Module, batch: Batch) -> Tensor:
        """``(positions, classes)`` scores of the batch. Gradient flows.

        Raises:
            TypeError: the module gives no scores.
            ValueError: their shape does not fit the labels'.
        """
        return _line_up(module, read_scores(self._choose(self._ask(module, batch))), batch.shape)

    def _ask(self, module: nn.Module, batch: Batch) -> Any:
        if self.inputs is None:
            return module(*batch.inputs, **batch.keywords)
        seen = self.inputs(*batch.inputs, **batch.keywords)
        if isinstance(seen, Mapping):
            return module(**seen)
        return module(*seen) if isinstance(seen, tuple) else module(seen)

    def _choose(self, output: Any) -> Any:
        chosen = self.output
        if chosen is None:
            return output
        if callable(chosen):
            return chosen(output)
        try:
            if isinstance(chosen, str) and not isinstance(output, Mapping):
                return getattr(output, chosen)
            if isinstance(output, Tensor):  # of which an index would be a sample
                raise TypeError
            return output[chosen]
        except (LookupError, AttributeError, TypeError):
            there = f"{tuple(output)}" if isinstance(output, Mapping) else f"a {type(output).__name__}"
            raise TypeError(
                f"`{self.name}` is {chosen!r}, and the network gives {there}, which has no such element"
            ) from None


AS_GIVEN = Reading()


def read_scores(output: Any) -> Tensor:
    """The scores of a module's output, see the head of this file.

    Raises:
        TypeError: there are none, or they are no floats.
    """
    found = logits_of(output)
    if not found.dtype.is_floating_point:
        raise TypeError(f"a network must give scores, which are floats, got {describe(found)}")
    return found


def _line_up(module: nn.Module, scores: Tensor, shape: torch.Size) -> Tensor:
    """``(*shape, classes)``, or ``(batch, classes, *rest)`` as of images, to ``(positions, classes)``; labels that are
    a column, ``(batch, 1)``, are those of a batch."""
    if scores.dim() == 2 and shape in (scores.shape[:1], (len(scores), 1)):
        return scores
    axis = _find_classes(module, scores, shape)
    return scores.movedim(axis, -1).reshape(-1, scores.shape[axis])


def _find_classes(module: nn.Module, scores: Tensor, shape: torch.Size) -> int:
    """The dimension of the classes, -1 or 1.

    Where there are as many positions as classes both fit the labels: it is then what it was for the module's other
    batches, or else, with a warning, what is usual: (batch, time, classes), (batch, classes, height, width).
    """
    rest = {axis: [size for i, size in enumerate(scores.shape) if i != axis % scores.dim()] for axis in (-1, 1)}
    fit = [axis for axis, sizes in rest.items() if scores.dim() > 2 and sizes == list(shape)]
    found = tuple(scores.shape)
    if not fit:
        advice = f"; for one-hot labels {CLASS_OF_EACH}" if scores.shape == shape and scores.dim() > 1 else ""
        raise ValueError(
            f"scores of shape {found} do not fit labels of shape {tuple(shape)}: there must be one label "
            "for each row of scores, (batch, classes) and (batch,), or (batch, time, classes) and (batch, time)"
            + advice
        )
    if module not in _CLASSES:
        _CLASSES[module] = fit[0] if len(fit) == 1 else (-1 if scores.dim() == 3 else 1)
        if len(fit) == 2:
            warnings.warn(
                f"scores of shape {found} fit labels of shape {tuple(shape)} in two ways; the classes are "
                f"taken to be in dimension {_CLASSES[module] % scores.dim()}",
                stacklevel=2,
            )
    if _CLASSES[module] not in fit:
        raise ValueError(
            f"scores of shape {found} have their classes in dimension {fit[0] % scores.dim()}, those of a "
            f"batch before in dimension {_CLASSES[module] % scores.dim()}: put them last, (batch, time, classes)"
        )
    return _CLASSES[module]
