"""Losses that are no divergence of the softmax: distances, and whole objectives of this library.

A loss that may well be meant is called another loss; one that only a mistake produces has a fault.

Symbols: z student scores, t teacher scores, ``(R, C)``; y labels ``(R,)``; T temperature.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from polydistill.losses.examination.forms import Form, Function
from polydistill.losses.examination.sides import Sides
from polydistill.losses.objectives import OBJECTIVES, Objective

WHOLE = ("dkd", "logit_standardized_kd", "cwtm", "uniform_confidence")  # their terms are not among the other forms


def distances(temperature: float) -> Iterator[tuple[str, Form]]:
    """Each with the key of the objective that it belongs to, or ""."""
    hard = (
        "it learns the teacher's best class alone, as a hard label: if that is meant, choose the objective policy_nll"
    )
    for key, name, function, fault, another in (
        ("mse", "squared distance of scores", _squared, "", "but the distance of the objective policy_mse"),
        ("huber", "Huber's distance of scores", _huber, "", "but the distance of the objective policy_huber"),
        ("best", "cross-entropy with the teacher's best class", _best, hard, ""),
        ("", "absolute distance of scores", _absolute, "", "but a distance of scores"),
        ("", "cosine distance of scores", _cosine, "", "but an angle between scores"),
        ("", "squared distance of probabilities", _of_probabilities, "", "but a distance of probabilities"),
        (
            "",
            "binary cross-entropy with the teacher's softmax",
            _binary,
            "its soft term looks at each class alone: use F.kl_div of log_softmax(student)",
            "",
        ),
        ("", "binary cross-entropy with the teacher's sigmoid", _sigmoid, "", "but a loss of each class alone"),
    ):
        yield key, Form(name, fault, Sides(1.0, 1.0).of(function), another=another)
        if temperature != 1.0 and function not in (_squared, _absolute, _cosine):  # a temperature only scales these
            both = Sides(temperature, temperature)
            yield "", Form(f"{name} (tempered)", fault, both.of(function), temperature, another=another)


def other_objectives(own: str, temperature: float, labelled: bool) -> Iterator[Form]:
    """The soft terms of other objectives.

    Args:
        own: the name of the objective that is meant.
        temperature: tried, beside their own default, for objectives that have one; 1: none is tried.
        labelled: there are labels, so that objectives that need them are included.
    """
    for name in WHOLE:
        objective = OBJECTIVES[name]
        if name == own or (objective.needs_labels and not labelled):
            continue
        known, another = objective.options, f"but the objective {name}"
        weight = {"label_weight": 0.0} if "label_weight" in known else {}
        what = f"soft term of {name}" if weight else name
        if "temperature" not in known:
            yield Form(what, "", _whole(objective, weight), coupled=objective.batch_coupled, another=another)
            continue
        for T in {known["temperature"].default, temperature} - {1.0}:
            function = _whole(objective, {**weight, "temperature": T})
            yield Form(f"{what} at T = {T:g}", "", function, coupled=objective.batch_coupled, another=another)


def _whole(objective: Objective, options: dict[str, Any]) -> Function:
    def term(z: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return objective(z, t, y, **options).sum()

    return term


def _squared(z: Tensor, t: Tensor) -> Tensor:
    return (z - t).square().sum()


def _of_probabilities(z: Tensor, t: Tensor) -> Tensor:
    return _squared(z.softmax(-1), t.softmax(-1))


def _absolute(z: Tensor, t: Tensor) -> Tensor:
    return (z - t).abs().sum()


def _huber(z: Tensor, t: Tensor) -> Tensor:
    return F.huber_loss(z, t, reduction="sum")


def _cosine(z: Tensor, t: Tensor) -> Tensor:
    return -F.cosine_similarity(z, t).sum()


def _best(z: Tensor, t: Tensor) -> Tensor:
    return F.cross_entropy(z, t.argmax(-1), reduction="sum")


def _binary(z: Tensor, t: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(z, t.softmax(-1), reduction="sum")


def _sigmoid(z: Tensor, t: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(z, t.sigmoid(), reduction="sum")
