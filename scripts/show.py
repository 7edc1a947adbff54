"""Print the tables of finished runs again, from their summary.json alone: without data, teacher or GPU.

    python scripts/show.py runs/pong           # one run
    python scripts/show.py runs/* --wide       # many, with every column

If there are many, unfinished ones are left out, and a line says so.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # this clone's packages, installed or not
from polydistill._environment import require_environment

require_environment("runs")

import shutil
from pathlib import Path
from typing import Any

from polydistill._environment import MissingExtra
from polydistill.config.help_text import fold_description
from polydistill.errors import UserError, run_script, suggest
from polydistill.runs import read_summary

KINDS = ("atari", "cifar")


@run_script
def main(argv: list[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(words):
        description = fold_description(__doc__ or "", shutil.get_terminal_size().columns)
        print(f"usage: python scripts/show.py RUN [RUN ...] [--wide]\n\n{description}")
        return
    folders, wide = [word for word in words if not word.startswith("-")], "--wide" in words
    for word in words:
        if word.startswith("-") and word != "--wide":
            raise UserError(f"unknown flag {word}{suggest(word, ['--wide'])}; usage: show.py RUN [RUN ...] [--wide]")
    if not folders:
        raise UserError("name a run folder; usage: show.py RUN [RUN ...] [--wide]")
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
        if summary["kind"] not in KINDS:
            raise UserError(
                f"{folder / 'summary.json'} is of kind {summary['kind']!r}, this version shows {' and '.join(KINDS)}"
            )
        if summary["kind"] == "atari":
            from polydistill_agents.lineage.report import format_summary as format_agents

            return format_agents(summary, wide=wide)
        from polydistill.vision.report import format_summary as format_classifiers

        return format_classifiers(summary, wide=wide)
    except MissingExtra as error:
        raise UserError(f"{folder}: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{folder / 'summary.json'} is no summary of a run: {error!r}") from error


if __name__ == "__main__":
    main()
