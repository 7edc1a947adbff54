"""The tables of README.md and RESULTS.md are what the raw measurements give, and the measurements are sound."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def check(root: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(root / "scripts" / "render_results.py"), "--check", "true"]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)


def test_the_tables_are_those_of_the_measurements(root: Path) -> None:
    done = check(root)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_changed_number_is_found(root: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    (clone / "scripts").mkdir(parents=True)
    for name in ("README.md", "RESULTS.md", "scripts/render_results.py"):
        (clone / name).write_text((root / name).read_text(encoding="utf-8"), encoding="utf-8")
    (clone / "scripts" / "measurements").symlink_to(root / "scripts" / "measurements")
    assert check(clone).returncode == 0
    text = (clone / "RESULTS.md").read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith("| teacher"))
    (clone / "RESULTS.md").write_text(text.replace(row, row.replace("1", "2", 1)), encoding="utf-8")
    done = check(clone)
    assert done.returncode == 1
    assert "RESULTS.md" in done.stdout


MEASUREMENTS = sorted((Path(__file__).resolve().parents[2] / "scripts" / "measurements").glob("*.json"))


def test_there_are_measurements() -> None:
    assert MEASUREMENTS


@pytest.mark.parametrize("path", MEASUREMENTS, ids=lambda path: path.name)
def test_a_measurement_names_hardware_versions_and_commit(path: Path) -> None:
    raw = json.loads(path.read_text(encoding="utf-8"))
    assert raw["hardware"]["cpu"]
    assert raw["versions"]["torch"]
    assert len(raw["git"]["commit"]) == 40
    assert "/" not in str(raw["hardware"])
