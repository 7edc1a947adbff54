"""scripts/bench_teacher_scores.py measures every way, and its table and its file say the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks import run_benchmark
from tests.curves_and_tables import columns, explained


def test_the_benchmark_runs_and_its_table_is_of_its_raw_numbers(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        *("--classes", "[50, 200]", "--top_k", "5", "--batch_size", "4", "--rounds", "2", "--steps", "3"),
        *("--features", "8", "--threads", "1", "--device", "cpu", "--json", str(tmp_path / "raw.json")),
    ]
    run_benchmark(root, "bench_teacher_scores.py", words)
    table = capsys.readouterr().out
    assert columns(table)[0] == explained(root, "Tables of the benchmarks", "bench_teacher_scores.py")
    raw = json.loads((tmp_path / "raw.json").read_text())
    for classes, found in raw["classes"].items():
        assert all(len(times) == 2 and min(times) > 0 for times in found["milliseconds"].values())
        everything, likeliest = found["bytes"].values()
        assert 5 * 6 + 2 + 40 <= likeliest < 2 * int(classes) + 40 <= everything
        (line,) = (line for line in table.splitlines() if f" {classes} | asked in each step" in line)
        assert " 1.00 " in line, "the ratio to itself"
