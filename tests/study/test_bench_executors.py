"""scripts/bench_executors.py runs its made-up study, and its table and its file say the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks import run_benchmark


def test_the_benchmark_runs_and_its_table_is_of_its_raw_numbers(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--executor", "local", "--runs", "12", "--seconds", "0.05", "--json", str(tmp_path / "raw.json")]
    run_benchmark(root, "bench_executors.py", words)
    raw = json.loads((tmp_path / "raw.json").read_text())
    table = capsys.readouterr().out
    assert raw["runs"] == 12
    assert raw["seconds_of_a_run"] > 0.05
    assert 2 * raw["wall_seconds"] > 12 * raw["seconds_of_a_run"]
    assert 0 < raw["own_ms"] < 1000 * raw["wall_seconds"]
    for name, form in (("overhead_ms", ".1f"), ("own_ms", ".1f"), ("memory_mib_at_the_end", ".0f")):
        assert f" {raw[name]:{form}} |" in table, name
