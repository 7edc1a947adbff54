"""scripts/bench_together.py measures both ways of the same steps, and its table and its file say the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks import run_benchmark
from tests.curves_and_tables import columns, explained


def test_the_benchmark_runs_and_both_ways_learn_the_same(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        *("--students", "[2, 3]", "--batch_size", "8", "--rounds", "2", "--steps", "2", "--precision", "float32"),
        *("--threads", "1", "--device", "cpu", "--json", str(tmp_path / "raw.json")),
    ]
    run_benchmark(root, "bench_together.py", words)
    table = capsys.readouterr().out
    assert columns(table)[0] == explained(root, "Tables of the benchmarks", "bench_together.py")
    raw = json.loads((tmp_path / "raw.json").read_text())
    assert raw["students"].keys() == {"2", "3"}
    for found in raw["students"].values():
        assert all(len(times) == 2 and min(times) > 0 for times in found["milliseconds"].values())
        assert max(found["distance"]) < 0.01
        assert len(found["distance"]) == 3, "the round that warms up counts, too"
