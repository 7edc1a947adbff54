"""A term of a loss as a function of the scores, and the terms of the labels, right and mistaken.

Symbols: z student scores, t teacher scores, ``(R, C)``; y labels ``(R,)``; T temperature. A term is summed over rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

Function = Callable[[Tensor, Tensor, Tensor], Tensor]

UNIFORM = "cross-entropy with a uniform target"  # what smoothing adds, to labels or to the teacher's targets


class Form(NamedTuple):
    """One term.

    Attributes:
        name: what it is, to be read after a weight.
        fault: what is wrong with it and what to do; empty for the right one.
        function: ``(z, t, y)`` to the sum over the rows.
        temperature: its square is the factor that belongs to the term; 1: no factor.
        columns: further terms that may come with any weight, such as the uniform part of smoothed labels.
        coupled: its rows depend on each other, so that it needs all of them, and more than one.
        another: what it is instead, where it is a loss that may well be meant; then it has no fault.
    """

    name: str
    fault: str
    function: Function
    temperature: float = 1.0
    columns: tuple[Function, ...] = ()
    coupled: bool = False
    another: str = ""

    @property
    def right(self) -> bool:
        """It is what the objective asks for."""
        return not self.fault and not self.another


def label_forms(temperature: float, objective: str) -> Iterator[Form]:
    """Terms of the labels; among them the right one, unless it is the objective itself."""
    smoothed = "its labels or targets are smoothed, which the objective does not do"
    yield Form(UNIFORM, smoothed, _uniform)
    if objective != "cross_entropy":
        yield Form("cross-entropy", "", _entropy(1.0))
        yield Form("cross-entropy of smoothed labels", smoothed, _entropy(1.0), columns=(_uniform,))
    if temperature != 1.0:
        fault = f"the label term is tempered by {temperature:g}: give it the scores as they are"
        yield Form("cross-entropy of tempered scores", fault, _entropy(temperature))
    fault = "the label term is given probabilities: F.cross_entropy takes scores and does the softmax itself"
    yield Form("cross-entropy of probabilities", fault, _entropy_of_probabilities)
    fault = "the label term lacks the logarithm: F.nll_loss takes log_softmax(student)"
    yield Form("minus the label's probability", fault, _minus_probability)
    fault = "the label term lacks the softmax: F.nll_loss takes log_softmax(student), or use F.cross_entropy"
    yield Form("minus the label's score", fault, _minus_score)
    for shift in (1, -1):
        yield Form("cross-entropy of shifted labels", "the labels are shifted by one", _entropy(1.0, shift))
        fault = "the labels are those of the next or last sample: keep scores and labels in one order"
        yield Form("cross-entropy with the labels of other samples", fault, _entropy_of_others(shift), coupled=True)
    fault = "the label term looks at each class alone: use F.cross_entropy"
    yield Form("binary cross-entropy of the labels", fault, _binary)
    fault = "the label term is a squared distance: use F.cross_entropy"
    yield Form("squared distance of probabilities to the labels", fault, _distance)


def _entropy(temperature: float, shift: int = 0) -> Function:
    def term(z: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(z / temperature, (y + shift) % z.shape[-1], reduction="sum")

    return term


def _entropy_of_others(shift: int) -> Function:
    def term(z: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(z, y.roll(shift), reduction="sum")

    return term


def _entropy_of_probabilities(z: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z.softmax(-1), y, reduction="sum")


def _minus_probability(z: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return _minus_score(z.softmax(-1), t, y)


def _minus_score(z: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return -z.gather(1, y[:, None]).sum()


def _binary(z: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(z, _one_hot(z, y), reduction="sum")


def _distance(z: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return (z.softmax(-1) - _one_hot(z, y)).square().sum()


def _uniform(z: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return -z.log_softmax(-1).mean(-1).sum()


def _one_hot(z: Tensor, y: Tensor) -> Tensor:
    return F.one_hot(y, z.shape[-1]).to(z.dtype)
