"""The trained teachers that the project ships: ordinary Stable-Baselines3 DQN zips, each with a JSON card."""

from __future__ import annotations

from pathlib import Path

from polydistill.errors import UserError
from polydistill_agents.environments.games import check_game

ZOO = Path(__file__).parent


def find_teacher(game: str) -> Path:
    """The zip of the shipped teacher of ``game``.

    Raises:
        UserError: the project ships none; the message says what to do.
    """
    game = check_game(game)
    path = ZOO / f"dqn-{game}.zip"
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem.removeprefix("dqn-") for file in ZOO.glob("dqn-*.zip"))) or "none"
        raise UserError(
            f"no teacher of {game} is shipped (shipped: {shipped}): pass --teacher.path FILE, "
            f"or train one with scripts/train_teacher.py --game {game}"
        )
    return path
