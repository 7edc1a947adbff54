"""A student's curve: what its points hold, and how soon it plays almost as well as its teacher."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from polydistill_agents.environments.evaluation import Evaluation

SCORE, AGREEMENT = "eval/mean_reward", "eval/agreement"  # tags
LEVEL = 0.95  # of the way from random play's mean score to the teacher's


class Point(NamedTuple):
    """Of a student's curve."""

    step: int
    score: float


def curve_point(played: Evaluation) -> dict[str, float]:
    """The tags of a point: mean score, and, where the teacher was asked, agreement in these games."""
    point = {SCORE: played.mean}
    return point if played.agreement is None else point | {AGREEMENT: played.agreement}


def steps_to_level(points: Iterable[Point], teacher: float, random: float) -> dict[str, float]:
    """The first point at which the student has reached 0.95 of its teacher.

    A student that never does counts with the steps of its whole play: the mean over runs is then the restricted mean
    of survival analysis. The samples learned from follow: ``student.samples_per_step`` for each step after
    ``play.warmup_steps``.

    Args:
        points: of the curve, by their steps; at least one, the last at the end of the play.
        teacher: its mean score.
        random: that of random play.

    Returns:
        ``steps_to_95``, steps of play; ``reached_95``, 1 or 0.

    Example:
        >>> steps_to_level([Point(0, 9.0), Point(200, 96.0), Point(400, 80.0)], teacher=100.0, random=0.0)
        {'steps_to_95': 200, 'reached_95': 1.0}
    """
    needed, last = random + LEVEL * (teacher - random), 0
    for point in points:
        last = point.step
        if point.score >= needed:
            return {"steps_to_95": last, "reached_95": 1.0}
    return {"steps_to_95": last, "reached_95": 0.0}
