"""polydistill.vision.report: a lineage as a table that fits a terminal, or as all that is known."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from polydistill.vision.config import CifarConfig, EvaluationConfig
from polydistill.vision.report import HEADERS, format_summary


@pytest.fixture
def stored(root: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads(
        (root / "scripts" / "measurements" / "resnet8_short-ban-seed0.json").read_text()
    )
    return summary


def lineage(stored: dict[str, Any], generations: int, *, network: str, objective: str, seconds: float) -> Any:
    """A summary with that many students, and the ensembles that a run would measure."""
    summary = copy.deepcopy(stored)
    first, student = summary["generations"][:2]
    summary["generations"] = [first] + [
        {**copy.deepcopy(student), "generation": index, "objective": objective, "parameters": 51_017_060}
        for index in range(1, generations + 1)
    ]
    summary["seconds"] = [seconds] * (generations + 1)
    metrics = summary["ensembles"][0]["metrics"]
    summary["ensembles"] = [
        {"members": list(members), "reference": 0, "metrics": metrics}
        for members in EvaluationConfig().chosen_ensembles(generations)
    ]
    summary["config"]["teacher"]["network"] = network
    summary["config"]["student"] |= {"network": "teacher", "objective": objective}
    return summary


@pytest.mark.parametrize("generations", [1, 3, 12, 40])
@pytest.mark.parametrize("objective", ["ban", "logit_standardized_kd"])
@pytest.mark.parametrize("network", ["densenet-80-120", "preact-bottleneck-1001"])
def test_a_table_and_its_title_fit_80_columns(
    stored: dict[str, Any], generations: int, objective: str, network: str
) -> None:
    summary = lineage(stored, generations, network=network, objective=objective, seconds=1_234_567)
    text = format_summary(summary)
    assert max(map(len, text.splitlines())) <= 80
    for part in ("who", "learns by", "test error %", "agreement", "generation 1 ", "ensemble of", network, objective):
        assert part in text
    assert text.count("| generation ") == generations + 1


def test_the_papers_column_comes_before_others_and_is_left_out_where_it_is_empty(stored: dict[str, Any]) -> None:
    published = format_summary(lineage(stored, 3, network="densenet-80-120", objective="ban", seconds=36_000))
    assert "paper's error %" in published
    assert " 16.00 " in published
    assert "one run of 200 epochs" in " ".join(published.split())
    assert "paper's" not in format_summary(lineage(stored, 1, network="resnet-8", objective="ban", seconds=90))


def test_wide_shows_every_column_and_each_ones_network(stored: dict[str, Any]) -> None:
    text = format_summary(lineage(stored, 2, network="densenet-80-120", objective="ban", seconds=90), wide=True)
    header = next(line for line in text.splitlines() if line.startswith("| who"))
    assert [cell.strip() for cell in header.strip("| ").split("|")] == list(HEADERS)
    assert "| generation 2, densenet-80-120 |" in text
    assert " 51,017,060 |" in text


@pytest.mark.parametrize(
    ("members", "name"),
    [
        ([1, 2], "ensemble of 1, 2 "),
        ([2, 1, 0], "ensemble of 0 to 2 "),
        ([1, 2, 3, 4, 6], "ensemble of 1 to 4, 6 "),
        ([1, 3, 4], "ensemble of 1, 3, 4 "),
        (list(itertools.chain(range(1, 90, 2))), "ensemble of 1, 3, 5, 7, 9, 11, ... "),
    ],
)
def test_members_in_a_row_are_named_by_the_first_and_the_last(
    stored: dict[str, Any], members: list[int], name: str
) -> None:
    summary = lineage(stored, 90, network="resnet-8", objective="ban", seconds=90)
    summary["ensembles"] = [{**summary["ensembles"][0], "members": members}]
    text = format_summary(summary)
    assert f"| {name}" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_title_says_what_guessing_gives(stored: dict[str, Any]) -> None:
    assert CifarConfig().data.name == stored["config"]["data"]["name"] == "cifar100"
    assert "guessing errs in 99%" in " ".join(format_summary(stored).split())


def test_a_few_classes_are_said_and_not_held_against_the_paper(stored: dict[str, Any]) -> None:
    summary = lineage(stored, 1, network="densenet-80-120", objective="ban", seconds=90)
    assert "paper's error %" in format_summary(summary)
    summary["config"]["data"]["classes"] = 20
    text = " ".join(format_summary(summary).split())
    assert "cifar100 (its first 20 classes), 45,000 training" in text
    assert "guessing errs in 95%" in text
    assert "paper" not in text
