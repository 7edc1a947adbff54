"""Tables for a terminal that are Markdown too, and intervals in words."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

NARROW = 80  # characters of a line, by default


def format_table(headers: Sequence[str], rows: Sequence[Sequence[str | float | None]]) -> str:
    """A table for a terminal that is Markdown too; columns of numbers are right-aligned, None is ``-``.

    Example:
        >>> print(format_table(["name", "score"], [["mean", 20.5], ["ensemble", 1234.0]]))
        | name     | score |
        | -------- | ----: |
        | mean     |  20.5 |
        | ensemble | 1,234 |
    """
    cells = [[_cell(value) for value in row] for row in [headers, *rows]]
    if any(len(row) != len(headers) for row in cells):
        raise ValueError(f"every row needs {len(headers)} cells, got {[len(row) for row in cells[1:]]}")
    columns = list(zip(*cells, strict=True))
    widths = [max(3, *map(len, column)) for column in columns]
    numeric = [
        len(column) > 1 and all(re.match(r"[-+]?\.?\d|-$|nan|-?inf", c) for c in column[1:]) for column in columns
    ]
    rule = ["-" * (width - 1) + (":" if right else "-") for width, right in zip(widths, numeric, strict=True)]
    lines = [
        [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        for row in [cells[0], rule, *cells[1:]]
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def format_narrow_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str | float | None]],
    importance: Sequence[str],
    width: int = NARROW,
) -> str:
    """:func:`format_table` with as many columns as fit into ``width`` characters.

    Args:
        headers: all different.
        rows: as in :func:`format_table`.
        importance: headers, those that matter most first; a column that is not among them is left out. The first of
            them stays however wide it is.
        width: of a line, in characters.

    Example:
        >>> rows = [["mean", 20.5, 30]]
        >>> print(format_narrow_table(["name", "score", "seeds"], rows, ["score", "name", "seeds"], width=20))
        | name | score |
        | ---- | ----: |
        | mean |  20.5 |
    """
    kept: list[str] = []
    table = ""
    for header in importance:
        tried = [name for name in headers if name in {*kept, header}]
        indices = [headers.index(name) for name in tried]
        narrower = format_table(tried, [[row[index] for index in indices] for row in rows])
        if not kept or max(map(len, narrower.splitlines())) <= width:
            kept, table = tried, narrower
    return table


def format_interval(ends: Sequence[float | None] | None, digits: int = 2) -> str:
    """``low to high``; ``-`` where there is no interval.

    Args:
        ends: lower and upper. JSON has no infinity: an end that is None, as summary.json holds it, is infinite on its
            side.
        digits: after the decimal point.

    Example:
        >>> format_interval((18, 20.5)), format_interval([None, 1.25]), format_interval(None)
        ('18.00 to 20.50', '-inf to 1.25', '-')
    """
    if ends is None:
        return "-"
    low, high = ends
    low, high = -math.inf if low is None else low, math.inf if high is None else high
    return f"{low:z.{digits}f} to {high:z.{digits}f}"


def _cell(value: str | float | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, int) or (isinstance(value, float) and abs(value) >= 1000):
        return f"{value:,.0f}"
    text = f"{value:z.4g}" if isinstance(value, float) else value
    return " ".join(text.split()).replace("|", r"\|")
