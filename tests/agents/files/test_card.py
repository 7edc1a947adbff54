"""What a card beside an agent's file promises, and cards that promise nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from polydistill_agents.files.card import card_score


def write(folder: Path, mean: object) -> Path:
    card = {"sha256": "ab", "evaluation": {"protocol": "own", "score_mean": mean}}
    (folder / "agent.json").write_text(json.dumps(card), encoding="utf-8")
    return folder / "agent.zip"


def test_a_card_promises_a_score_of_these_weights_under_this_protocol(tmp_path: Path) -> None:
    agent = write(tmp_path, 12)
    assert card_score(agent, "ab", "own") == 12.0
    assert card_score(agent, "cd", "own") is None
    assert card_score(agent, "ab", "zoo") is None


@pytest.mark.parametrize("mean", [10**400, True, float("nan"), "12", None], ids=str)
def test_a_score_that_is_no_number_promises_nothing(mean: object, tmp_path: Path) -> None:
    assert card_score(write(tmp_path, mean), "ab", "own") is None


def test_a_pipe_in_the_place_of_a_card_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "agent.json")
    assert card_score(tmp_path / "agent.zip", "ab", "own") is None
