"""Scores of random play and of human testers in the 57 Atari games.

``atari_scores.csv`` holds one row per game: ALE's ROM id, the mean score of random play, of a professional human
tester; no-op starts, 30 minutes of play at most. The numbers are those of google-deepmind/dqn_zoo
(``dqn_zoo/atari_data.py``), which took them from Wang et al. (2016, arXiv 1511.06581) and Mnih et al. (2015).
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
