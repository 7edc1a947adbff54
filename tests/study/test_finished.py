"""polydistill.study.finished: whether the finished runs of a study had the same data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from polydistill.errors import UserError
from polydistill.study import beginning
from polydistill.study.finished import FinishedRuns
from polydistill.study.planned import PlannedRun


def compare(*data: dict[str, Any], seeds: tuple[int, int]) -> None:
    """Look at what two runs of these seeds had."""
    finished = FinishedRuns(Path("study"), {}, {})
    for arm, seed, held in zip("ab", seeds, data, strict=True):
        finished._require_same_data(PlannedRun(arm, seed, {}, None), held)


def part(name: str, **sums: str) -> dict[str, Any]:
    return {name: {"images": 3, "sha256": "names", **sums}}


def test_sizes_of_files_are_compared_where_both_runs_know_them() -> None:
    first, other = part("test", sizes_sha256="1"), part("test", sizes_sha256="2")
    with pytest.raises(UserError, match=r"runs/b/seed1 had other data \(test\) than study/runs/a/seed0"):
        compare(first, other, seeds=(0, 1))
    compare(first, part("test"), seeds=(0, 1))
    compare(part("test"), other, seeds=(0, 1))


def test_what_is_learned_from_is_compared_over_all_seeds_before_any_is_held_out() -> None:
    with pytest.raises(UserError, match=r"\(whole\)"):
        compare(part("whole"), part("whole", sha256="more names"), seeds=(0, 1))
    compare(part("train"), part("train", sha256="drawn by the seed"), seeds=(0, 1))
    with pytest.raises(UserError, match=r"\(train\)"):
        compare(part("train"), part("train", sha256="others"), seeds=(0, 0))


def test_before_a_run_begins_sizes_are_compared_with_those_of_finished_runs_that_know_them(tmp_path: Path) -> None:
    def write(data: dict[str, Any]) -> None:
        (tmp_path / "summary.json").write_text(json.dumps({"schema": 1, "generations": [], "data": data}))

    now = {**part("test", sizes_sha256="1"), **part("whole", sizes_sha256="1")}
    for data in (now, part("test")):
        write(data)
        beginning._require_same_data(now, [tmp_path])
    for data in (part("test", sizes_sha256="2"), {**part("test"), **part("whole", sizes_sha256="2")}):
        write(data)
        with pytest.raises(UserError, match="than there are now: put them back as they were"):
            beginning._require_same_data(now, [tmp_path])
