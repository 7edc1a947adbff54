"""polydistill.study.correctness: right and wrong answers as the runs stored them, or none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from polydistill.runs.correctness import write_correct
from polydistill.study.correctness import correct_in
from polydistill.study.records import RunRecord


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    return keep(tmp_path, "runs/ban/seed0")


def keep(out: Path, name: str, tested: str = "ac849b") -> RunRecord:
    """A run of two generations: the teacher right on one of three, the student on two."""
    folder = out / name
    folder.mkdir(parents=True)
    correct = [
        write_correct(folder / f"generation_{k}_correct.npz", np.array(answers))
        for k, answers in enumerate([[True, False, False], [True, False, True]])
    ]
    summary = {"schema": 1, "generations": [], "correct": correct, "data": {"test": {"images": 3, "sha256": tested}}}
    (folder / "summary.json").write_text(json.dumps(summary))
    return RunRecord("ban", 0, name, "done")


def test_the_answers_are_those_of_the_last_generation(tmp_path: Path, record: RunRecord) -> None:
    found = correct_in(tmp_path)(record)
    assert found is not None
    assert found.tolist() == [True, False, True]


def test_a_damaged_file_and_a_run_without_one_give_none(tmp_path: Path, record: RunRecord) -> None:
    (tmp_path / record.folder / "generation_1_correct.npz").write_bytes(b"PK")
    assert correct_in(tmp_path)(record) is None
    (tmp_path / record.folder / "summary.json").write_text(json.dumps({"schema": 1, "generations": []}))
    assert correct_in(tmp_path)(record) is None
    assert correct_in(tmp_path)(RunRecord("ban", 1, "nowhere", "done")) is None


def test_answers_to_other_inputs_do_not_count(tmp_path: Path, record: RunRecord) -> None:
    same, other = keep(tmp_path, "runs/ban/seed1"), keep(tmp_path, "runs/ban/seed2", tested="f00d")
    read = correct_in(tmp_path)
    assert [read(run) is None for run in (record, same, other)] == [False, False, True]
