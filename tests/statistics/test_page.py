"""docs/statistics.md: its example runs, and its tables are the script's and what the page promises."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from polydistill.statistics import BCA_FROM

PAIRS = (5, 10, 20, 50)
Tables = dict[str, dict[tuple[str, str], list[str]]]


def tables(text: str) -> Tables:
    """Of each table of shares: its first headings, and per row the two labels and the cells."""
    found: Tables = {}
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        heading, _, *rows = ([cell.strip() for cell in line.strip("|\n").split("|")] for line in block.splitlines())
        if heading[2:] == [f"{n} pairs" for n in PAIRS]:
            found[" ".join(heading[:2])] = {(row[0], row[1]): row[2:] for row in rows}
    return found


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return (root / "docs" / "statistics.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def short(root: Path) -> Tables:
    """What the script prints of a few draws."""
    sizes = ("--repeats", "10", "--resampled_repeats", "2", "--two_way_repeats", "2", "--images", "20")
    command = [sys.executable, str(root / "scripts" / "simulate_statistics.py"), *sizes]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return tables(done.stdout)


def test_the_pages_example_prints_what_it_says(page: str, run_python) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    assert printed == re.findall(r"# prints (.*)", code)


def test_every_cell_is_a_share_and_bca_has_none_below_twenty_pairs(short: Tables) -> None:
    assert len(short) == 3
    for rows in short.values():
        for (label, _), cells in rows.items():
            for n, cell in zip(PAIRS, cells, strict=True):
                assert (cell == "-") == (label == "bca" and n < BCA_FROM)
                assert cell == "-" or 0 <= float(cell) <= 100


def test_the_page_holds_the_scripts_tables(short: Tables, page: str) -> None:
    assert {name: list(rows) for name, rows in tables(page).items()} == {
        name: list(rows) for name, rows in short.items()
    }


def test_the_default_covers_and_no_test_errs_more_often_than_it_says(page: str) -> None:
    measured = tables(page)
    assert all(93 <= float(cell) <= 97 for cell in measured["interval differences"]["t", "normal"])
    tests = measured["false positives differences"]
    for label, draws in (("t", 5_000), ("permutation", 1_500), ("TOST", 5_000), ("Holm, any of 4", 5_000)):
        error = 100 * (0.05 * 0.95 / draws) ** 0.5
        assert all(float(cell) <= 5 + 3 * error for cell in tests[label, "normal"])
    assert tests["permutation", "normal"][0] == "0.0", "of 5 pairs no p is below 0.0625"


def test_a_count_below_one_is_one_line(root: Path) -> None:
    command = [sys.executable, str(root / "scripts" / "simulate_statistics.py"), "--repeats", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert "repeats" in done.stderr
