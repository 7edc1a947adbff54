"""What docs/curves_and_tables.md explains, beside what a run has written: tests compare the two."""

from __future__ import annotations

import json
import re
from pathlib import Path

OF_Q_VALUES = {"distill/max_q_error", "distill/worst_q_error"}  # tags of students that give them


def explained(root: Path, title: str, script: str = "") -> set[str]:
    """The names in the first column below ``## title``; with ``script``, of the rows that name it in the last."""
    text = (root / "docs" / "curves_and_tables.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (.+)\n((?:(?!## ).*\n)*)", text, flags=re.MULTILINE))
    rows = re.findall(r"^\| `([^`]+)` \|(?:.*\|)? (.*) \|$", sections[title], flags=re.MULTILINE)
    return {name for name, last in rows if script in last}


def written_tags(out: Path) -> set[str]:
    """The tags of all roles in the run folder ``out``."""
    lines = [line for name in ("metrics.jsonl", "timing.jsonl") for line in (out / name).read_text().splitlines()]
    return {tag for line in lines for tag in json.loads(line)["values"]}


def columns(printed: str) -> list[set[str]]:
    """The headers of each table in what was printed."""
    found = re.findall(r"^\|(.+)\|\n\| ?:?-", printed, flags=re.MULTILINE)
    return [{cell.strip() for cell in line.split("|")} for line in found]
