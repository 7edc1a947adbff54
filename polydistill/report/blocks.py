"""Tables within documents, between ``<!-- table: NAME -->`` and ``<!-- end -->``, made anew from what was measured."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from polydistill.disk import atomic_write, disk_errors
from polydistill.errors import run_script

BLOCK = re.compile(r"(<!-- table: ([a-z0-9_]+) -->\n).*?(<!-- end -->)", re.DOTALL)
MEASUREMENTS = Path("scripts", "measurements")  # of a clone
Tables = Mapping[str, Callable[[], str]]  # name -> what makes the table, as Markdown


def fill_blocks(text: str, tables: Tables) -> str:
    """The document with each table that ``tables`` makes; others stay as they are.

    Example:
        >>> print(fill_blocks("<!-- table: a -->\\nold\\n<!-- end -->", {"a": lambda: "| new |"}))
        <!-- table: a -->
        <BLANKLINE>
        | new |
        <BLANKLINE>
        <!-- end -->
    """

    def fill(block: re.Match[str]) -> str:
        return f"{block[1]}\n{tables[block[2]]()}\n\n{block[3]}" if block[2] in tables else block[0]

    return BLOCK.sub(fill, text)


def fill_documents(paths: Iterable[Path], tables: Tables, *, write: bool) -> list[Path]:
    """Make the tables of documents.

    Args:
        paths: of the documents, UTF-8.
        tables: see :func:`fill_blocks`.
        write: the new documents; else nothing is changed.

    Returns:
        those whose tables were not up to date.

    Raises:
        UserError: the disk refused.
    """
    changed = []
    for path in paths:
        with disk_errors(path, "read"):
            old = path.read_text(encoding="utf-8")
        new = fill_blocks(old, tables)
        if new != old:
            changed.append(path)
            if write:
                atomic_write(path, new.encode())
    return changed


@run_script
def render(tables: Tables, documents: Iterable[str], root: Path, *, description: str | None) -> None:
    """The command line of a script that makes ``tables``.

    Args:
        tables: see :func:`fill_blocks`.
        documents: that may have such tables, beside the pages with the raw measurements; from ``root``.
        root: of the clone.
        description: of the script, for its help.

    Raises:
        UserError: the disk refused, or measurements are missing.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare only, and write nothing")
    write = not parser.parse_args().check
    pages = [*(root / name for name in documents), *sorted((root / MEASUREMENTS).glob("*.md"))]
    changed = fill_documents(pages, tables, write=write)
    if changed and not write:
        name = changed[0].relative_to(root)
        print(f"error: the tables of {name} are not what the measurements give; run {Path(sys.argv[0]).name}")
        sys.exit(1)
