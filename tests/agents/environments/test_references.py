"""The table of random and human scores."""

from __future__ import annotations

import csv

import pytest
from ale_py import roms

from polydistill_agents.environments.references import _table, reference


def test_the_table_has_57_games_of_ale_in_each_of_which_humans_beat_random_play():
    table = _table()
    assert len(table) == 57
    assert set(table) <= set(roms.get_all_rom_ids())
    assert all(row.human > row.random for row in table.values())


@pytest.mark.parametrize(
    ("game", "random", "human"),
    [("pong", -20.7, 14.6), ("breakout", 1.7, 30.5), ("seaquest", 68.4, 42054.7), ("double_dunk", -18.6, -16.4)],
)
def test_rows_are_those_of_the_published_table(game, random, human):
    assert reference(game) == (game, random, human)


def test_every_number_is_that_of_the_collected_table(root):
    collected = root.parent / "shared" / "data" / "atari_scores.csv"
    if not collected.is_file():
        pytest.skip("needs the folder shared beside the clone")
    with open(collected, encoding="utf-8", newline="") as file:
        rows = {row["ale_rom_id"]: (float(row["random"]), float(row["human"])) for row in csv.DictReader(file)}
    assert {game: (row.random, row.human) for game, row in _table().items()} == rows


def test_a_game_outside_the_table_has_no_row():
    assert reference("tetris") is None
