"""The teacher's accuracy on the labels, beside chance and the student's, and why it may be useless.

A teacher at chance is the commonest silent fault: classes in another order, labels shifted by one, inputs normalised in
another way, weights that were never loaded. Where the samples are too few to decide, the finding is "cannot tell".

Symbols: n samples, C classes, p0 the share of hits if predictions and labels were independent of each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from polydistill.losses.examination.chance import at_least, at_most, chance_of, is_better
from polydistill.losses.examination.findings import Finding, Level
from polydistill.losses.examination.normalisation import renormalised

SURE, UNSURE = 0.001, 0.05  # P of so many hits by chance: below SURE it is knowledge, above UNSURE perhaps not
WEAK = 0.25  # of the way from chance to always right; a teacher that surely has less is useless
GAIN, SENSE = 0.1, 0.3  # what another order or normalisation must add to the accuracy; and of the way from chance to 1


class Verdict(NamedTuple):
    """What the labels show.

    Attributes:
        findings: on the teacher.
        useless: the teacher is at chance or below, so that its targets need no further examination.
    """

    findings: list[Finding]
    useless: bool


def examine_accuracy(
    scores: Tensor, targets: Tensor, labels: Tensor, inputs: Any, ask_teacher: Callable[[Any], Tensor]
) -> Verdict:
    """Compare teacher, student and chance on the labels.

    Args:
        scores: ``(n, C)`` of the student.
        targets: ``(n, C)`` of the teacher (of an ensemble: as one).
        labels: ``(n,)`` integers in [0, C).
        inputs: as the teacher takes them, to be tried with another normalisation.
        ask_teacher: computes the targets ``(n, C)`` of inputs, in evaluation mode and without a graph.
    """
    n, n_classes = targets.shape
    predictions, labels = targets.argmax(dim=-1), labels.long()
    right, of_student = predictions == labels, scores.argmax(dim=-1) == labels
    k, p0 = int(right.sum()), chance_of(predictions, labels, n_classes)
    figures = f"the teacher is right in {k / n:.1%} of {n} labels (chance {p0:.1%}, the student {_share(of_student)})"
    by_chance = at_least(k, n, p0)
    of_weak = at_most(k, n, p0 + WEAK * (1.0 - p0))
    useless = (
        (by_chance > UNSURE and of_weak < 0.02) or (by_chance > 0.01 and of_weak < 1e-4) or at_most(k, n, p0) < SURE
    )
    cause = _find_order(predictions, labels, n_classes, right)
    cause = cause or _try_inputs(inputs, ask_teacher, labels, n_classes, right)
    if cause is not None:
        level: Level = "wrong" if by_chance > SURE or k < cause.accuracy * n / 2 else "suspicious"
        return Verdict([Finding(level, f"{figures}: {cause.text}")], level == "wrong")
    if useless:
        return Verdict([Finding("wrong", f"{figures}: it knows nothing of them; {_advise(predictions)}")], True)
    if by_chance > SURE:
        return Verdict([Finding("cannot tell", f"{figures}: {_why_unsure(labels)}")], False)
    if is_better(of_student, right, SURE):
        return Verdict([Finding("suspicious", f"{figures}: the student is better than its teacher")], False)
    return Verdict([Finding("fine", figures)], False)


def _share(right: Tensor) -> str:
    return f"{float(right.double().mean()):.1%}"


def _why_unsure(labels: Tensor) -> str:
    if bool((labels == labels[0]).all()):
        return "all labels are of one class, so they do not tell whether the teacher knows them; choose a mixed batch"
    return "so few do not tell whether that is more than chance; choose a larger batch"


def _advise(predictions: Tensor) -> str:
    commonest = torch.bincount(predictions)
    share = float(commonest.max()) / len(predictions)
    if share > 0.9 and len(predictions) > 1:
        said = f"it says class {int(commonest.argmax())} of {share:.0%} of the samples"
        return f"{said}: are its inputs normalised as it was trained, were its weights loaded?"
    return "were its weights loaded, are its classes in this order, its inputs normalised as it was trained?"


class Cause(NamedTuple):
    """Why a teacher's accuracy is low, and what it would be without that cause."""

    text: str
    accuracy: float


def _find_order(predictions: Tensor, labels: Tensor, n_classes: int, right: Tensor) -> Cause | None:
    """Labels shifted by one, or classes in another order."""
    for shift, how in ((1, "added to"), (-1, "taken from")):
        shifted = (predictions + shift) % n_classes
        if n_classes > 2 and _explains(shifted, labels, n_classes, right):
            text = f"labels and classes are shifted by one: with 1 {how} its class it is right in "
            return Cause(text + _share(shifted == labels), float((shifted == labels).double().mean()))
    matched, orders = _match_by_halves(predictions, labels, n_classes)
    if not _explains(matched, labels, n_classes, right):
        return None
    moved = [f"its class {c} is label {int(orders[c])}" for c in range(n_classes) if orders[c] not in (c, -1)]
    text = (
        f"its classes are in another order: matched with the labels of half of the samples it is right in "
        f"{_share(matched == labels)} of the other half ({', '.join(moved[:3])}{', ...' if moved[3:] else ''})"
    )
    return Cause(text, float((matched == labels).double().mean()))


def _explains(other: Tensor, labels: Tensor, n_classes: int, right: Tensor) -> bool:
    """Whether other predictions are right far more often, and often, by more than chance."""
    hits = other == labels
    accuracy, chance = float(hits.double().mean()), chance_of(other, labels, n_classes)
    gains = accuracy - float(right.double().mean()) >= GAIN and accuracy >= chance + SENSE * (1.0 - chance)
    known = at_least(int(hits.sum()), len(hits), chance) < SURE / 10
    return gains and known and is_better(hits, right, SURE / 10)


def _match_by_halves(predictions: Tensor, labels: Tensor, n_classes: int) -> tuple[Tensor, Tensor]:
    """Each half's predictions renamed to the commonest label of that prediction in the other half.

    Returns:
        the renamed predictions, ``(n,)``, unchanged where the other half never has that class; and the order by all
        samples.
    """
    first = torch.arange(len(labels), device=labels.device) % 2 == 0
    matched = predictions.clone()
    for half in (first, ~first):
        matched[half] = _commonest(predictions[~half], labels[~half], n_classes)[predictions[half]]
    return torch.where(matched < 0, predictions, matched), _commonest(predictions, labels, n_classes)


def _commonest(predictions: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """``(C,)``: the commonest label of each predicted class, -1 where it is never predicted."""
    pairs, counts = torch.unique(torch.stack([predictions, labels]), dim=1, return_counts=True)
    rising = counts.argsort()
    orders = torch.full((n_classes,), -1, dtype=torch.int64, device=labels.device)
    for prediction, label in zip(*pairs[:, rising].tolist(), strict=True):  # the commonest comes last
        orders[prediction] = label
    return orders


def _try_inputs(
    inputs: Any, ask_teacher: Callable[[Any], Tensor], labels: Tensor, n_classes: int, right: Tensor
) -> Cause | None:
    """The normalisation of the inputs with which the teacher is right most often, if it halves the mistakes."""
    accuracy = float(right.double().mean())
    best: Cause | None = None
    if accuracy > 1.0 - GAIN:
        return None
    for how, others in renormalised(inputs):
        predictions = _predict(ask_teacher, others)
        if predictions is None or predictions.shape != labels.shape:
            continue
        found = float((predictions == labels).double().mean())
        halved = 1.0 - found <= (1.0 - accuracy) / 2.0
        if halved and (best is None or found > best.accuracy) and _explains(predictions, labels, n_classes, right):
            text = f"with the inputs {how} it is right in {found:.1%}: perhaps it was trained with that normalisation"
            best = Cause(text, found)
    return best if best is not None and _looks_at_inputs_alone(inputs, ask_teacher) else None


def _predict(ask_teacher: Callable[[Any], Tensor], inputs: Any) -> Tensor | None:
    try:
        return ask_teacher(inputs).argmax(dim=-1)
    except Exception:  # a network may refuse such inputs in any way: then they are not what it was trained on
        return None


def _looks_at_inputs_alone(inputs: Tensor, ask_teacher: Callable[[Any], Tensor]) -> bool:
    """Whether equal inputs get equal scores; if not, the teacher adds noise, which larger inputs drown out."""
    try:
        alike = ask_teacher(inputs[:1].expand_as(inputs).contiguous())
    except Exception:  # a teacher with stored scores may refuse other inputs
        return False
    return torch.allclose(alike, alike[:1].expand_as(alike), rtol=1e-3, atol=1e-3 * float(alike.abs().max()))
