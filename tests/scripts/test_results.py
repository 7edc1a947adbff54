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


GPU_ROWS = """\
objective,shape,type,contender,work,median_us,low_us,high_us,of_formula,bytes,of_copy,peak_bytes,copy_bytes_per_second
policy_kl,256x18,float32,ours,loss and gradient,40.25,39.0,123.4,0.2512,13824,0.5,36864,3000000000000
policy_kl,256x18,float32,formula,loss and gradient,161.0,150.0,170.0,1.0,13824,0.125,73728,3000000000000
policy_kl,256x18,float32,one pass,loss and gradient,20.0,19.0,21.0,0.125,13824,0.81234,,3000000000000
policy_kl,256x18,float32,ours,replayed,10.0,9.0,11.0,,13824,0.9,,3000000000000
"""


def test_measurements_of_a_gpu_are_rendered_once_they_are_there(root: Path, tmp_path: Path) -> None:
    (tmp_path / "scripts" / "measurements").mkdir(parents=True)
    script = (root / "scripts" / "render_results.py").read_text(encoding="utf-8")
    (tmp_path / "scripts" / "render_results.py").write_text(script, encoding="utf-8")
    (tmp_path / "README.md").write_text("", encoding="utf-8")
    (tmp_path / "RESULTS.md").write_text("<!-- table: losses_cuda -->\n<!-- end -->\n", encoding="utf-8")
    done = check(tmp_path)
    assert done.returncode == 2
    assert "no measurement losses_cuda.csv in measurements/" in done.stderr
    (tmp_path / "scripts" / "measurements" / "losses_cuda.csv").write_text(GPU_ROWS, encoding="utf-8")
    subprocess.run([sys.executable, str(tmp_path / "scripts" / "render_results.py")], check=True, timeout=120)
    assert check(tmp_path).returncode == 0
    lines = (tmp_path / "RESULTS.md").read_text(encoding="utf-8").splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    row = dict(zip(table[0], table[2], strict=True))
    assert row["ours"] == "40.2 (39.0-123)"
    assert row["formula"] == "161 (150-170)"
    assert row["ours / formula"] == "0.25"
    assert row["MB"] == "0.01382"
    assert (row["ours of copy"], row["one pass of copy"]) == ("50.0%", "81.2%")
    assert (row["ours peak MB"], row["formula peak MB"]) == ("0.03686", "0.07373")
    assert table[3][3:] == ["replayed", "10.0 (9.0-11.0)", "-", "-", "-", "0.01382", "90.0%", "-", "-", "-"]


def test_bytes_are_what_is_moved(root: Path) -> None:
    """3 x 32 x 18 float32 numbers are moved for a gradient, 2 for the loss alone: 6.912 and 4.608 kB."""
    lines = [x for x in (root / "RESULTS.md").read_text(encoding="utf-8").splitlines() if "|      32x18 | float32" in x]
    assert lines
    for line in lines:
        assert ("| 0.004608 |" if "| loss  " in line else "| 0.006912 |") in line


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
