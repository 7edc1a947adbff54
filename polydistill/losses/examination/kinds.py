"""The kind of a network's output: scores before the softmax, or probabilities, which a loss would softmax again.

Probabilities taken as scores make the targets flat: with 10 classes, a sure teacher's best class gets 0.23
(e / (e + 9)).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from polydistill.losses.examination.findings import Finding, Level

ROUNDED = 2e-3  # what the sum of probabilities may lose on its way through float16
LEAST_NUMBERS = 64  # with fewer, all scores may be between 0 and 1, or at least 0, by chance
CLIPPED = 0.1  # share of exact zeros among scores without a negative one


def examine_kind(name: str, scores: Tensor, *, regression: bool = False) -> Iterator[Finding]:
    """Check whether scores are what a loss takes, or the output of a softmax.

    Args:
        name: whose they are, "student" or "teacher".
        scores: ``(..., classes)`` as the network gives them.
        regression: the objective uses the scores themselves, not their softmax.
    """
    if not scores.is_floating_point():
        return  # the objective refuses it
    exact = scores.double()
    rows = exact.flatten(0, -2)
    if rows.shape[-1] < 2 or not bool(rows.isfinite().any(dim=-1).all()) or bool((rows == torch.inf).any()):
        return
    slack = max(ROUNDED, 4.0 * torch.finfo(scores.dtype).eps)
    if _are_probabilities(rows, slack):
        level: Level = "suspicious" if regression or len(rows) == 1 else "wrong"
        text = (
            f"the {name} gives probabilities (rows between 0 and 1 that sum to 1): losses take scores, what comes "
            "before the softmax; leave the softmax out, or pass the logarithm"
        )
        yield Finding(level, text)
    elif bool((rows.logsumexp(dim=-1).abs() <= slack).all()):
        yield from _examine_log_probabilities(name, rows)
    elif len(rows) * rows.shape[-1] >= LEAST_NUMBERS:
        yield from _examine_range(name, rows)


def _are_probabilities(rows: Tensor, slack: float) -> bool:
    inside = bool(((rows >= 0.0) & (rows <= 1.0 + slack)).all())
    return inside and bool(((rows.sum(dim=-1) - 1.0).abs() <= slack).all())


def _examine_log_probabilities(name: str, rows: Tensor) -> Iterator[Finding]:
    """Valid scores, unless they are the log_softmax of probabilities."""
    shifted = rows + (1.0 - rows.sum(dim=-1, keepdim=True)) / rows.shape[-1]  # sums to 1, as probabilities do
    inside = bool(((shifted >= -1e-5) & (shifted <= 1.0 + 1e-5)).all())
    sure = float(shifted.amax(dim=-1).mean()) > 0.5 + 0.5 / rows.shape[-1]  # flat scores are inside by chance
    if rows.shape[-1] > 2 and len(rows) > 1 and inside and sure:
        text = f"the {name} gives log-probabilities of probabilities: a softmax is taken twice; leave one out"
        yield Finding("wrong", text)
        return
    yield Finding("fine", f"the {name} gives log-probabilities, which are valid scores")


def _examine_range(name: str, rows: Tensor) -> Iterator[Finding]:
    if bool((rows.std(dim=-1) == 0.0).all()):
        return
    if bool(((rows >= 0.0) & (rows <= 1.0)).all()):
        text = f"all scores of the {name} are between 0 and 1: does it end in a sigmoid? Losses take what comes before"
        yield Finding("suspicious", text)
    elif bool((rows >= 0.0).all()) and float((rows == 0.0).double().mean()) > CLIPPED:
        zeros = float((rows == 0.0).double().mean())
        text = f"no score of the {name} is negative, and {zeros:.0%} are 0: does it end in a ReLU? Leave that out"
        yield Finding("suspicious", text)
