"""The metrics of a classifier: accuracy, negative log-likelihood, calibration, agreement with its teacher.

Symbols: z logits ``(samples, classes)``, q = softmax(z), p the teacher's.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polydistill.losses import cross_entropy, mean_of_teachers, policy_kl

BINS = 15


@contextlib.contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """The network in evaluation mode without gradients; afterwards each of its parts is in the mode that it was in."""
    modes = [(part, part.training) for part in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, was_training in modes:
            part.training = was_training


def measure(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """``accuracy`` (fraction), ``nll`` (nats per sample) and ``ece`` (fraction) of ``(n, classes)`` logits."""
    return {
        "accuracy": (logits.argmax(dim=1) == labels).double().mean().item(),
        "nll": cross_entropy(logits, labels).double().mean().item(),
        "ece": calibration_error(logits, labels),
    }


def require_finite_metrics(metrics: Mapping[str, Any], whose: str) -> None:
    """Refuse a metric that is no finite number; None is a metric without a value.

    Raises:
        FloatingPointError: naming it, and ``whose`` it is.
    """
    for name, value in metrics.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise FloatingPointError(f"{name} of {whose} is {value}: its scores are too far apart for a number")


def calibration_error(logits: Tensor, labels: Tensor, *, bins: int = BINS) -> float:
    r"""Expected calibration error (Guo et al. 2017, equation 3).

    .. math:: \sum_b \frac{n_b}{n} |\mathrm{accuracy}_b - \mathrm{confidence}_b|

    over ``bins`` bins of equal width of the confidence max q.

    Args:
        logits: ``(n, classes)``, n >= 1.
        labels: ``(n,)`` int64.
        bins: how many.

    Example:
        >>> sure = torch.tensor([[9.0, -9.0], [9.0, -9.0]])  # one right, one wrong
        >>> round(calibration_error(sure, torch.tensor([0, 1])), 4)
        0.5
    """
    confidence, guess = logits.double().softmax(dim=1).max(dim=1)
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = (guess == labels).double() - confidence
    sums = torch.zeros(bins, dtype=torch.float64, device=logits.device).index_add_(0, index, gap)
    return (sums.abs().sum() / len(labels)).item()


def explain(samples: str) -> str:
    """What the measures of a table are, in a sentence for its card; ``samples`` are what it counts, in the plural."""
    return (
        "NLL is the mean negative log-likelihood, ECE the expected calibration error; agreement is the share of the "
        f"{samples} to which it gives its teacher's class; of an ensemble, that of its earliest member."
    )


def compare(student: Tensor, teacher: Tensor) -> dict[str, float]:
    """``agreement``: fraction of samples with the same most likely class; ``kl``: mean KL(p || q) in nats."""
    return {
        "agreement": (student.argmax(dim=1) == teacher.argmax(dim=1)).double().mean().item(),
        "kl": policy_kl(student, teacher, temperature=1.0).double().mean().item(),
    }


def ensemble_logits(members: Sequence[Tensor]) -> Tensor:
    """Logits whose softmax is the mean of the members' probabilities: ln(mean q), finite where all logits are.

    Args:
        members: one ``(n, classes)`` tensor each, at least one.
    """
    return mean_of_teachers(logits.double() for logits in members)
