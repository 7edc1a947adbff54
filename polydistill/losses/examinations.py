"""What :func:`~polydistill.losses.doctor.doctor` looks at, one examination per function.

The contract: neither network is changed, nor its mode, nor its gradients.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from polydistill.losses.backend import HAS_TRITON, can_launch, uses_kernels
from polydistill.losses.checks import accept_labels, accept_pair, inspect_values, promote
from polydistill.losses.objectives import Objective
from polydistill.losses.one_pass import value_and_grad
from polydistill.losses.probabilities import drop_classes, teacher_log_probabilities
from polydistill.losses.sharing import find_place, find_shared
from polydistill.losses.teachers import propose_temperature
from polydistill.losses.terms import find_temperature

Level = Literal["wrong", "suspicious", "fine"]
ScoreFunction = Callable[[Any], Tensor]
LossFunction = Callable[[Tensor, "Tensor | None", "Tensor | None"], Tensor]

SATURATED, FLAT = 0.999, 0.99  # mean of max p; mean entropy over ln n
FLOAT16_LIMIT = 60_000.0
TEMPERED_TWICE = {"hinton_kd", "dkd", "logit_standardized_kd"}  # both sides are, hence the T^2


class Finding(NamedTuple):
    """One thing looked at.

    Attributes:
        level: "wrong" will spoil the result; "suspicious" may be meant; "fine".
        text: what is the case and, where it is not fine, what to do.
    """

    level: Level
    text: str


def describe_backend(scores: Tensor) -> str:
    """What computes the losses of such scores."""
    if uses_kernels(scores):
        return "fused kernels"
    if scores.is_cuda and not can_launch():
        missing = "finds no C compiler: set CC, or install gcc" if HAS_TRITON else "is not installed"
        return f"plain formulas (Triton {missing})"
    return "plain formulas"


def examine_networks(student: ScoreFunction, teacher: ScoreFunction) -> Iterator[Finding]:
    if student is teacher:
        yield Finding("wrong", "student and teacher are the same network: build another one")
    if not isinstance(teacher, nn.Module):
        yield Finding("fine", "the teacher is a function: whether it is frozen cannot be seen")
        return
    training = [name or "the teacher" for name, module in teacher.named_modules() if module.training]
    if training and student is not teacher:
        yield Finding(
            "wrong", f"the teacher is in training mode ({training[0]}): its batch statistics move; say teacher.eval()"
        )
    if any(parameter.requires_grad for parameter in teacher.parameters()) and student is not teacher:
        text = "the teacher's weights ask for gradients: say teacher.requires_grad_(False), and call it under no_grad"
        yield Finding("suspicious", text)
    if not isinstance(student, nn.Module):
        return
    shared = [] if student is teacher else list(_examine_memory(student, teacher))
    yield from shared
    if not student.training:
        yield Finding("suspicious", "the student is in evaluation mode: say student.train() before learning")
    if not any(parameter.requires_grad for parameter in student.parameters()):
        yield Finding("wrong", "no weight of the student asks for a gradient: nothing will be learned")
    if not training and not shared and student is not teacher:
        yield Finding("fine", "the teacher is another network, in evaluation mode")


def _examine_memory(student: nn.Module, teacher: nn.Module) -> Iterator[Finding]:
    """What lies in both networks: weights and batch statistics must not, constants may."""
    shared = find_shared(student, teacher)
    if shared.weights:
        text = f"student and teacher share weights ({shared.weights[0]}): deep-copy, or build another network"
        yield Finding("wrong", text)
    if shared.buffers:
        text = f"student and teacher share a buffer ({shared.buffers[0]}): sound only if nothing ever changes it"
        yield Finding("suspicious", text)


def examine_tensors(scores: Tensor, targets: Tensor) -> Iterator[Finding]:
    """What bare functions may hide."""
    place = find_place(scores)
    if place is not None and place == find_place(targets):
        yield Finding("wrong", "student and teacher give one and the same tensor: the student is its own teacher")


@contextlib.contextmanager
def modes_kept(*networks: ScoreFunction) -> Iterator[None]:
    """Both in evaluation mode for a while: a look at the batch must not move batch statistics."""
    modules = [module for network in networks if isinstance(network, nn.Module) for module in network.modules()]
    modes = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def examine_scores(
    objective: Objective, scores: Tensor, targets: Tensor, labels: Tensor | None, options: Mapping[str, Any]
) -> list[Finding]:
    """What makes the objective refuse, and the ranges in which a type loses numbers.

    Labels are looked at even where the objective takes none: they are what its gradient is split at.
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
        findings.append(Finding("suspicious", f"scores up to {largest:.3g}: losses are proven up to 10,000"))
    return findings


def _find_largest(scores: Tensor, mask: Tensor | None) -> float:
    """The greatest size of a score that is finite and counts."""
    counts = scores.isfinite() if mask is None else scores.isfinite() & ~mask
    return float(scores.masked_fill(~counts, 0.0).abs().max())


def examine_targets(
    objective: Objective, scores: Tensor, targets: Tensor, options: Mapping[str, Any]
) -> Iterator[Finding]:
    """Whether the teacher's softmax still says something at its temperature."""
    untempered = objective.scores == "teacher" or objective.name in {"policy_nll", "logit_standardized_kd"}
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
    """A number for policies, whose temperature is in the unit of the scores."""
    if not objective.tempered:
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


def compare_loss(
    objective: Objective,
    loss_function: LossFunction,
    scores: Tensor,
    targets: Tensor,
    labels: Tensor | None,
    options: Mapping[str, Any],
) -> Finding:
    """How one's own loss is scaled, from its gradient along that of the objective's sum over the batch."""
    expected = promote(value_and_grad(objective.name, scores, targets, labels, **options).gradient)
    leaf = scores.detach().requires_grad_()
    loss: object = loss_function(leaf, targets, labels)
    if not isinstance(loss, Tensor):
        return Finding("wrong", f"your loss must be a tensor, got a {type(loss).__name__}: it has no gradient")
    gradient = torch.autograd.grad(loss.sum(), leaf, allow_unused=True)[0] if loss.requires_grad else None
    if gradient is None:
        return Finding("wrong", "your loss has no gradient with respect to the student's scores")
    gradient = promote(gradient)
    if not gradient.isfinite().all():
        return Finding("wrong", "your loss has a gradient that is not finite")
    size = float(expected.norm() * gradient.norm())
    cosine = float((expected * gradient).sum()) / size if size else 0.0
    if not cosine >= 0.999:
        return Finding(
            "wrong", f"your loss is another one: its gradient has cosine {cosine:.3f} with {objective.name}'s"
        )
    scale = float((expected * gradient).sum() / expected.square().sum())
    squared = find_temperature(objective, options) ** 2 if objective.name in TEMPERED_TWICE else 1.0
    return _explain_scale(scale, loss.dim() == 0, scores.shape[0], scores.shape[-1], squared)


def _explain_scale(scale: float, reduced: bool, batch: int, classes: int, squared: float) -> Finding:
    """Name the factor between a loss and the objective: of the batch's mean, or of each sample.

    ``squared`` is T^2 where both sides are tempered, and 1 otherwise. Factors may be equal by chance: all are named.
    """
    ratio = scale / (1.0 / batch if reduced else 1.0)
    if math.isclose(ratio, 1.0, rel_tol=0.01):
        return Finding(
            "fine", "your loss is the objective" + (", averaged over the batch" if reduced else ", per sample")
        )
    faults = {
        f"is summed over the batch: {batch} times too large": float(batch),
        f"is averaged over the classes too: {classes} times too small": 1.0 / classes,
    }
    if squared != 1.0:
        faults |= {
            f"lacks T^2 = {squared:g}": 1.0 / squared,
            f"has a T^2 = {squared:g} too many": squared,
            f"lacks T^2 and is averaged over the {classes} classes": 1.0 / squared / classes,
            "lacks T^2 and is summed over the batch": batch / squared,
        }
    named = [text for text, factor in faults.items() if math.isclose(ratio, factor, rel_tol=0.01)]
    if named:
        return Finding("wrong", "your loss " + ", or ".join(named))
    return Finding("suspicious", f"your loss is {ratio:.4g} times the objective: a weight, if that is meant")
