"""The table of a run: whatever summary.json holds is printed, in 80 columns, with what a reader must know below it."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import numpy as np
import pytest

from polydistill.runs.log import plain_json
from polydistill.statistics import bootstrap_normalized_interval
from polydistill_agents.environments.protocols import get_protocol
from polydistill_agents.environments.references import reference
from polydistill_agents.lineage.report import GamesPlayed, format_summary, notes


def metrics(**other: Any) -> dict[str, Any]:
    return {
        "score_mean": -20.51,
        "score_iqm": -20.5,
        "score_ci95": [-20.83, -20.2],
        "episodes": 30,
        "protocol": "rusu",
        "human_normalized": 0.01,
        "teacher_normalized": None,
        "teacher_normalized_ci95": None,
        "agreement": None,
        "scores": [],
    } | other


def summary(*of_generations: dict[str, Any], game: str = "pong") -> dict[str, Any]:
    generations = [
        {"generation": k, "parameters": 1_687_206, "metrics": metrics(**other)}
        for k, other in enumerate(of_generations)
    ]
    told = {"config": {"game": game}, "seed": 0, "generations": generations, "ensembles": []}
    return told | {"seconds": [1.0] * len(generations)}


STUDENT = {"teacher_normalized": 0.987, "teacher_normalized_ci95": [0.951, 1.02], "agreement": 0.754}


def row(table: str, who: str) -> list[str]:
    return [cell.strip() for cell in next(line for line in table.splitlines() if f"| {who}" in line).split("|")[1:-1]]


@pytest.mark.parametrize(
    ("score", "interval"), [(-20.51, [-20.83, -20.2]), (15271.2, [14890.1, 15702.9]), (912345.0, [823456.0, 998765.4])]
)
def test_a_table_fits_80_columns_unless_it_is_wide(score, interval):
    big = {"score_mean": score, "score_ci95": interval}
    told = summary(big, STUDENT | big)
    assert max(map(len, format_summary(told).splitlines())) <= 80
    headers = ["who", "score", "95% over games", "of teacher", "agreement", "parameters"]
    assert row(format_summary(told), "who") == headers
    wide = row(format_summary(told, wide=True), "student 1")
    assert len(wide) == 9
    assert wide[4:7] == ["0.987", "0.951 to 1.020", "0.754"]


def test_random_play_and_a_human_stand_above_where_the_game_has_them():
    assert row(format_summary(summary({})), "random")[1] == "-20.70"
    assert "human" not in format_summary(summary({}, game="tetris"))


@pytest.mark.parametrize(
    ("ends", "text"),
    [(None, "-"), ([None, 1.25], "-inf to 1.250"), ([0.5, None], "0.500 to inf"), ([None, None], "-inf to inf")],
)
def test_an_interval_without_an_end_or_none_at_all_is_printed(ends, text):
    table = format_summary(summary({}, STUDENT | {"teacher_normalized_ci95": ends}), wide=True)
    assert row(table, "student 1")[5] == text


def test_an_ensemble_stands_below_its_members_with_the_weights_of_all_of_them():
    told = summary({}, STUDENT, STUDENT, STUDENT)
    cut = STUDENT | {"truncated": 2, "score_mean": 3.25}
    told["ensembles"] = [
        {"members": members, "reference": 0, "metrics": metrics(**cut)} for members in ([1, 2], [1, 2, 3])
    ]
    table = format_summary(told)
    names = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")]
    assert names[4:] == ["teacher", "student 1", "student 2", "student 3", "ensemble of 1, 2", "ensemble of 1 to 3"]
    assert max(map(len, table.splitlines())) <= 80
    assert row(table, "ensemble of 1 to 3")[1] == "3.25"
    assert row(format_summary(told, wide=True), "ensemble of 1, 2")[-2:] == ["3,374,412", "-"]  # twice 1,687,206
    assert "note: ensemble of 1, 2: 2 of 30 games were cut" in " ".join(table.split())


def test_what_is_rounded_to_zero_has_no_sign():
    told = summary({"score_mean": -0.004, "score_ci95": [-0.0049, 0.0], "human_normalized": -0.001})
    assert row(format_summary(told, wide=True), "teacher")[1:4] == ["0.00", "0.00 to 0.00", "0.00"]


def test_a_run_of_a_game_or_two_has_no_interval_and_below_ten_a_note():
    table = format_summary(summary({"episodes": 1, "score_ci95": None}))
    assert table.startswith("pong, 1 full game each, protocol rusu")
    assert row(table, "teacher")[2] == "-"
    assert "note: fewer than 3 games have no interval" in table
    assert "note: fewer than 10 games: the interval is rough" in format_summary(summary({"episodes": 9}))
    assert "rough" not in format_summary(summary({"episodes": 10}))


def test_games_that_were_cut_are_told_and_why_they_may_be_under_machado():
    cut = {"protocol": "machado", "truncated": 3}
    table = format_summary(summary({"protocol": "machado", "truncated": 0}, STUDENT | cut))
    assert "note: student 1: 3 of 30 games were cut at 27,000 steps" in table
    assert "note: machado presses no FIRE" in table
    assert "presses no FIRE" not in format_summary(summary({"truncated": 30}))
    assert "note:" not in format_summary(summary({}, STUDENT))


def test_an_agent_of_all_18_actions_is_told_where_the_game_has_fewer():
    full, own, whole = (GamesPlayed("it", 30, 0, *counts) for counts in ((18, 6), (6, 6), (18, 18)))
    assert notes("pong", "rusu", [full]) == ["it: all 18 actions of the joystick, where pong uses 6"]
    assert notes("pong", "rusu", [full, full]) == ["all 18 actions of the joystick, where pong uses 6"]
    assert notes("pong", "rusu", [own, whole]) == []


def test_a_summary_of_an_earlier_version_is_printed():
    old = copy.deepcopy(summary({}, STUDENT))
    assert not any("truncated" in generation["metrics"] for generation in old["generations"])
    assert "student 1" in format_summary(old)


def test_a_teacher_near_random_play_is_printed_from_the_file_of_its_run_again_and_again() -> None:
    random = reference("qbert").random
    teacher, student = [0.0, 0.0, 0.0, 4 * random + 4.0], [100.0, 400.0, 900.0, 200.0]
    ends = bootstrap_normalized_interval(student, teacher, random, generator=np.random.default_rng(0))
    assert ends.high == math.inf
    fresh = summary({}, STUDENT | {"teacher_normalized_ci95": ends}, game="qbert")
    stored = json.loads(json.dumps(plain_json(fresh), allow_nan=False))
    first, again = (format_summary(told, wide=True) for told in (fresh, stored))
    assert row(first, "student 1")[5].endswith(" to inf")
    assert again == first


def test_every_line_of_a_table_with_notes_fits_80_columns() -> None:
    cut = {"protocol": "machado", "truncated": 30, "n_actions": 18, "game_actions": 4, "episodes": 9}
    table = format_summary(summary(cut, STUDENT | cut, game="breakout"))
    assert table.count("note: ") == 5
    assert max(map(len, table.splitlines())) <= 80
    for name in ("rusu", "machado", "zoo"):
        assert len(get_protocol(name).source) < 78
