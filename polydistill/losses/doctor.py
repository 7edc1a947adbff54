"""What is wrong in the set-up of a distillation: said of one batch, before hours are spent on it.

Each check is a fault found in public code: a loss divided by the classes, or not by the batch; a missing T^2; a teacher
in training mode, or inside the graph; a student that is its teacher; a temperature at which the targets say nothing but
the label, or nothing at all; a term that has no say in the gradient.

The contract: neither network is changed, nor its mode, nor its gradients; modules are looked at in evaluation mode, so
that they draw no random numbers. Waits for the device, many times.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from polydistill.losses.examinations import (
    Finding,
    LossFunction,
    ScoreFunction,
    compare_loss,
    describe_backend,
    examine_gradient,
    examine_networks,
    examine_scores,
    examine_targets,
    examine_tensors,
    modes_kept,
)
from polydistill.losses.objectives import get_objective
from polydistill.losses.terms import SILENT, TERMS, weigh_terms


class Report(NamedTuple):
    """What the doctor says; ``str`` of it is readable text.

    Attributes:
        title: objective, size of the batch, device.
        findings: in the order of the examination.
        terms: share of each part in the objective's gradient, by its norm; they add up to 1. Empty where the objective
            has none, see :mod:`~polydistill.losses.terms`.
    """

    title: str
    findings: tuple[Finding, ...]
    terms: Mapping[str, float]

    @property
    def healthy(self) -> bool:
        """Nothing is wrong."""
        return all(finding.level != "wrong" for finding in self.findings)

    def __str__(self) -> str:
        lines = [f"doctor: {self.title}"]
        for level, text in self.findings:
            lines.append(f"  {'WRONG' if level == 'wrong' else level:<12}{text}")
        if self.terms:
            shares = ", ".join(f"{name} {share:.1%}" for name, share in self.terms.items())
            lines.append(f"  {'gradient':<12}{shares}")
        return "\n".join(lines)


def doctor(
    student: ScoreFunction,
    teacher: ScoreFunction,
    objective: str,
    inputs: Any,
    labels: Tensor | None = None,
    *,
    loss_function: LossFunction | None = None,
    **options: Any,
) -> Report:
    """Examine the set-up of a distillation on one batch.

    Args:
        student: module, or function from inputs to scores ``(batch, classes)``.
        teacher: the same, or an ensemble, whose scores are ``(members, batch, classes)``.
        objective: name in ``OBJECTIVES``: what is meant to be learned.
        inputs: one batch, as both take it.
        labels: ``(batch,)`` integers, where there are some.
        loss_function: one's own loss of ``(student scores, teacher scores, labels)``, compared with the objective: its
            gradient tells whether it is divided by the classes, not divided by the batch, or lacks T^2.
        options: of the objective. Its ``check_values`` changes nothing: values are looked at anyway.

    Returns:
        the findings and the share of each term in the gradient.

    Raises:
        ValueError: an unknown objective or option, or a network that gives no scores.

    Example:
        >>> linear = torch.nn.Linear(3, 2)
        >>> print(doctor(linear, linear, "ban", torch.zeros(4, 3)).findings[0].text)
        student and teacher are the same network: build another one
    """
    named = get_objective(objective)
    options.pop("check_values", None)
    findings = [*examine_networks(student, teacher)]
    with modes_kept(student, teacher), torch.enable_grad():
        scores, targets = student(inputs), teacher(inputs)
    for name, found in (("student", scores), ("teacher", targets)):
        if not isinstance(found, Tensor) or found.dim() < 2 or not found.numel():
            what = (
                f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            )
            raise ValueError(f"the {name} must give scores (batch, classes) for at least one sample, got {what}")
    title = f"{objective}, {len(scores)} samples of {scores.shape[-1]} classes on {scores.device}, "
    title += describe_backend(scores)
    if targets.requires_grad and not isinstance(teacher, nn.Module):  # a module may well be called under no_grad
        findings.append(Finding("wrong", "the teacher's scores have a graph: call it under torch.no_grad()"))
    if student is not teacher:
        findings += examine_tensors(scores, targets)
    scores, targets = scores.detach(), targets.detach()
    faults = examine_scores(named, scores, targets, labels, options)
    findings += faults
    if any(fault.level == "wrong" for fault in faults):
        return Report(title, tuple(findings), {})
    findings += examine_targets(named, scores, targets, options)
    findings += examine_gradient(named, scores, targets, labels, options)
    terms = weigh_terms(named, scores, targets, labels, options)
    for term, share in terms.items():
        if share < SILENT and term in TERMS.get(objective, {}):
            findings.append(
                Finding(
                    "suspicious", f"the term {term} has {share:.2%} of the gradient: raise its weight or leave it out"
                )
            )
    if loss_function is not None:
        findings.append(compare_loss(named, loss_function, scores, targets, labels, options))
    return Report(title, tuple(findings), terms)
