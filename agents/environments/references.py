"""Scores of random play and of human testers in the 57 Atari games, and scores normalised by them.

``atari_scores.csv`` holds one row per game: ALE's ROM id, the mean score of random play, of a professional human
tester; no-op starts, 30 minutes of play at most. The numbers are those of google-deepmind/dqn_zoo
(``dqn_zoo/atari_data.py``), which took them from Wang et al. (2016, arXiv 1511.06581) and Mnih et al. (2015).

The contract: points of a game in, a fraction out; None wherever it is not defined, never a guess.
"""

from __future__ import annotations

import csv
from functools import cache
from importlib import resources
from typing import NamedTuple

from polydistill_agents.environments.games import check_game


class Reference(NamedTuple):
    """Scores of one game that others are measured against, in its points.

    Attributes:
        game: ROM id of ale-py, like ``"pong"``.
        random: mean score of uniformly random actions.
        human: mean score of a professional human tester.
    """

    game: str
    random: float
    human: float


@cache
def _table() -> dict[str, Reference]:
    lines = (
        (resources.files("polydistill_agents.environments") / "atari_scores.csv")
        .read_text(encoding="utf-8")
        .splitlines()
    )
    return {
        row["game"]: Reference(row["game"], float(row["random"]), float(row["human"])) for row in csv.DictReader(lines)
    }


def reference(game: str) -> Reference | None:
    """The game's row; None for a game that is not among the 57.

    Raises:
        UserError: there is no game of that name.

    Example:
        >>> reference("pong")
        Reference(game='pong', random=-20.7, human=14.6)
    """
    return _table().get(check_game(game))


def human_normalized(score: float, game: str) -> float | None:
    r"""Score between random play (0) and a human (1).

    .. math:: (s - r) / (h - r)

    Args:
        score: mean unclipped score of full games, in points.
        game: ROM id of ale-py.

    Returns:
        Without unit, below 0 where the score is worse than random play's; None for a game without a row.

    Example:
        >>> human_normalized(-20.7, "pong"), human_normalized(14.6, "pong")
        (0.0, 1.0)
    """
    row = reference(game)
    return None if row is None else (score - row.random) / (row.human - row.random)


def teacher_normalized(student: float, teacher: float, game: str) -> float | None:
    r"""The student's score between random play (0) and its teacher (1).

    .. math:: (s - r) / (t - r)

    Random play is subtracted, so that it is right for games with negative scores, where s / t is not: a student at
    -10 with a teacher at -5 would be "twice" the teacher.

    Args:
        student: mean unclipped score of full games, in points.
        teacher: likewise.
        game: ROM id of ale-py.

    Returns:
        Without unit; None for a game without a row, and for a teacher that is not better than random play.
    """
    row = reference(game)
    if row is None or teacher <= row.random:
        return None
    return (student - row.random) / (teacher - row.random)
