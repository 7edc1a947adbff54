"""A user's own loss compared with an objective: whether it has a gradient, which rows it leaves out, what it is.

Questions in this order: has it a gradient, and the same one at each call; one value, or one for each sample; which rows
have a gradient; which terms is it the sum of (:mod:`~polydistill.losses.examination.comparison`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from polydistill.losses.examination.asking import Answer, LossFunction, Place, ask
from polydistill.losses.examination.batch import take_rows
from polydistill.losses.examination.comparison import Comparison
from polydistill.losses.examination.findings import Finding
from polydistill.losses.objectives import Objective

SAME = 1e-4  # difference of two calls over the norm
VANISHED = 1e-13  # norm of the gradient over the objective's: rounding of float64


def compare_loss(
    objective: Objective,
    loss_function: LossFunction,
    place: Place,
    options: Mapping[str, Any],
    ignore_index: int | None,
) -> Iterator[Finding]:
    """What a user's own loss is, and what is wrong with it.

    Args:
        objective: what is meant.
        loss_function: of ``(student scores, teacher scores, labels)``.
        place: the batch, as the loss takes it.
        options: of the objective.
        ignore_index: label of rows that do not count, or None.
    """
    answer, again = ask(loss_function, place), ask(loss_function, place)
    if isinstance(answer, Finding) or isinstance(again, Finding):
        yield answer if isinstance(answer, Finding) else Finding("cannot tell", "your loss changes from call to call")
        return
    if not answer.finite:
        yield Finding("wrong", "the value of your loss is not finite on this batch")
    if float((answer.gradient - again.gradient).norm()) > SAME * float(answer.gradient.norm()):
        text = "your loss is random, so it cannot be examined: switch its dropout or noise off for the doctor"
        yield Finding("cannot tell", text)
        return
    comparison = Comparison(objective, loss_function, place, options, ignore_index)
    yield from _examine_rows(answer, place, comparison)
    if _is_zero(answer, comparison):
        yield Finding("wrong", "the gradient of your loss is 0 in every sample")
        return
    silent = comparison.find_silent(answer, place)
    if not bool(silent.any()):
        yield comparison.examine(answer)
        return
    places = silent.nonzero().flatten().tolist()
    which = ", ".join(map(str, places[:3])) + (", ..." if places[3:] else "")
    text = f"your loss has no gradient in {len(places)} of {len(silent)} samples ({which})"
    yield Finding("suspicious", f"{text}: fine only if it leaves them out on purpose")
    level, text = comparison.examine(answer)
    yield Finding(level, f"of the other samples {text}")


def _examine_rows(answer: Answer, place: Place, comparison: Comparison) -> Iterator[Finding]:
    """A value per class, and rows that have a gradient and should not."""
    if answer.shape == place.scores.shape:
        text = f"your loss has a value per class, of shape {tuple(answer.shape)}: sum it over the classes, then average"
        yield Finding("suspicious", text)
    ignore_index = comparison.ignore_index
    kept = take_rows(*place, {}, ignore_index).kept
    if kept is not None and bool(answer.gradient.flatten(0, -2)[~kept].any()):
        text = f"your loss has a gradient at rows whose label is {ignore_index}: leave them out of the soft term too"
        yield Finding("suspicious", text)


def _is_zero(answer: Answer, comparison: Comparison) -> bool:
    rows, gradient = comparison.take(answer, comparison.place)
    size = float(gradient.norm()) * (1 if answer.shape else len(gradient))
    return size <= (VANISHED * float(comparison.find_own_gradient(rows).norm()) if answer.exact else 0.0)
