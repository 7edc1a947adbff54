"""Records of runs, read from their folders, and results.csv."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from polydistill.runs.lock import FolderLock
from polydistill.study.records import RunRecord, read_failures, read_record, write_results


def write_summary(folder: Path, *metrics: dict[str, Any], **more: Any) -> None:
    folder.mkdir(parents=True)
    generations = [{"generation": index, "metrics": values} for index, values in enumerate(metrics)]
    summary = {"schema": 1, "wall_seconds": 12.5, "generations": generations, **more}
    (folder / "summary.json").write_text(json.dumps(summary))


def test_a_finished_run_gives_the_numbers_of_its_last_generation_and_of_its_teacher(tmp_path: Path) -> None:
    student = {"test_accuracy": 0.75, "val_accuracy": None, "selection": "last", "agreement": 0.5}
    write_summary(tmp_path / "a", {"test_accuracy": 0.25}, student)
    record = read_record(tmp_path, "ban", 3, "a")
    assert (record.status, record.seconds, record.key) == ("done", 12.5, ("ban", 3))
    assert record.metrics == {"test_accuracy": 0.75, "test_error": 25.0, "agreement": 0.5}
    assert record.teacher_metrics == {"test_accuracy": 0.25, "test_error": 75.0}


def test_a_score_is_its_mean_over_the_games(tmp_path: Path) -> None:
    write_summary(tmp_path / "a", {"score_mean": 20.5, "score_ci95": [20.0, 21.0]})
    record = read_record(tmp_path, "kl", 0, "a")
    assert record.metrics == {"score_mean": 20.5, "score": 20.5}
    assert record.teacher_metrics == {}


def test_a_run_that_is_not_there_is_missing_and_one_at_work_is_running(tmp_path: Path) -> None:
    assert read_record(tmp_path, "ban", 0, "a").status == "missing"
    (tmp_path / "a").mkdir()
    lock = FolderLock(tmp_path / "a")
    try:
        # the lock belongs to the open file, so another opening of it finds it taken, in this process too
        assert read_record(tmp_path, "ban", 0, "a", why="an earlier try").status == "running"
    finally:
        lock.release()
    assert read_record(tmp_path, "ban", 0, "a", why="it fell").why == "it fell"
    assert read_record(tmp_path, "ban", 0, "a", why="it fell").status == "failed"


@pytest.mark.parametrize("text", ["{", '{"schema": 1}', '{"schema": 1, "generations": []}', '{"schema": 7}'])
def test_a_damaged_summary_is_a_failed_run_that_says_so_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "summary.json").write_text(text)
    record = read_record(tmp_path, "ban", 0, "a")
    assert record.status == "failed"
    assert str(tmp_path / "a" / "summary.json") in record.why
    assert "\n" not in record.why


def test_results_hold_one_row_per_run_and_what_was_not_measured_is_empty(tmp_path: Path) -> None:
    done = RunRecord("ban", 0, "runs/ban/seed0", "done", {"test_error": 12.5}, {"test_error": 14.0}, 9.0)
    failed = RunRecord("ban", 1, "runs/ban/seed1", "failed", why='loss is "nan", stopped')
    write_results(tmp_path, [done, failed, RunRecord("kl", 0, "runs/kl/seed0", "missing")])
    with open(tmp_path / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "arm": "ban", "seed": "0", "status": "done", "seconds": "9.0", "test_error": "12.5",
        "teacher_test_error": "14.0", "folder": "runs/ban/seed0", "why": "",
    }  # fmt: skip
    assert [(row["status"], row["test_error"]) for row in rows[1:]] == [("failed", ""), ("missing", "")]
    assert read_failures(tmp_path) == {("ban", 1): 'loss is "nan", stopped'}


def test_failures_of_a_table_that_is_not_ours_are_none(tmp_path: Path) -> None:
    assert read_failures(tmp_path) == {}
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    assert read_failures(tmp_path) == {}
