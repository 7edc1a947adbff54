"""A gradient as a sum of terms, found by least squares, and whether other terms explain it as well.

Symbols: G gradient of a loss with respect to the student's scores, ``(R, C)``; L, S those of a label term and of a soft
term; G = a L + b S. All gradients are scaled to norm 1 inside, so that the matrix of their products suffices; a
residual is then known to about 1e-8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from polydistill.losses.examination.forms import Form, Function

CLOSE = 0.003  # residual over the norm of G, up to which G is explained
AS_GOOD = 5.0  # up to this many times the best residual, an explanation is as good
COLLINEAR = 1e-9  # 1 - cosine^2 of terms that cannot be told apart


class Explanation(NamedTuple):
    """A sum of terms.

    Attributes:
        label, soft: the terms; None where there is none.
        weights: of ``label`` (a) and ``soft`` (b); 0 where there is none.
        smoothing: weights of the label term's further columns.
        residual: norm of what is not explained over the norm of G.
    """

    label: Form | None
    soft: Form | None
    weights: tuple[float, float]
    smoothing: tuple[float, ...]
    residual: float


class Gradients:
    """The gradients of terms at one place ``(z, t, y)``, and their products with each other.

    Args:
        z, t: ``(R, C)`` float64.
        y: ``(R,)`` int64; not used where no form takes labels.
        forms: their gradients are computed. Those that are 0 or not finite are left out.
        own: the objective's form, whose gradient is given.
        gradient_of_own: ``(R, C)``.
    """

    def __init__(self, z: Tensor, t: Tensor, y: Tensor, forms: Sequence[Form], own: Form, gradient_of_own: Tensor):
        self._places: dict[int, list[int]] = {}
        columns: list[Tensor] = []
        for form in (own, *forms):
            if form is own:
                found = [gradient_of_own]
            else:
                found = [_differentiate(f, z, t, y) * form.temperature**2 for f in (form.function, *form.columns)]
            if all(bool(gradient.isfinite().all()) and bool(gradient.any()) for gradient in found):
                self._places[id(form)] = list(range(len(columns), len(columns) + len(found)))
                columns += [gradient.flatten() for gradient in found]
        self._matrix = torch.stack(columns or [z.new_zeros(z.numel())])
        norms = self._matrix.norm(dim=1)
        self._matrix /= norms[:, None]
        self.norms: list[float] = norms.tolist()
        self.products: list[list[float]] = (self._matrix @ self._matrix.T).tolist()

    def places(self, form: Form | None) -> list[int] | None:
        """The columns of a form; an empty list for no form, None for a form that was left out."""
        return [] if form is None else self._places.get(id(form))

    def products_with(self, gradient: Tensor) -> list[float]:
        """The products of all columns with another gradient, which is scaled to norm 1 too."""
        found: list[float] = (self._matrix @ (gradient.flatten() / gradient.norm())).tolist()
        return found

    def predict(self, explanation: Explanation) -> Tensor | None:
        """The G of an explanation at this place, flat; None where one of its terms was left out."""
        total = torch.zeros_like(self._matrix[0])
        of_label = (explanation.weights[0], *explanation.smoothing)
        for form, weights in ((explanation.label, of_label), (explanation.soft, explanation.weights[1:])):
            places = self.places(form)
            if places is None:
                return None
            for place, weight in zip(places, weights, strict=False):  # no form, no place
                total += weight * self.norms[place] * self._matrix[place]
        return total


def _differentiate(function: Function, z: Tensor, t: Tensor, y: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = z.clone().requires_grad_()
        return torch.autograd.grad(function(leaf, t, y), leaf)[0]


def explain(
    gradient: Tensor, gradients: Gradients, labels: Sequence[Form], softs: Sequence[Form], floor: float
) -> list[Explanation]:
    """All sums of at most one term of each sort that explain a gradient as well as the best one does.

    Args:
        gradient: G, float64.
        gradients: of the forms, at the same place.
        labels, softs: the terms to choose from.
        floor: the residual that rounding may leave.

    Returns:
        the explanations, the best first; none where nothing comes close. Terms with a negligible share are left out.
    """
    size, products = float(gradient.norm()), gradients.products_with(gradient)
    found: dict[tuple[int, int], Explanation] = {}
    for label in (None, *labels):
        for soft in (None, *softs):
            explanation = _fit(size, products, gradients, label, soft, floor)
            if explanation is not None and explanation.residual < CLOSE:
                key = id(explanation.label), id(explanation.soft)
                if key not in found or explanation.residual < found[key].residual:
                    found[key] = explanation
    best = min((explanation.residual for explanation in found.values()), default=0.0)
    as_good = [each for each in found.values() if each.residual <= max(AS_GOOD * best, floor)]
    meant = [
        each for each in as_good if each.soft is None or not each.soft.another
    ]  # with two classes dkd is hinton_kd
    return sorted(_without_needless(meant or as_good), key=lambda each: each.residual)


def _fit(
    size: float, products: list[float], gradients: Gradients, label: Form | None, soft: Form | None, floor: float
) -> Explanation | None:
    """Least squares of G on two terms, or on one if the other adds nothing; None where they are collinear, or one was
    left out."""
    of_label, of_soft = gradients.places(label), gradients.places(soft)
    if of_label is None or of_soft is None or not (places := [*of_label, *of_soft]):
        return None
    matrix = [[gradients.products[i][j] for j in places] for i in places]
    aims = [products[i] for i in places]
    shares = _solve(matrix, aims)
    if shares is None:
        return None
    residual = math.sqrt(max(1.0 - sum(share * aim for share, aim in zip(shares, aims, strict=True)), 0.0))
    silent = max(floor, 3.0 * residual)
    if of_label and of_soft and abs(shares[-1]) < silent:
        return _fit(size, products, gradients, label, None, floor)
    if of_label and of_soft and abs(shares[0]) < silent:  # what is left of smoothed labels is a form of its own
        return _fit(size, products, gradients, None, soft, floor) if len(of_label) == 1 else None
    weights = [share * size / gradients.norms[place] for share, place in zip(shares, places, strict=True)]
    of_both = (weights[0] if of_label else 0.0, weights[-1] if of_soft else 0.0)
    return Explanation(label, soft, of_both, tuple(weights[1 : len(of_label)]), residual)


def _solve(matrix: list[list[float]], aims: list[float]) -> list[float] | None:
    """Gauss's elimination of a few equations whose diagonal is 1; None where one follows from the others."""
    rows = [[*row, aim] for row, aim in zip(matrix, aims, strict=True)]
    n = len(rows)
    for i in range(n):
        if rows[i][i] < COLLINEAR:
            return None
        for j in range(i + 1, n):
            factor = rows[j][i] / rows[i][i]
            rows[j] = [x - factor * y for x, y in zip(rows[j], rows[i], strict=True)]
    found = [0.0] * n
    for i in reversed(range(n)):
        rest = sum(rows[i][j] * found[j] for j in range(i + 1, n))
        found[i] = (rows[i][n] - rest) / rows[i][i]
    return found


def _without_needless(found: list[Explanation]) -> list[Explanation]:
    """The explanations without those whose label term has further columns, if the same soft term needs none."""
    plain = {id(each.soft) for each in found if each.label is None or not each.label.columns}
    return [each for each in found if each.label is None or not each.label.columns or id(each.soft) not in plain]
