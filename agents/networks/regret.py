r"""What an action costs by the scores of a teacher: the difference that a disagreement makes.

Symbols: t(a) the teacher's scores of one state, a* its best action, n the number of actions.

Of Q-values the regret of action a is :math:`t(a^*) - t(a)`, in the unit of the Q-values: what the teacher expects to
lose by a before it goes on in its own way. Logits have no unit, and their differences are ruled by actions that nobody
takes; theirs is the difference of probabilities :math:`p(a^*) - p(a)` with :math:`p = \mathrm{softmax}(t)`, in [0, 1].
A disagreement where the teacher hardly cares costs next to nothing in either.
"""

from __future__ import annotations

import torch
from torch import Tensor


def values_of(scores: Tensor, kind: str) -> Tensor:
    """What the regret is a difference of: Q-values as they are, of logits the probabilities.

    Args:
        scores: ``(batch, actions)``; the best of each row is finite. ``-inf`` masks an action.
        kind: of the scores, "q_values" or "logits".

    Returns:
        ``(batch, actions)`` finite: a masked action has the probability 0, or the Q-value of the worst that is not.
    """
    if kind == "logits":
        return scores.softmax(dim=1)
    masked = scores.isneginf()
    return scores.where(~masked, scores.masked_fill(masked, torch.inf).amin(dim=1, keepdim=True))


def regrets(values: Tensor, actions: Tensor) -> Tensor:
    """The best value of each row less that of the action taken.

    Args:
        values: ``(batch, actions)`` of :func:`values_of`.
        actions: ``(batch,)`` int64.

    Returns:
        ``(batch,)``, >= 0; 0 where the action is one of the best.

    Example:
        >>> regrets(torch.tensor([[1.0, 3.0]]), torch.tensor([0]))
        tensor([2.])
    """
    return values.amax(dim=1) - values.gather(1, actions[:, None])[:, 0]


def q_errors(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """By how much a student's Q-values are too high: the greatest of each row, and that of the teacher's worst action.

    Args:
        student: ``(batch, actions)`` Q-values.
        teacher: the same; ``-inf`` masks an action, which then counts for neither.

    Returns:
        ``(batch,)`` each: max s - max Q, and s - Q of the action of the least Q.

    Example:
        >>> q_errors(torch.tensor([[1.5, -1.0]]), torch.tensor([[1.0, -4.0]]))
        (tensor([0.5000]), tensor([3.]))
    """
    masked = teacher.isneginf()
    best = student.masked_fill(masked, -torch.inf).amax(dim=1) - teacher.amax(dim=1)
    least, place = teacher.masked_fill(masked, torch.inf).min(dim=1)
    return best, student.gather(1, place[:, None])[:, 0] - least


def random_regrets(values: Tensor) -> Tensor:
    """The mean regret of an action drawn uniformly: ``(batch,)``, the best value of each row less the row's mean."""
    return values.amax(dim=1) - values.mean(dim=1)
