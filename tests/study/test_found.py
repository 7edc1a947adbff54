"""A study of run folders that are there: arms are found by what differs in their configs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from polydistill.errors import UserError
from polydistill.study.config import StudyConfig
from polydistill.study.found import read_found


def write_run(folder: Path, seed: int, accuracy: float | None = 0.5, kind: str = "cifar", **settings: Any) -> None:
    """A run folder as a lineage leaves it; ``settings`` are dotted keys with ``__`` for the dot."""
    config: dict[str, Any] = {
        "seed": seed,
        "threads": 1,
        "data": {"root": "", "made_up": 100},
        "teacher": {"path": ""},
        "student": {"objective": "ban", "label_weight": None},
        "lineage": {"generations": 1},
        "checkpoint": {"every_seconds": 60},
    }
    for key, value in settings.items():
        *groups, name = key.split("__")
        inner = config
        for group in groups:
            inner = inner[group]
        inner[name] = value
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    if accuracy is not None:
        generations = [{"metrics": {"test_accuracy": value}} for value in (0.25, accuracy)]
        summary = {"schema": 1, "kind": kind, "wall_seconds": 2.0, "config": config, "generations": generations}
        (folder / "summary.json").write_text(json.dumps(summary))


def find(folder: Path, **settings: Any) -> tuple[Any, Any]:
    return read_found(StudyConfig(runs=f"{folder}/*", **settings), folder.parent / "out")


def test_arms_are_named_by_what_differs_and_nothing_was_planned(tmp_path: Path) -> None:
    for seed in (3, 5):
        write_run(tmp_path / "a" / f"ban_{seed}", seed, 0.5, checkpoint__every_seconds=seed, teacher__path=f"{seed}")
        write_run(tmp_path / "a" / f"dkd_{seed}", seed, 0.75, student__objective="dkd", data__root="elsewhere")
    (tmp_path / "a" / "notes").mkdir()
    plan, records = find(tmp_path / "a")
    assert plan.names == ("objective=ban", "objective=dkd")
    assert (plan.seeds, plan.contrasts, plan.found, plan.world) == ((3, 5), (), True, "cifar")
    assert (plan.metric, plan.direction) == ("test_error", "lower")
    assert plan.arm("objective=dkd").overrides == {"student.objective": "dkd"}
    assert "objective" not in plan.base["student"]
    assert [(record.arm, record.seed, record.metrics["test_error"]) for record in records] == [
        ("objective=ban", 3, 50.0), ("objective=ban", 5, 50.0), ("objective=dkd", 3, 25.0), ("objective=dkd", 5, 25.0),
    ]  # fmt: skip
    assert records[0].folder == "../a/ban_3"
    assert records[0].teacher_metrics["test_error"] == 75.0


def test_a_key_that_an_older_run_does_not_have_is_off(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / "a" / f"older{seed}", seed)
        write_run(tmp_path / "a" / f"off{seed}", seed, student__objective="dkd", student__repeat=0)
        write_run(tmp_path / "a" / f"on{seed}", seed, student__repeat=1)
    assert find(tmp_path / "a")[0].names == (
        "objective=dkd repeat=0",
        "objective=ban repeat=0",
        "objective=ban repeat=1",
    )


def test_two_keys_that_differ_are_both_in_the_name_and_null_is_left_out(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / "a" / f"x{seed}", seed)
        write_run(tmp_path / "a" / f"y{seed}", seed, student__objective="ban_l", student__label_weight=0.5)
    assert find(tmp_path / "a")[0].names == ("objective=ban", "objective=ban_l label_weight=0.5")


def test_unfinished_runs_are_missing_and_runs_of_a_teacher_alone_are_no_arm(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / "a" / f"t{seed}", seed, lineage__generations=0)
        write_run(tmp_path / "a" / f"x{seed}", seed)
        write_run(tmp_path / "a" / f"y{seed}", seed, None if seed else 0.5, student__objective="dkd")
    plan, records = find(tmp_path / "a")
    assert plan.names == ("objective=ban", "objective=dkd")
    assert {(record.arm, record.seed): record.status for record in records}["objective=dkd", 1] == "missing"
    assert [record.seed for record in records if record.arm == "teacher"] == [0, 1]


@pytest.mark.parametrize(
    ("second", "says"),
    [
        ({"data__made_up": 7}, r"are not of one study: data.made_up is 100 in the first, 7 in the other"),
        ({}, r"are the same arm \(as the default\) and seed \(0\): leave one out"),
        ({"student__objective": "dkd"}, r"finds 2 arms and 1 seeds: a comparison needs 2 arms and 2 seeds of each"),
        ({"kind": "atari"}, r"finds runs of 2 kinds \(atari, cifar\)"),
    ],
)
def test_what_is_not_one_study_is_refused(tmp_path: Path, second: dict[str, Any], says: str) -> None:
    write_run(tmp_path / "a" / "x", 0)
    write_run(tmp_path / "a" / "y", 0, **second)
    with pytest.raises(UserError, match=says):
        find(tmp_path / "a")


def test_runs_of_another_world_and_no_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"finds no run folder \(one with a config.yaml\) among 0 names"):
        find(tmp_path)
    write_run(tmp_path / "a" / "x", 0)
    with pytest.raises(UserError, match="finds runs of cifar, not of atari"):
        find(tmp_path / "a", world="atari")


def test_another_machine_is_said_and_no_reason_to_refuse(tmp_path: Path, capsys) -> None:
    for seed in (0, 1):
        write_run(tmp_path / "a" / f"x{seed}", seed)
        write_run(tmp_path / "a" / f"y{seed}", seed, student__objective="dkd", threads=2)
    assert len(find(tmp_path / "a")[0].names) == 2
    assert "the runs differ in threads (1 in " in capsys.readouterr().err
