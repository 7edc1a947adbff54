"""Print the tables of finished runs again, from their summary.json alone: without data, teacher or GPU.

    python scripts/show.py runs/mine           # one run
    python scripts/show.py runs/* --wide       # many, with every column

If there are many, unfinished ones are left out, and a line says so.
"""

from __future__ import annotations

import shutil
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from polydistill._environment import REPORTS, MissingExtra
from polydistill.config.help_text import fold_description
from polydistill.errors import UserError, run_script, suggest
from polydistill.runs import read_summary

SCRIPT = "python scripts/show.py"


@run_script
def main(argv: list[str] | None = None, called: str = SCRIPT) -> None:
    """Do what the words ask for; None: those of this process. ``called`` is how a user calls it."""
    usage = f"usage: {called} RUN [RUN ...] [--wide]"
    words = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(words):
        description = fold_description((__doc__ or "").replace(SCRIPT, called), shutil.get_terminal_size().columns)
        print(f"{usage}\n\n{description}")
        return
    folders, wide = [word for word in words if not word.startswith("-")], "--wide" in words
    for word in words:
        if word.startswith("-") and word != "--wide":
            raise UserError(f"unknown flag {word}{suggest(word, ['--wide'])}; {usage}")
    if not folders:
        raise UserError(f"name a run folder; {usage}")
    tables: dict[str, str] = {}
    for folder in folders:
        try:
            tables[folder] = format_run(Path(folder), wide)
        except UserError as error:
            if len(folders) == 1:
                raise
            print(f"left out: {error}", file=sys.stderr)
    if not tables:
        raise UserError("none of these is a finished run")
    print("\n\n".join((f"{folder}: " if len(tables) > 1 else "") + table for folder, table in tables.items()))


def format_run(folder: Path, wide: bool) -> str:
    """The table of the finished run in ``folder``."""
    if not (folder / "summary.json").exists():
        if not folder.is_dir():
            raise UserError(f"{folder} is no run folder: {'it is a file' if folder.exists() else 'it does not exist'}")
        there = "it is not finished" if (folder / "config.yaml").exists() else "there is no run in it"
        raise UserError(f"{folder} has no summary.json: {there}")
    summary: dict[str, Any] = read_summary(folder)
    try:
        if summary["kind"] not in REPORTS:
            raise UserError(
                f"{folder / 'summary.json'} is of kind {summary['kind']!r}, this version shows {', '.join(REPORTS)}"
            )
        table: str = import_module(REPORTS[summary["kind"]]).format_summary(summary, wide=wide)
        return table
    except MissingExtra as error:
        raise UserError(f"{folder}: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{folder / 'summary.json'} is no summary of a run: {error!r}") from error
