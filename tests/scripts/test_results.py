"""The tables of the documents are what the raw measurements give, those keep their form, measurements are sound."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from polydistill.report.blocks import BLOCK

RESULTS = ("RESULTS.md", "docs/speed.md")  # pages of questions and answers
RENDER, RENDER_SPEED, RENDER_STUDIES, _ = SCRIPTS = (
    "render_results.py",
    "render_speed.py",
    "render_studies.py",
    "render_students.py",
)


def check(root: Path, script: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(root / "scripts" / script), "--check"]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_tables_are_those_of_the_measurements(root: Path, script: str) -> None:
    done = check(root, script)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_table_is_made_by_one_script(root: Path) -> None:
    pages = [
        root / "README.md",
        *(root / page for page in RESULTS),
        *(root / "docs").glob("*.md"),
        *(root / "scripts" / "measurements").glob("*.md"),
    ]
    named = {name for page in pages for _, name, _ in BLOCK.findall(page.read_text(encoding="utf-8"))}
    made = [
        set(re.findall(r'^    "(\w+)": ', (root / "scripts" / script).read_text(encoding="utf-8"), re.MULTILINE))
        for script in SCRIPTS
    ]
    assert named
    assert [sum(name in tables for tables in made) for name in sorted(named)] == [1] * len(named)


@pytest.mark.parametrize("name", ["RESULTS.md", "scripts/measurements/pong.md"])
def test_a_changed_number_is_found(root: Path, tmp_path: Path, name: str) -> None:
    clone = tmp_path / "clone"
    shutil.copytree(root / "scripts" / "measurements", clone / "scripts" / "measurements")
    (clone / "docs").mkdir()
    for copied in ("README.md", *RESULTS, f"scripts/{RENDER}"):
        shutil.copy(root / copied, clone / copied)
    assert check(clone, RENDER).returncode == 0
    text = (clone / name).read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if re.match(r"\| (its twin|seed 1)", line))
    (clone / name).write_text(text.replace(row, row.replace("1", "2", 1)), encoding="utf-8")
    done = check(clone, RENDER)
    assert done.returncode == 1
    assert name in done.stdout


def questions(path: Path) -> dict[str, str]:
    """Question of a page of results -> what stands below it."""
    parts = re.split(r"^## (.+)\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("page", RESULTS)
def test_results_are_one_screen_per_question(root: Path, page: str) -> None:
    assert (root / page).stat().st_size < 20_000
    for question, text in questions(root / page).items():
        assert question.endswith("?")
        tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
        assert tables, question
        assert max(len(table.splitlines()) - 2 for table in tables) <= 9, question


@pytest.mark.parametrize("page", RESULTS)
def test_every_result_names_date_commit_command_and_raw_data(root: Path, page: str) -> None:
    for question, text in questions(root / page).items():
        assert re.search(r"\d( \w+)? 20\d\d", text), question
        assert re.search(r"\b[0-9a-f]{7}\b", text), question
        if "there is no raw file" in text:
            continue
        links = re.findall(r"\]\(((?:\.\./)?scripts/measurements[^)]*)\)", text)
        files = [(root / page).parent / link for link in links]
        assert files, question
        assert all(file.exists() for file in files), question
        beside = [file.read_text(encoding="utf-8") for file in files if file.suffix == ".md"]
        assert any("python scripts/" in one for one in [text, *beside]), question


def test_every_interval_says_over_what(root: Path) -> None:
    for path in (*(root / page for page in RESULTS), *(root / "scripts" / "measurements").glob("*.md")):
        text = " ".join(path.read_text(encoding="utf-8").split())
        found = re.findall(r"95%.{15}", text)
        assert all(re.match(r"95%\*{0,2} over \*{0,2}(seeds|games)", one) for one in found), (path, found)


def test_what_the_documents_point_at_is_there(root: Path) -> None:
    named = [root / "RESULTS.md", root / "PAPERS.md"]
    for path in [*named, *(root / "docs").glob("*.md"), *(root / "scripts" / "measurements").glob("*.md")]:
        text = path.read_text(encoding="utf-8")
        linked = [path.parent / link for link in re.findall(r"\]\(([^)#:]+)\)", text)]
        written = [
            root / name for name in re.findall(r"`((?:agents|configs|polydistill|scripts|tests)/[^` <]+)`", text)
        ]
        assert [file for file in [*linked, *written] if not file.exists()] == [], path


GPU_ROWS = """\
objective,shape,type,contender,work,median_us,low_us,high_us,of_formula,bytes,of_copy,peak_bytes,copy_bytes_per_second
policy_kl,256x18,float32,ours,loss and gradient,40.25,39.0,123.4,0.2512,13824,0.5,36864,3000000000000
policy_kl,256x18,float32,formula,loss and gradient,161.0,150.0,170.0,1.0,13824,0.125,73728,3000000000000
policy_kl,256x18,float32,one pass,loss and gradient,20.0,19.0,21.0,0.125,13824,0.81234,,3000000000000
policy_kl,256x18,float32,ours,replayed,10.0,9.0,11.0,,13824,0.9,,3000000000000
"""


def test_measurements_of_a_gpu_are_rendered_once_they_are_there(root: Path, tmp_path: Path) -> None:
    (tmp_path / "scripts" / "measurements").mkdir(parents=True)
    shutil.copy(root / "scripts" / RENDER_SPEED, tmp_path / "scripts" / RENDER_SPEED)
    (tmp_path / "docs").mkdir()
    for page in ("RESULTS.md", "docs/scale.md"):
        (tmp_path / page).touch()
    (tmp_path / "docs" / "speed.md").write_text("<!-- table: losses_cuda -->\n<!-- end -->\n", encoding="utf-8")
    done = check(tmp_path, RENDER_SPEED)
    assert done.returncode == 2
    assert "no measurement losses_cuda.csv in measurements/" in done.stderr
    (tmp_path / "scripts" / "measurements" / "losses_cuda.csv").write_text(GPU_ROWS, encoding="utf-8")
    subprocess.run([sys.executable, str(tmp_path / "scripts" / RENDER_SPEED)], check=True, timeout=120)
    assert check(tmp_path, RENDER_SPEED).returncode == 0
    lines = (tmp_path / "docs" / "speed.md").read_text(encoding="utf-8").splitlines()
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
    text = (root / "scripts" / "measurements" / "losses_cpu.md").read_text(encoding="utf-8")
    lines = [x for x in text.splitlines() if "|      32x18 | float32" in x]
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
