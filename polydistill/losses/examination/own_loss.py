"""One's own loss compared with an objective: its gradient is taken apart into terms, and what is wrong is named.

Asked twice: at scores drawn at random, where all terms differ from each other, and at the batch's own, where they may
not (flat targets make the divergences one, sure ones make labels of them). What the first says must hold at the second.
If the loss cannot be understood at drawn scores (it looks at something else, too), the batch alone decides, or nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from polydistill.losses.backend import use_backend
from polydistill.losses.examination.asking import Answer, LossFunction, Place, ask, ask_elsewhere
from polydistill.losses.examination.batch import Rows, take_rows
from polydistill.losses.examination.findings import Finding
from polydistill.losses.examination.fit import Explanation, Gradients, explain
from polydistill.losses.examination.forms import Form, label_forms
from polydistill.losses.examination.readings import Scale, read
from polydistill.losses.examination.soft_forms import soft_forms
from polydistill.losses.examination.terms import TERMS, find_temperature
from polydistill.losses.examination.wording import choose, say
from polydistill.losses.objectives import Objective
from polydistill.losses.one_pass import value_and_grad
from polydistill.losses.probabilities import join_members

MOST_NUMBERS = 2**16  # scores whose gradients are compared: rows beyond are left out
EXACT, ROUNDED = 1e-6, 1e-4  # residuals that rounding may leave: of float64, and of anything else
SAME, NEARLY = 1e-4, 0.999  # difference of two calls over the norm; cosine
CONFIRMED = 0.02  # residual at the batch of what the drawn scores say
TEMPERED_TWICE = {"hinton_kd", "dkd", "logit_standardized_kd"}  # both sides are, hence the T^2


def compare_loss(
    objective: Objective,
    loss_function: LossFunction,
    place: Place,
    options: Mapping[str, Any],
    ignore_index: int | None,
) -> Iterator[Finding]:
    """What one's own loss is, and what is wrong with it.

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
        text = "your loss is random, so what it is cannot be told: take the dropout or noise out for this examination"
        yield Finding("cannot tell", text)
        return
    if answer.shape == place.scores.shape:
        text = f"your loss has a value per class, of shape {tuple(answer.shape)}: sum it over the classes, then average"
        yield Finding("suspicious", text)
    rows = take_rows(place.scores, place.targets, place.labels, options, ignore_index)
    if rows.kept is not None and bool(answer.gradient.flatten(0, -2)[~rows.kept].any()):
        text = f"your loss has a gradient at rows whose label is {ignore_index}: leave them out of the soft term too"
        yield Finding("suspicious", text)
    if not bool(_cut(answer, rows).any()):
        yield Finding("wrong", "the gradient of your loss is 0 in every sample")
        return
    yield _Comparison(objective, loss_function, place, options, ignore_index).examine(answer, rows)


def _cut(answer: Answer, rows: Rows) -> Tensor:
    """The gradient of the rows that count."""
    gradient = answer.gradient.flatten(0, -2)
    return gradient if rows.kept is None else gradient[rows.kept]


class _Comparison:
    """One loss beside one objective, whose own term without the label's is one of the forms."""

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
        self.softs = [self.own, *soft_forms(self.temperature, objective.name)]
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
        """Those that leave the soft term over, with weight 1."""
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

    def examine(self, answer: Answer, rows: Rows) -> Finding:
        """What the loss is: by the drawn scores if the batch confirms it, else by the batch alone."""
        here, gradient = self._gradients(rows), _cut(answer, rows)
        n = self._count(rows)
        floor = EXACT if answer.exact else ROUNDED
        found, is_another = self._explain_elsewhere(here, gradient[:n], floor)
        found = found or explain(gradient[:n], here, self.labels, self.softs, floor)
        if is_another and len(found) > 1:  # the batch is flat or sure: what it allows is not what the loss is
            found = []
        scale = _measure(answer, len(gradient), self.place.scores)
        if not found:
            return self._describe_another(answer, gradient, rows)
        return choose([self._describe(each, scale) for each in found])

    def _count(self, rows: Rows) -> int:
        return min(max(8, MOST_NUMBERS // rows.scores.shape[-1]), len(rows.scores))

    def _gradients(self, rows: Rows) -> Gradients:
        """Of all forms, at the first of these rows."""
        n = self._count(rows)
        z, t = rows.scores.double(), rows.targets.double()
        with use_backend("torch"):
            own = value_and_grad(self.objective.name, z, t, rows.labels, **self._own_options(rows.options)).gradient
        labels = torch.zeros(len(z), dtype=torch.int64, device=z.device) if rows.labels is None else rows.labels.long()
        whole = n == len(z) and rows.kept is None
        forms = [form for form in (*self.labels, *self.softs[1:]) if whole or not form.coupled]
        return Gradients(z[:n], join_members(z, t, self.temperature)[:n], labels[:n], forms, self.own, own[:n])

    def _explain_elsewhere(self, here: Gradients, gradient: Tensor, floor: float) -> tuple[list[Explanation], bool]:
        """The one explanation at drawn scores that holds at the batch, if there is one; and whether there is none.

        A loss that has its teacher from elsewhere is blind to drawn scores: not to be explained there says nothing.
        """
        asked = ask_elsewhere(self.loss_function, self.place, self.temperature)
        if asked is None:
            return [], False
        drawn, answer = asked
        rows = take_rows(*drawn, self.options, self.ignore_index)
        there = self._gradients(rows)
        found = explain(_cut(answer, rows)[: self._count(rows)], there, self.labels, self.softs, floor)
        confirmed = [each for each in found if _holds(each, here, gradient)]
        if found:
            return (confirmed if len(confirmed) == 1 else []), False
        other = ask(self.loss_function, drawn._replace(targets=self.place.targets.to(drawn.targets)))
        blind = isinstance(other, Finding) or torch.allclose(other.gradient, answer.gradient)
        return [], not blind

    def _describe_another(self, answer: Answer, gradient: Tensor, rows: Rows) -> Finding:
        with use_backend("torch"):
            z, t = rows.scores.double(), rows.targets.double()
            own = value_and_grad(self.objective.name, z, t, rows.labels, **dict(rows.options)).gradient
        size = float(own.norm() * gradient.norm())
        cosine = float((own * gradient).sum()) / size if size else 0.0
        of_gradient = f"its gradient has cosine {cosine:.4f} with {self.objective.name}'s"
        if answer.coarse:
            text = (
                f"your loss is rounded to 16 bits, too coarse to tell what it is ({of_gradient}): let it take float32"
            )
            return Finding("cannot tell", text)
        if cosine > NEARLY:
            return Finding("suspicious", f"your loss is nearly the objective, and not quite: {of_gradient}")
        text = f"your loss is not {self.objective.name}, nor a known mistake in it: {of_gradient}"
        return Finding("wrong", f"{text}; fine only if another loss is meant")

    def _describe(self, found: Explanation, scale: Scale) -> Finding:
        weights = (found.weights[0] * scale.rows, found.weights[1] * scale.rows)
        faults = [form.fault for form in (found.label, found.soft) if form is not None and form.fault]
        for weight, whose in zip(weights, ("label", "soft"), strict=True):
            if weight < 0.0:
                faults.append(f"the {whose} term has the wrong sign: it is made as large as can be")
        if found.soft is None and self.asked[1] > 0.0:
            faults.append("the teacher has no say in it")
        if found.label is not None and "labels" not in self.objective.takes:
            faults.append(f"{self.objective.name} has no label term")
        if found.label is None and self.asked[0] > 0.0 and self.explicit:
            faults.append(f"it has no label term, of which {self.objective.name} has {self.asked[0]:g}")
        temperature = found.soft.temperature if found.soft is not None else 1.0
        readings = read(weights, self.asked, self.explicit, scale, temperature)
        averaged = "averaged over the batch" if scale.rows > 1 else "per sample"
        return say(found, weights, faults, readings, averaged, self.explicit)


def _holds(explanation: Explanation, here: Gradients, gradient: Tensor) -> bool:
    predicted = here.predict(explanation)
    return predicted is not None and float((predicted - gradient.flatten()).norm()) <= CONFIRMED * float(
        gradient.norm()
    )


def _measure(answer: Answer, rows: int, scores: Tensor) -> Scale:
    if answer.shape:
        return Scale(1, 1, 1, scores.shape[-1])
    return Scale(rows, len(scores), scores.shape[:-1].numel(), scores.shape[-1])
