"""scripts/bench_cifar.py measures every contender, and its table and its file say the same."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from tests.benchmarks import run_benchmark
from tests.curves_and_tables import columns, explained


def test_the_benchmark_runs_and_its_table_is_of_its_raw_numbers(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        *("--networks", "[resnet-8, wrn-10-1]", "--batch_size", "4", "--rounds", "3", "--steps", "2"),
        *("--threads", "1", "--device", "cpu", "--precision", "float32", "--json", str(tmp_path / "raw.json")),
    ]
    run_benchmark(root, "bench_cifar.py", words)
    raw = json.loads((tmp_path / "raw.json").read_text())
    assert raw["config"]["precision"] == "float32"
    assert raw["bfloat16_peak_operations_per_second"] is None
    found = raw["images_per_second"]
    assert list(found) == ["resnet-8", "wrn-10-1"]
    table = capsys.readouterr().out
    assert columns(table)[0] == explained(root, "Tables of the benchmarks", "bench_cifar.py")
    for network, rates in found.items():
        assert {"trainer", "bare", "float32"} <= rates.keys()
        assert all(len(values) == 3 and min(values) > 0 for values in rates.values())
        (line,) = (line for line in table.splitlines() if network in line and "the trainer, loader included" in line)
        assert f"{min(rates['trainer']):,.0f} to {max(rates['trainer']):,.0f}" in line
        assert " 1.00 " in line, "the ratio to itself"
        (line,) = (line for line in table.splitlines() if network in line and "the bare step" in line)
        ratios = [ours / bare for ours, bare in zip(rates["trainer"], rates["bare"], strict=True)]
        assert f" {statistics.median(ratios):.2f} " in line
