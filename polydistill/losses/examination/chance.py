"""How surely a number of hits is more, or less, than chance: exact binomial and sign tests.

Symbols: k hits of n; p the chance of each.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def at_least(k: int, n: int, p: float) -> float:
    """P(K >= k) for K binomial with n and p."""
    if k <= 0 or p >= 1.0:
        return 1.0
    return min(_sum(range(k, n + 1), n, p), 1.0) if p > 0.0 else 0.0


def at_most(k: int, n: int, p: float) -> float:
    """P(K <= k) for K binomial with n and p."""
    return at_least(n - k, n, 1.0 - p)


def _sum(counts: range, n: int, p: float) -> float:
    whole = math.lgamma(n + 1)
    odds = (math.log(p), math.log1p(-p))
    return math.fsum(
        math.exp(whole - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * odds[0] + (n - i) * odds[1]) for i in counts
    )


def chance_of(predictions: Tensor, labels: Tensor, n_classes: int) -> float:
    """The share of hits if predictions and labels, each with its own class frequencies, were independent."""
    shares = [torch.bincount(found, minlength=n_classes).double() / len(found) for found in (predictions, labels)]
    return min(float((shares[0] * shares[1]).sum()), 1.0)


def is_better(first: Tensor, second: Tensor, level: float) -> bool:
    """Whether the first, ``(n,)`` bool, is right where the second is wrong more often than by chance (sign test)."""
    for_first, for_second = int((first & ~second).sum()), int((second & ~first).sum())
    return at_least(for_first, for_first + for_second, 0.5) < level if for_first > for_second else False
