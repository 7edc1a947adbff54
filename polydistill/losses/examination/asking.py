"""The gradient of a user's own loss: at the batch's scores, and at scores drawn at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from polydistill.losses.examination.findings import Finding

LossFunction = Callable[[Tensor, "Tensor | None", "Tensor | None"], Any]

SPREAD = 1.5  # standard deviation of drawn scores at T = 1


class Place(NamedTuple):
    """The arguments of a loss: scores, the teacher's scores, labels."""

    scores: Tensor
    targets: Tensor
    labels: Tensor | None


class Answer(NamedTuple):
    """The gradient of a loss at a place.

    Attributes:
        gradient: as the scores, float64.
        shape: of the loss; () if it is one number.
        coarse: the loss is a 16-bit float, whose rounding is in the gradient.
        finite: the loss is finite.
        exact: it was computed in float64.
    """

    gradient: Tensor
    shape: torch.Size
    coarse: bool
    finite: bool
    exact: bool


def ask(loss_function: LossFunction, place: Place) -> Answer | Finding:
    """The gradient, in float64 where the loss takes it; or a finding that says why there is none."""
    exact = place._replace(scores=place.scores.double(), targets=place.targets.double())
    try:
        return _differentiate(loss_function, exact, exact=True)
    except Exception:  # the loss may need a type, such as that of its class weights: then its own error counts
        return _differentiate(loss_function, place, exact=False)


def ask_elsewhere(loss_function: LossFunction, place: Place, temperature: float) -> tuple[Place, Answer] | None:
    """The gradient at drawn scores, where no softmax is flat or saturated; None if the loss fails there."""
    if not place.targets.isfinite().all():
        return None
    generator = torch.Generator().manual_seed(0)
    scores, targets = (
        (torch.randn(side.shape, generator=generator) * (SPREAD * temperature**0.5)).to(side)
        for side in (place.scores, place.targets)
    )
    drawn = Place(scores, targets, place.labels)
    try:
        answer = ask(loss_function, drawn)
    except Exception:  # a loss may refuse scores that are not a network's in any way
        return None
    return None if isinstance(answer, Finding) or not bool(answer.gradient.any()) else (drawn, answer)


def _differentiate(loss_function: LossFunction, place: Place, *, exact: bool) -> Answer | Finding:
    with torch.enable_grad():
        leaf = place.scores.detach().clone().requires_grad_()
        loss = loss_function(leaf, place.targets, place.labels)
        if not isinstance(loss, Tensor):
            return Finding("wrong", f"your loss must be a tensor, got a {type(loss).__name__}: it has no gradient")
        gradient = torch.autograd.grad(loss.sum(), leaf, allow_unused=True)[0] if loss.requires_grad else None
    if gradient is None:
        return Finding("wrong", "your loss has no gradient with respect to the student's scores")
    if not gradient.isfinite().all():
        return Finding("wrong", "your loss has a gradient that is not finite")
    coarse = loss.dtype in (torch.float16, torch.bfloat16)
    return Answer(gradient.double(), loss.shape, coarse, bool(loss.isfinite().all()), exact)
