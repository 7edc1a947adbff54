"""A table as LaTeX, for booktabs."""

from __future__ import annotations

import re

from polydistill.report.document import Table

SIGNS = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\char34{}", "`": r"\textasciigrave{}",
}  # fmt: skip


def render_latex(table: Table, caption: str) -> str:
    """A ``table`` environment; the page needs ``\\usepackage{booktabs}``, and a font with the letters of the names."""
    columns = "l" * table.n_names + "r" * (len(table.headers) - table.n_names)
    lines = [_row(row) for row in table.rows]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            r"\footnotesize",
            r"\setlength{\tabcolsep}{4pt}",
            rf"\caption{{{escape(caption)}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            _row(table.headers),
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def escape(text: str) -> str:
    """The text on one line, as LaTeX prints it."""
    return "".join(SIGNS.get(sign, sign) for sign in " ".join(text.split()))


def _row(cells: tuple[str, ...]) -> str:
    return " & ".join(map(_cell, cells)) + r" \\"


def _cell(text: str) -> str:
    """A number gets the sign of mathematics; a bracket at the start of a row would be read as an option."""
    escaped = re.sub(r"(?<![^ ])([+-])(?=\d)", r"$\1$", escape(text))
    return "{}" + escaped if escaped[:1] in {"[", "*"} else escaped
