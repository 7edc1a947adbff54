"""The gradient of a loss divided into terms, with a name for what is wrong with them.

The gradient is taken twice: at scores drawn at random, where all terms differ from each other, and at the batch's own,
where they may not (with flat targets all divergences are equal, and sure targets equal labels). An explanation at the
first must hold at the second. If nothing explains the loss at drawn scores (it uses something else, too), the batch
alone decides, or nothing does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from polydistill.losses.backend import use_backend
from polydistill.losses.examination.asking import Answer, LossFunction, Place, ask, ask_elsewhere
from polydistill.losses.examination.batch import Rows, leave_out, take_rows
from polydistill.losses.examination.findings import Finding
from polydistill.losses.examination.fit import Explanation, Gradients, explain
from polydistill.losses.examination.forms import UNIFORM, Form, label_forms
from polydistill.losses.examination.readings import Scale, read
from polydistill.losses.examination.soft_forms import soft_forms
from polydistill.losses.examination.terms import TERMS, find_temperature
from polydistill.losses.examination.wording import choose, name_terms, say, say_changing, say_unknown
from polydistill.losses.objectives import Objective
from polydistill.losses.one_pass import value_and_grad
from polydistill.losses.probabilities import join_members

MOST_NUMBERS = 2**16  # scores whose gradients are compared: rows beyond are left out
EXACT, ROUNDED = 1e-6, 1e-4  # residuals that rounding may leave: of float64, and of anything else
CONFIRMED = 0.02  # residual, at the batch, of the explanation at drawn scores
CHANGED = 20.0  # weights differ at the batch if the misfit is this many times the residual of both explanations
LEAST_CHANGE = 1e-3  # and at least this
ALMOST = 1e-4  # residual that the batch must not exceed where nothing explains the loss at drawn scores
PARALLEL = 1e-7  # 1 - cosine of two gradients of one sample
SMALL = 1e-4  # a row's gradient over the greatest row's, below which it may be 0 by rounding
TEMPERED_TWICE = {"hinton_kd", "dkd", "logit_standardized_kd"}  # both sides are, hence the T^2


class Elsewhere(NamedTuple):
    """A loss at scores drawn at random.

    Attributes:
        found: the explanations of it there.
        rows: how many rows have a gradient there.
        is_another: nothing explains it, although it uses the scores that it is given.
    """

    found: list[Explanation]
    rows: int
    is_another: bool


class Comparison:
    """One loss compared with one objective, whose own soft term is one of the forms."""

    def __init__(
        self, objective: Objective, loss_function: LossFunction, place: Place, options: Mapping[str, Any],
        ignore_index: int | None,
    ) -> None:  # fmt: skip
        self.objective, self.loss_function, self.place = objective, loss_function, place
        self.options, self.ignore_index = options, ignore_index
        self.temperature = find_temperature(objective, options)
        self.has_label_term = place.labels is not None and objective.name in TERMS
        square = self.temperature if objective.name in TEMPERED_TWICE else 1.0
        self.own = Form("soft term" if self.has_label_term else objective.name, "", self._own_loss, square)
        self.labels = [] if place.labels is None else list(label_forms(self.temperature, objective.name))
        self.softs = [self.own, *soft_forms(objective, self.temperature, place.labels is not None)]
        if options.get("mask") is not None:
            self.softs.append(
                Form(f"{objective.name} without the mask", "the mask is left out", self._own_loss, square)
            )
        self.asked = (
            self._weight("label_weight", 0.0) if self.has_label_term else 0.0,
            self._weight("teacher_weight", 1.0),
        )
        has_weights = self._weight("teacher_weight", -1.0) >= 0.0 or self._weight("label_weight", -1.0) >= 0.0
        self.explicit = not has_weights or "label_weight" in options or "teacher_weight" in options

    def _weight(self, name: str, missing: float) -> float:
        try:
            return float(self.options.get(name, self.objective.default(name)))
        except KeyError:
            return missing

    def _own_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options with which only the soft term remains, with weight 1."""
        weights = {"label_weight": 0.0} if self.has_label_term else {}
        if self._weight("teacher_weight", -1.0) >= 0.0:
            weights["teacher_weight"] = 1.0
        return {**options, **weights}

    def _own_loss(self, z: Tensor, t: Tensor, y: Tensor) -> Tensor:
        options = {name: value for name, value in self._own_options(self.options).items() if name != "mask"}
        return (
            self.objective(z, t, y if self.place.labels is not None else None, **options).sum()
            / self.own.temperature**2
        )

    def find_own_gradient(self, rows: Rows, *, soft: bool = False) -> Tensor:
        """The gradient of the objective, or of its soft term with weight 1, ``(R, C)`` float64."""
        options = self._own_options(rows.options) if soft else dict(rows.options)
        with use_backend("torch"):
            z, t = rows.scores.double(), rows.targets.double()
            return value_and_grad(self.objective.name, z, t, rows.labels, **options).gradient

    def find_silent(self, answer: Answer, place: Place) -> Tensor:
        """Which of the rows that count have a gradient of the objective and none of the loss, ``(R,)`` bool."""
        rows = take_rows(*place, self.options, self.ignore_index)
        gradient = _cut(answer, rows)
        if answer.coarse:
            return torch.zeros(len(gradient), dtype=torch.bool, device=gradient.device)
        sizes = self.find_own_gradient(rows).norm(dim=1)
        silent: Tensor = ~gradient.any(dim=1) & (sizes > SMALL * sizes.max())
        return silent

    def take(self, answer: Answer, place: Place) -> tuple[Rows, Tensor]:
        """The rows that count without the silent ones, and the loss's gradient there."""
        rows = take_rows(*place, self.options, self.ignore_index)
        gradient, silent = _cut(answer, rows), self.find_silent(answer, place)
        if bool(silent.all()) or not bool(silent.any()):
            return rows, gradient
        return leave_out(rows, silent), gradient[~silent]

    def examine(self, answer: Answer) -> Finding:
        """What the loss is: by the drawn scores if the batch confirms it, else by the batch alone."""
        rows, gradient = self.take(answer, self.place)
        here, n = self._gradients(rows), self._count(rows)
        floor = EXACT if answer.exact else ROUNDED
        found = explain(gradient[:n], here, self.labels, self.softs, floor)
        elsewhere = self._explain_elsewhere()
        confirmed = [each for each in elsewhere.found if _misfit(each, here, gradient[:n]) <= CONFIRMED]
        scale = _measure(answer, len(gradient), self.place.scores)
        if elsewhere.rows == len(rows.scores) and (changed := _find_changed(elsewhere, found, here, gradient[:n])):
            return say_changing(changed, _scale_weights(changed, scale), self._find_faults(changed))
        if len(confirmed) == 1:
            found = confirmed
        elif elsewhere.is_another and (len(found) > 1 or any(each.residual > ALMOST for each in found)):
            found = []  # the batch is flat or sure: what fits there need not be the loss
        if not found:
            return self._describe_another(answer, gradient, rows, elsewhere.found)
        counted = len(take_rows(*self.place, self.options, self.ignore_index).scores)
        scales = dict.fromkeys((scale, _measure(answer, counted, self.place.scores)))  # a mean over all rows is sound
        said = [choose([self._describe(each, of_rows) for each in found]) for of_rows in scales]
        return next((finding for finding in said if finding.level == "fine"), said[0])

    def _count(self, rows: Rows) -> int:
        return min(max(8, MOST_NUMBERS // rows.scores.shape[-1]), len(rows.scores))

    def _gradients(self, rows: Rows) -> Gradients:
        """The gradients of all forms, at the first of these rows."""
        n = self._count(rows)
        z, t = rows.scores.double(), rows.targets.double()
        labels = torch.zeros(len(z), dtype=torch.int64, device=z.device) if rows.labels is None else rows.labels.long()
        whole = 1 < n == len(z) and rows.kept is None
        mixed = whole and bool((labels != labels[0]).any())  # labels of one class are those of other samples, too
        forms = [form for form in self.labels if mixed or not form.coupled]
        forms += [form for form in self.softs[1:] if whole or not form.coupled]
        t, own = join_members(z, t, self.temperature), self.find_own_gradient(rows, soft=True)
        return Gradients(z[:n], t[:n], labels[:n], forms, self.own, own[:n])

    def _explain_elsewhere(self) -> Elsewhere:
        """What the loss is at drawn scores.

        A loss that gets its teacher's scores from elsewhere ignores the drawn ones: that nothing explains it there
        does not count.
        """
        asked = ask_elsewhere(self.loss_function, self.place, self.temperature)
        if asked is None:
            return Elsewhere([], 0, False)
        drawn, answer = asked
        rows, gradient = self.take(answer, drawn)
        floor = EXACT if answer.exact else ROUNDED
        found = explain(gradient[: self._count(rows)], self._gradients(rows), self.labels, self.softs, floor)
        if found:
            return Elsewhere(found, len(gradient), False)
        other = ask(self.loss_function, drawn._replace(targets=self.place.targets.to(drawn.targets)))
        blind = isinstance(other, Finding) or torch.allclose(other.gradient, answer.gradient)
        return Elsewhere([], len(gradient), not blind)

    def _describe_another(self, answer: Answer, gradient: Tensor, rows: Rows, elsewhere: list[Explanation]) -> Finding:
        for own in (self.find_own_gradient(rows), self.find_own_gradient(rows, soft=True)):
            ratios = None if answer.coarse else _find_ratios(gradient, own)
            if ratios is not None:
                least, greatest = (float(x / ratios.mean()) for x in (ratios.min(), ratios.max()))
                text = f"your loss is the objective with a weight for each sample, {least:.2g} to {greatest:.2g} times"
                return Finding("suspicious", f"{text} their mean: fine only if that is meant")
        own = self.find_own_gradient(rows)
        size = float(own.norm() * gradient.norm())
        cosine = float((own * gradient).sum()) / size if size else 0.0
        drawn = name_terms(elsewhere[0], elsewhere[0].weights) if elsewhere else ""
        return say_unknown(self.objective.name, cosine, answer.coarse, drawn)

    def _describe(self, found: Explanation, scale: Scale) -> Finding:
        weights = _scale_weights(found, scale)
        temperature = found.soft.temperature if found.soft is not None else 1.0
        readings = read(weights, self.asked, self.explicit, scale, temperature)
        faults = self._find_faults(found)
        if self.explicit and self.has_label_term and not readings and self._are_swapped(weights, scale, temperature):
            faults.append("label_weight and teacher_weight are swapped")
        averaged = "averaged over the batch" if scale.rows > 1 else "per sample"
        return say(self.objective.name, found, weights, faults, readings, averaged, self.explicit)

    def _are_swapped(self, weights: tuple[float, float], scale: Scale, temperature: float) -> bool:
        return any(not each.slips for each in read(weights, self.asked[::-1], True, scale, temperature))

    def _find_faults(self, found: Explanation) -> list[str]:
        """What is wrong with the terms themselves, whatever the size of their weights."""
        faults = [form.fault for form in (found.label, found.soft) if form is not None and form.fault]
        for weight, whose in zip(found.weights, ("label", "soft"), strict=True):
            if weight < 0.0:
                faults.append(f"the {whose} term has the wrong sign: it is made as large as can be")
        if found.soft is None and self.asked[1] > 0.0:
            faults.append("the teacher has no say in it")
        is_label_term = found.label is not None and found.label.name != UNIFORM
        if is_label_term and "labels" not in self.objective.takes:
            faults.append(f"{self.objective.name} has no label term")
        if found.label is None and self.asked[0] > 0.0 and self.explicit:
            faults.append(f"it has no label term, of which {self.objective.name} has {self.asked[0]:g}")
        return faults


def _cut(answer: Answer, rows: Rows) -> Tensor:
    """The gradient of the rows that count."""
    gradient = answer.gradient.flatten(0, -2)
    return gradient if rows.kept is None else gradient[rows.kept]


def _scale_weights(found: Explanation, scale: Scale) -> tuple[float, float]:
    """The weights of the mean over the rows."""
    return found.weights[0] * scale.rows, found.weights[1] * scale.rows


def _misfit(explanation: Explanation, here: Gradients, gradient: Tensor) -> float:
    """The norm of what it leaves unexplained, over the norm of the gradient."""
    predicted = here.predict(explanation)
    if predicted is None:
        return math.inf
    return float((predicted - gradient.flatten()).norm() / gradient.norm())


def _find_changed(
    elsewhere: Elsewhere, found: list[Explanation], here: Gradients, gradient: Tensor
) -> Explanation | None:
    """The explanation at the batch that has the terms of the one at drawn scores, and other weights."""
    if len(elsewhere.found) != 1:
        return None
    drawn = elsewhere.found[0]
    for each in found:
        slack = max(LEAST_CHANGE, CHANGED * each.residual, CHANGED * drawn.residual)
        if each.label is drawn.label and each.soft is drawn.soft and _misfit(drawn, here, gradient) > slack:
            return each
    return None


def _find_ratios(gradient: Tensor, own: Tensor) -> Tensor | None:
    """The factor between the rows of two gradients, if all are parallel; with two classes all are, so None."""
    sizes = own.norm(dim=1)
    seen = sizes > SMALL * sizes.max()
    if own.shape[-1] < 3 or int(seen.sum()) < 2:
        return None
    products, sizes = (gradient * own).sum(dim=1)[seen], sizes[seen]
    parallel = products >= (1.0 - PARALLEL) * sizes * gradient.norm(dim=1)[seen]
    return products / sizes.square() if bool((parallel & (products > 0.0)).all()) else None


def _measure(answer: Answer, rows: int, scores: Tensor) -> Scale:
    if answer.shape:
        return Scale(1, 1, 1, scores.shape[-1])
    first = len(scores) if scores.dim() > 2 else rows
    return Scale(rows, first, scores.shape[:-1].numel(), scores.shape[-1])
