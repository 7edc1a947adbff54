"""The share of each part of an objective in its gradient, for :func:`~polydistill.losses.examination.doctor.doctor`.

There are two ways, each exact for its objectives; the other objectives get no shares:

- A sum of terms with weights (``TERMS``): the gradient of each term is that of the objective with the other weights at
  0. The share of a term is its mean norm over the sum of the mean norms.
- A cross-entropy with the teacher's p (``ban``, ``policy_kl``, and ``hinton_kd`` without labels): the gradient is a
  number times q - p, which is p*(q - e*) + (1 - p*)(q - p~), see :mod:`~polydistill.losses.gradients`. The shares are
  the means over the samples of each part's norm over the sum of both.

The others are one term (``cross_entropy``, ``cwtm``, ``policy_nll``: the label's, or the best class's, alone), have
another target than p (``dkpp``, ``uniform_confidence``), or a gradient that is not a number times q - p
(``reverse_kl``, ``jsd``, ``logit_standardized_kd`` without labels, ``policy_mse``, ``policy_huber``,
``policy_kl_q``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from polydistill.losses.checks import promote
from polydistill.losses.gradients import diagnostics
from polydistill.losses.objectives import Objective
from polydistill.losses.one_pass import value_and_grad

SILENT = 0.01  # a term with a smaller share of the gradient is suspicious
SPLIT = {"ban", "policy_kl", "hinton_kd"}

# objective -> term -> the weights that are set to 0 so that this term alone remains
TERMS: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    "ban_l": {"label": {"teacher_weight": 0.0}, "teacher": {"label_weight": 0.0}},
    "hinton_kd": {"label": {"teacher_weight": 0.0}, "teacher": {"label_weight": 0.0}},
    "logit_standardized_kd": {"label": {"teacher_weight": 0.0}, "teacher": {"label_weight": 0.0}},
    "dkd": {
        "label": {"alpha": 0.0, "beta": 0.0},
        "target class": {"label_weight": 0.0, "beta": 0.0},
        "other classes": {"label_weight": 0.0, "alpha": 0.0},
    },
}


def weigh_terms(
    objective: Objective, scores: Tensor, targets: Tensor, labels: Tensor | None, options: Mapping[str, Any]
) -> Mapping[str, float]:
    """Share of each part in the objective's own gradient with respect to the student's scores, at its own options.

    Args:
        objective: any.
        scores: ``(batch, classes)`` of the student.
        targets: the same of the teacher, or of an ensemble.
        labels: ``(batch,)`` integers in range, or None.
        options: of the objective: its temperature, mask and weights count.

    Returns:
        the shares, which add up to 1; nothing for an objective that is neither a sum of terms nor a cross-entropy with
        p, nor where the gradient is 0 or not finite.
    """
    if labels is not None and objective.name in TERMS:
        return _weigh_sum(objective, scores, targets, labels, options)
    if objective.name in SPLIT and options.get("teacher_weight", 1.0) > 0:
        return _split(objective, scores, targets, labels, options)
    return {}


def _weigh_sum(
    objective: Objective, scores: Tensor, targets: Tensor, labels: Tensor, options: Mapping[str, Any]
) -> Mapping[str, float]:
    norms = {}
    for term, others in TERMS[objective.name].items():
        gradient = value_and_grad(objective.name, scores, targets, labels, **{**options, **others}).gradient
        norms[term] = float(promote(gradient).norm(dim=-1).mean())
    total = sum(norms.values())
    return {term: norm / total for term, norm in norms.items()} if 0.0 < total < math.inf else {}


def _split(
    objective: Objective, scores: Tensor, targets: Tensor, labels: Tensor | None, options: Mapping[str, Any]
) -> Mapping[str, float]:
    temperature = find_temperature(objective, options)
    scores, targets = promote(scores), promote(targets)
    if not objective.tempered:  # then the student is tempered too, if there is a temperature at all
        scores = scores / temperature
    found = diagnostics(scores, targets, labels, temperature=temperature, mask=options.get("mask"))
    total = found.label_norm + found.dark_knowledge_norm
    share = float(torch.where(total > 0, found.label_norm / total, 0.5).mean())
    return {"label or best class": share, "dark knowledge": 1.0 - share} if math.isfinite(share) else {}


def find_temperature(objective: Objective, options: Mapping[str, Any]) -> float:
    """The objective's temperature: that of ``options``, its default, or 1 where it takes none."""
    if "temperature" in options:
        return float(options["temperature"])
    try:
        return float(objective.default("temperature"))
    except KeyError:
        return 1.0
