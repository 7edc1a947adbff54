"""Rebuild the tables of what leaves a run: sizes and what they cost, exported files, kept Q-values.

    python scripts/render_students.py            rewrites what stands between `<!-- table: NAME -->` and `<!-- end -->`
    python scripts/render_students.py --check    changes nothing; exit code 1 if a table is out of date

A measurement is what compress_agent.py (sizes.csv), export_agent.py (the card) or measure_kept_q.py left.
"""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # this clone's packages, installed or not
from polydistill._environment import require_environment

require_environment("study")

import csv
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from polydistill.report.blocks import render
from polydistill.runs import format_interval, format_table

ROOT = Path(__file__).resolve().parent.parent
MEASUREMENTS = ROOT / "scripts" / "measurements"
Rows = list[list[str | float | None]]


def read_sizes(name: str) -> list[dict[str, str]]:
    """The rows of a sizes.csv; the first is the teacher's."""
    with open(MEASUREMENTS / name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def sizes_table(name: str) -> str:
    """What each size keeps of the score; intervals are over the games of one student."""
    lines = read_sizes(name)
    rows: Rows = []
    whole = int(lines[0]["parameters"])
    for line in lines:
        kept = f"{float(line['kept']):.3f}"
        if line["kept_low"]:
            kept += f" ({format_interval((float(line['kept_low']), float(line['kept_high'])), 3)})"
        parameters = int(line["parameters"])
        rows.append(
            [
                line["size"],
                f"{parameters:,}",
                f"{parameters / whole:.1%}",
                f"{int(line['multiply_adds']):,}",
                f"{float(line['score']):.2f}",
                kept,
                line["games"],
            ]
        )
    headers = ["size", "parameters", "of teacher's", "multiply-adds", "score", "score kept (95% over games)", "games"]
    return format_table(headers, rows)


def latency_table(name: str) -> str:
    """Milliseconds of a decision by each loader, with 1 and with 64 observations at once."""
    lines = read_sizes(name)
    rows: Rows = []
    columns = [key for key in lines[0] if "_ms_of_" in key]
    for line in lines:
        rows.append([line["size"], *(f"{float(line[key]):.3f}" if line[key] else None for key in columns)])
    loaders = (key.rsplit("_ms_of_", 1) for key in columns)
    return format_table(["size", *(f"{loader}, {batch} at once" for loader, batch in loaders)], rows)


def export_table(name: str) -> str:
    """The forms of an exported agent, of its card."""
    card = json.loads((MEASUREMENTS / name).read_text(encoding="utf-8"))
    rows: Rows = []
    forms = card["evaluation"]["forms"]
    for form, found in forms.items():
        interval, times = found["score_ci95"], found["milliseconds_per_decision"]
        rows.append(
            [
                form,
                f"{found['score_mean']:.2f} ({format_interval(tuple(interval), 2)})",
                None if found["agreement"] is None else f"{found['agreement']:.3f}",
                *(f"{milliseconds:.3f}" for milliseconds in times.values()),
                f"{card['files'][form]['bytes']:,}" if form in card["files"] else None,
            ]
        )
    at_once = [f"ms, {batch} at once" for batch in forms["torch"]["milliseconds_per_decision"]]
    return format_table(["form", "score (95% over games)", "agreement", *at_once, "bytes"], rows)


def kept_q_table(name: str) -> str:
    """Means over the seeds of measure_kept_q.py, with the range of the scores."""
    found: list[dict[str, Any]] = json.loads((MEASUREMENTS / name).read_text(encoding="utf-8"))["rows"]
    rows: Rows = []
    for key in dict.fromkeys((row["scale"], row["objective"]) for row in found):
        own = [row for row in found if (row["scale"], row["objective"]) == key]
        scores = [row["score"] for row in own]
        agreement, best, worst = (
            statistics.fmean(row[of] for row in own) for of in ("agreement", "max_q_error", "worst_q_error")
        )
        spread = f"{statistics.fmean(scores):.0f} ({min(scores):.0f} to {max(scores):.0f})"
        scale = f"{own[0]['mean_q']:,.0f}"
        rows.append([f"`{key[1]}`", scale, spread, f"{agreement:.3f}", f"{best:,.1f}", f"{worst:,.1f}", len(own)])
    headers = ["objective", "mean max Q", "score (range over seeds)", "agreement", "error of max Q / T"]
    return format_table([*headers, "of the worst action / T", "seeds"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "sizes_pong": lambda: sizes_table("sizes_pong.csv"),
    "sizes_pong_latency": lambda: latency_table("sizes_pong.csv"),
    "export_pong": lambda: export_table("export_pong.json"),
    "kept_q": lambda: kept_q_table("kept_q.json"),
}


if __name__ == "__main__":
    render(TABLES, ["docs/speed.md", "docs/export.md", "docs/agents.md"], ROOT, description=__doc__)
