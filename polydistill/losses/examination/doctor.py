"""What is wrong in the set-up of a distillation, found on one batch before hours are spent on it.

Each check is a fault found in public code: a teacher at chance on the labels, or that gives probabilities; a loss
divided by the classes, or not by the batch; sides swapped; a missing T^2; a teacher whose dropout is on, or inside the
graph; a student that is its teacher; a temperature at which the targets are labels, or flat; a term with next to no
share of the gradient. :mod:`polydistill.losses.examination` has a module for each question.

The contract: neither network is changed, nor its mode, nor its gradients, nor a random stream; scores are those of
evaluation mode. Waits for the device, many times.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from polydistill.losses.checks import are_probabilities
from polydistill.losses.examination.accuracy import examine_accuracy
from polydistill.losses.examination.asking import LossFunction, Place
from polydistill.losses.examination.batch import Rows, take_rows
from polydistill.losses.examination.findings import Finding
from polydistill.losses.examination.kinds import examine_kind
from polydistill.losses.examination.modes import ScoreFunction, modes_kept, random_streams_kept
from polydistill.losses.examination.networks import examine_networks, examine_tensors
from polydistill.losses.examination.own_loss import compare_loss
from polydistill.losses.examination.scores import (
    describe_backend,
    examine_gradient,
    examine_scores,
    examine_targets,
)
from polydistill.losses.examination.terms import SILENT, TERMS, weigh_terms
from polydistill.losses.ignored import most_likely
from polydistill.losses.objectives import Objective, get_objective
from polydistill.losses.outputs import logits_of
from polydistill.losses.probabilities import join_members

WIDTH = 120  # of a report's lines


class Report(NamedTuple):
    """The doctor's report; ``str`` of it is readable text, ``bool`` of it is ``healthy``.

    Attributes:
        title: objective, size of the batch, device.
        findings: in the order of the examination.
        terms: share of each part in the objective's gradient, by its norm; they add up to 1. Empty where the objective
            has none, see :mod:`~polydistill.losses.examination.terms`.
    """

    title: str
    findings: tuple[Finding, ...]
    terms: Mapping[str, float]

    @property
    def wrong(self) -> tuple[str, ...]:
        """The texts of what is wrong."""
        return tuple(finding.text for finding in self.findings if finding.level == "wrong")

    @property
    def healthy(self) -> bool:
        """Nothing is wrong; something may be suspicious, or not decided."""
        return not self.wrong

    def __bool__(self) -> bool:
        return self.healthy

    def __str__(self) -> str:
        lines = [f"doctor: {self.title}"]
        for level, text in self.findings:
            first, *rest = textwrap.wrap(text, WIDTH - 14, break_long_words=False)
            lines.append(f"  {'WRONG' if level == 'wrong' else level:<12}{first}")
            lines += [" " * 14 + line for line in rest]
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
    ignore_index: int | None = -100,
    **options: Any,
) -> Report:
    """Examine the set-up of a distillation on one batch.

    Args:
        student: module, or function from inputs to scores ``(batch, classes)`` or ``(batch, time, classes)``: a tensor,
            or an output that holds one, see :func:`~polydistill.losses.outputs.logits_of`.
        teacher: the same, or an ensemble, whose scores have a dimension of members before the others.
        objective: name in ``OBJECTIVES``: the one that is meant.
        inputs: one batch, as both take it.
        labels: ``(batch,)`` or ``(batch, time)`` integers, if there are any: the teacher's accuracy is measured on
            them, whatever the objective. Probabilities, of the scores' shape, are examined as the most likely class.
        loss_function: one's own loss of ``(student scores, teacher scores, labels)``. Its gradient is divided into
            terms and compared with the objective's. It is called at the batch's scores and at others, in float64 where
            it takes that.
        ignore_index: label of rows that do not count; None: all do.
        options: of the objective. Its ``check_values`` changes nothing: values are always checked.

    Returns:
        the findings and the share of each term in the gradient.

    Raises:
        ValueError: an unknown objective or option, a network that gives no scores, or probabilities as labels of an
            objective that needs the class.

    Example:
        >>> linear = torch.nn.Linear(3, 2)
        >>> print(doctor(linear, linear, "ban", torch.zeros(4, 3)).findings[0].text)
        student and teacher are the same network: build another one
    """
    named = get_objective(objective)
    options.pop("check_values", None)
    findings = list(examine_networks(student, teacher, inputs))
    with modes_kept(student, teacher), torch.enable_grad():
        scores, targets = _ask("student", student, inputs), _ask("teacher", teacher, inputs)
    if targets.requires_grad and not isinstance(teacher, nn.Module):  # a module can still be called under no_grad
        findings.append(Finding("wrong", "the teacher's scores have a graph: call it under torch.no_grad()"))
    if student is not teacher:
        findings += examine_tensors(scores, targets)
    scores, targets = scores.detach(), targets.detach()
    of_kinds = [
        finding
        for name, found in (("student", scores), ("teacher", targets))
        for finding in examine_kind(name, found, regression=named.score_kind == "teacher")
    ]
    findings += of_kinds
    scores, targets, of_types = _join_types(scores, targets)
    findings += of_types
    if labels is not None and are_probabilities(labels) and labels.shape == scores.shape:
        named.accept_label_kind(labels)
        labels = most_likely(labels, ignore_index)
        findings.append(Finding("fine", "the labels are probabilities: they are examined as the most likely class"))
    rows = take_rows(scores, targets, labels, options, ignore_index)
    title = _entitle(named, rows)
    if not len(rows.scores):
        return Report(title, (*findings, Finding("wrong", f"every label is {ignore_index}: no row is left")), {})
    faults = examine_scores(named, rows.scores, rows.targets, rows.labels, rows.options)
    findings += faults
    if any(fault.level == "wrong" for fault in faults):
        return Report(title, tuple(findings), {})

    def ask_again(others: Any) -> Tensor:
        with modes_kept(teacher), torch.no_grad():
            again = _ask("teacher", teacher, others)
        found = take_rows(scores, again.to(targets.dtype), labels, {}, ignore_index)
        return join_members(found.scores, found.targets)

    findings += _examine_rows(named, rows, inputs, ask_again, any(finding.level == "wrong" for finding in of_kinds))
    terms = weigh_terms(named, rows.scores, rows.targets, rows.labels, rows.options)
    findings += _examine_terms(named, terms)
    if loss_function is not None:
        place = Place(scores, targets, labels)
        with random_streams_kept(scores.device):
            findings += compare_loss(named, loss_function, place, options, ignore_index)
    return Report(title, tuple(findings), terms)


def _ask(name: str, network: ScoreFunction, inputs: Any) -> Tensor:
    output = network(inputs)
    try:
        found = logits_of(output)
        if found.dim() >= 2 and found.numel():
            return found
        what = f"a tensor of shape {tuple(found.shape)}"
    except TypeError as error:
        what = str(error).rpartition("; got ")[-1]
    raise ValueError(f"the {name} must give scores (batch, classes) for at least one sample, got {what}")


def _join_types(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, list[Finding]]:
    """Both in the wider of two types of floats."""
    if scores.dtype == targets.dtype or not (scores.is_floating_point() and targets.is_floating_point()):
        return scores, targets, []
    wider = torch.promote_types(scores.dtype, targets.dtype)
    names = [str(x.dtype).removeprefix("torch.") for x in (scores, targets)]
    text = f"the student's scores are {names[0]}, the teacher's {names[1]}: compared in {str(wider)[6:]}"
    return scores.to(wider), targets.to(wider), [Finding("fine", text)]


def _entitle(objective: Objective, rows: Rows) -> str:
    scores = rows.scores
    ignored = f" ({rows.ignored} more have no label)" if rows.ignored else ""
    samples = f"{len(scores)} samples of {scores.shape[-1]} classes{ignored} on {scores.device}"
    return f"{objective.name}, {samples}, {describe_backend(scores)}"


def _examine_rows(
    objective: Objective, rows: Rows, inputs: Any, ask_teacher: Callable[[Any], Tensor], useless: bool
) -> Iterator[Finding]:
    """Findings on labels, targets and gradient; ``useless``: give no advice on these targets."""
    if rows.labels is not None and "teacher" in objective.takes:
        joined = join_members(rows.scores, rows.targets)
        verdict = examine_accuracy(rows.scores, joined, rows.labels, inputs, ask_teacher)
        yield from verdict.findings
        useless = useless or verdict.useless
    yield from examine_targets(objective, rows.scores, rows.targets, rows.options, useless=useless)
    yield from examine_gradient(objective, rows.scores, rows.targets, rows.labels, rows.options)


def _examine_terms(objective: Objective, terms: Mapping[str, float]) -> Iterator[Finding]:
    for term, share in terms.items():
        if share < SILENT and term in TERMS.get(objective.name, {}):
            text = f"the term {term} has {share:.2%} of the gradient: raise its weight or leave it out"
            yield Finding("suspicious", text)
