"""Markdown in which a stranger's words stay words: names of environments, files and teachers are shown as code.

Inside code nothing is a link, a picture, HTML or a heading (CommonMark, sections 4.5 and 6.1); a line break would end
it, and in a table a vertical bar would, so that these two are taken care of.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from polydistill.errors import printable
from polydistill.runs import format_table

LONGEST = 300  # characters of a name


def one_line(text: object) -> str:
    """The text in one line that can be shown, cut where it is very long.

    Example:
        >>> one_line("a\\n---\\tb\\x1b[2J")
        'a --- b?[2J'
    """
    line = printable(" ".join(str(text).split()))
    return line if len(line) <= LONGEST else line[: LONGEST - 4] + " ..."


def code(text: object) -> str:
    """The text as code within a line; of nothing, a dash.

    Example:
        >>> code("CartPole-v1"), code("a `b` ``c"), code("")
        ('`CartPole-v1`', '``` a `b` ``c ```', '-')
    """
    line = one_line(text)
    if not line:
        return "-"
    ticks = "`" * (_longest_ticks(line) + 1)
    gap = " " if "`" in line else ""
    return f"{ticks}{gap}{line}{gap}{ticks}"


def block(text: str, language: str = "") -> str:
    """The text as a block of code, whatever it holds."""
    ticks = "`" * max(3, _longest_ticks(text) + 1)
    return f"{ticks}{language}\n{text.rstrip()}\n{ticks}"


def table(headers: Sequence[str], rows: Sequence[Sequence[str | float | None]]) -> str:
    """A table of cells that are Markdown themselves; None is a dash."""
    cells = [[cell.replace("|", "\\|") if isinstance(cell, str) else cell for cell in row] for row in rows]
    return format_table(headers, cells)


def bullets(lines: Sequence[str]) -> str:
    """A list."""
    return "\n".join(f"- {line}" for line in lines)


def _longest_ticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
