"""A temperature that is right for Q-values of any size, from the gaps between a teacher's actions.

The rule: T is half of the median gap between the best and the second best action, over states of the teacher's play. In
the median state the best action then has e^2 = 7.4 times the probability of the second. Rusu et al. (2016) chose 0.01
among four powers of ten for clipped rewards of Atari; the rule gives 0.0073 for the project's teacher of Pong.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

ROUNDED = 2  # digits: rounding errors of another machine choose no other temperature


class Tempered(NamedTuple):
    """A temperature, and what it makes of a teacher's scores.

    Attributes:
        temperature: in the unit of the scores.
        gap: the median between the best and the second best action.
        entropy: mean of the policy softmax(scores / temperature), in nats.
        most: of a policy that is indifferent, in nats.
    """

    temperature: float
    gap: float
    entropy: float
    most: float

    def __str__(self) -> str:
        chosen = f"temperature {self.temperature:.2g}: half of the median gap of {self.gap:.2g} between the teacher's "
        return f"{chosen}best two actions; its policy has {self.entropy:.2f} of at most {self.most:.2f} nats of entropy"


def choose_temperature(scores: Tensor) -> Tempered:
    """The temperature for Q-values such as these.

    Args:
        scores: ``(states, actions)``; of masked actions -inf. States in which no action is better than another, or that
            have only one, do not count; where there are no others it is 1.
    """
    if scores.shape[1] < 2:
        return Tempered(1.0, 0.0, 0.0, 0.0)
    best = scores.double().topk(2, dim=1).values
    gaps = best[:, 0] - best[:, 1]
    gaps = gaps[(gaps > 0) & gaps.isfinite()]
    gap = float(gaps.quantile(0.5)) if len(gaps) else 0.0
    temperature = _rounded(gap / 2) if gap else 1.0
    policy = (scores.double() / temperature).softmax(dim=1)
    entropy = float(torch.special.entr(policy).sum(dim=1).mean())
    return Tempered(temperature, gap, entropy, math.log(scores.shape[1]))


def _rounded(value: float) -> float:
    return float(f"{value:.{ROUNDED}g}")
