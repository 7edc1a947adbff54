"""Numbers: what an objective refuses, what a type cannot hold, how sharp the targets are, the objective's gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from polydistill.losses.backend import HAS_TRITON, can_launch, uses_kernels
from polydistill.losses.checks import accept_labels, accept_pair, inspect_values, promote
from polydistill.losses.examination.findings import Finding
from polydistill.losses.examination.terms import find_temperature
from polydistill.losses.objectives import Objective
from polydistill.losses.one_pass import value_and_grad
from polydistill.losses.probabilities import drop_classes, teacher_log_probabilities
from polydistill.losses.teachers import propose_temperature

SATURATED, FLAT = 0.999, 0.99  # mean of max p; mean entropy over ln n
FLOAT16_LIMIT = 60_000.0


def describe_backend(scores: Tensor) -> str:
    """What computes the losses of such scores."""
    if uses_kernels(scores):
        return "fused kernels"
    if scores.is_cuda and not can_launch():
        missing = "finds no C compiler: set CC, or install gcc" if HAS_TRITON else "is not installed"
        return f"plain formulas (Triton {missing})"
    return "plain formulas"


def examine_scores(
    objective: Objective, scores: Tensor, targets: Tensor, labels: Tensor | None, options: Mapping[str, Any]
) -> list[Finding]:
    """Why the objective would refuse these scores, and scores that are too large for their type.

    Labels are checked even where the objective takes none: its gradient is split at them.
    """
    mask = options.get("mask")
    try:
        accept_pair(scores, targets, mask=mask)
        inspect_values(scores, targets, None if labels is None else accept_labels(scores, labels), mask=mask)
        loss = objective(scores, targets, labels, check_values=True, **options)
    except (TypeError, ValueError) as error:
        if "unexpected keyword" in str(error) or "missing 1 required keyword" in str(error):
            raise ValueError(f"objective {objective.name}: {error}") from error
        return [Finding("wrong", str(error))]
    findings = []
    if not loss.isfinite().all():
        findings.append(
            Finding("wrong", f"the loss is not finite in {int((~loss.isfinite()).sum())} of {len(loss)} samples")
        )
    largest = max(_find_largest(scores, mask), _find_largest(targets, mask))
    if scores.dtype is torch.float16 and largest > FLOAT16_LIMIT / 4:
        findings.append(
            Finding("suspicious", f"scores up to {largest:.3g} in float16, which ends at 65,504: use bfloat16")
        )
    elif largest > 1e4:
        findings.append(Finding("suspicious", f"scores up to {largest:.3g}: losses are tested up to 10,000"))
    return findings


def _find_largest(scores: Tensor, mask: Tensor | None) -> float:
    """The greatest size of a score that is finite and counts."""
    counts = scores.isfinite() if mask is None else scores.isfinite() & ~mask
    return float(scores.masked_fill(~counts, 0.0).abs().max())


def examine_targets(
    objective: Objective, scores: Tensor, targets: Tensor, options: Mapping[str, Any], *, useless: bool = False
) -> Iterator[Finding]:
    """Whether the teacher's softmax is saturated or flat at its temperature; ``useless``: without advice."""
    is_regression = objective.score_kind == "teacher" and not objective.sharpens
    untempered = is_regression or objective.name in {"policy_nll", "logit_standardized_kd"}
    if "teacher" not in objective.takes or untempered:
        return
    temperature, mask = find_temperature(objective, options), options.get("mask")
    ensemble = targets.dim() > scores.dim()
    p = teacher_log_probabilities(promote(targets), mask, temperature, ensemble=ensemble).exp()
    n_classes = p.shape[-1]
    confidence = float(p.amax(dim=-1).mean())
    entropy = float(torch.special.entr(p).sum(dim=-1).mean()) / math.log(max(n_classes, 2))
    at = f"at T = {temperature:g} the teacher's best class has {confidence:.4f} on average"
    if confidence > SATURATED:
        yield Finding(
            "suspicious", f"{at}: the targets are labels; raise the temperature{_proposal(objective, targets)}"
        )
    elif entropy > FLAT and useless:
        yield Finding("suspicious", f"{at}, of {n_classes} classes: the targets are flat")
    elif entropy > FLAT:
        yield Finding(
            "suspicious",
            f"{at}, of {n_classes} classes: the targets are flat; lower the temperature{_proposal(objective, targets)}",
        )
    else:
        yield Finding("fine", f"{at} (entropy {entropy:.0%} of the greatest)")
    scores, targets = drop_classes(promote(scores), mask), drop_classes(promote(targets), mask)
    agreement = float((scores.argmax(dim=-1) == targets.argmax(dim=-1)).float().mean())
    if agreement == 1.0 and len(scores) > 1 and torch.allclose(scores, targets):
        yield Finding("suspicious", "the student gives the teacher's scores already: were its weights copied?")


def _proposal(objective: Objective, targets: Tensor) -> str:
    """A temperature to try, for objectives that temper the teacher alone, in the unit of its scores."""
    if not objective.sharpens:
        return ""
    try:
        return f", for example to {propose_temperature(targets):.3g}"
    except ValueError:
        return ""


def examine_gradient(
    objective: Objective, scores: Tensor, targets: Tensor, labels: Tensor | None, options: Mapping[str, Any]
) -> Iterator[Finding]:
    found = value_and_grad(objective.name, scores, targets, labels, **options)
    norm = float(promote(found.gradient).norm(dim=-1).mean())
    if not found.gradient.isfinite().all():
        yield Finding("wrong", "the gradient is not finite")
    elif norm == 0.0:
        yield Finding("wrong", "the gradient is 0 in every sample: nothing will be learned")
    else:
        loss = float(found.loss.mean())
        yield Finding("fine", f"loss {loss:.4g}, gradient {norm:.4g} per sample (mean, and mean norm, over the batch)")
    if scores.dtype is torch.float16 and 0.0 < norm / max(len(scores), 1) < 1e-6:
        yield Finding("suspicious", "gradients of the mean vanish in float16: use a GradScaler, or bfloat16")
