"""The table of random and human scores, and what is normalised by it."""

from __future__ import annotations

import csv

import pytest
from ale_py import roms

from polydistill_agents.environments.references import _table, human_normalized, reference, teacher_normalized


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


def test_the_published_normalised_score_of_a_zoo_agent_is_found():
    # the rl-baselines3-zoo's DQN: 20.6 in Pong and 358 in Breakout, 1.17 and 12.4 times a human
    assert human_normalized(20.6, "pong") == pytest.approx(1.17, abs=0.005)
    assert human_normalized(358, "breakout") == pytest.approx(12.4, abs=0.05)


def test_a_student_of_negative_scores_is_measured_from_random_play():
    # 10.35 of the 20.7 points above random play; the plain ratio -10.35 / 0 does not exist
    assert teacher_normalized(-10.35, 0.0, "pong") == pytest.approx(0.5)
    # better than its teacher although the ratio of the negative scores is below one
    assert teacher_normalized(-5.0, -10.0, "pong") == pytest.approx(15.7 / 10.7)
    assert teacher_normalized(-21.0, 14.0, "pong") < 0
    assert teacher_normalized(16.3, 16.3, "pong") == 1.0


@pytest.mark.parametrize("teacher", [-20.7, -21.0])
def test_a_teacher_no_better_than_random_play_measures_nothing(teacher):
    assert teacher_normalized(10.0, teacher, "pong") is None


def test_a_game_outside_the_table_has_no_normalised_score():
    assert reference("tetris") is None
    assert human_normalized(1.0, "tetris") is None
    assert teacher_normalized(1.0, 2.0, "tetris") is None
