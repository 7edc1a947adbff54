"""The report of a study: report.html with its pictures inside, report.md, table.tex and methods.txt.

Contract: the same records, plan, run folders and command give the same bytes. It appears whatever is missing, and says
so first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from polydistill._environment import require_extra
from polydistill.disk import atomic_write
from polydistill.report.html import render_html
from polydistill.study.analysis import Analysis
from polydistill.study.answer import with_unit
from polydistill.study.plan import Plan
from polydistill.study.records import RunRecord
from polydistill.study.report.contents import build
from polydistill.study.report.evidence import gather
from polydistill.study.report.latex import render_latex
from polydistill.study.report.markdown import render_markdown
from polydistill.study.report.prose import methods
from polydistill.study.report.published import published_values
from polydistill.study.report.tables import paper_table

HTML, MARKDOWN, TABLE, METHODS = "report.html", "report.md", "table.tex", "methods.txt"


def write_report(out: Path, plan: Plan, records: Sequence[RunRecord], analysis: Analysis, *, command: str = "") -> None:
    """Write the report into the folder of the study.

    Args:
        out: the folder; exists.
        plan: of the study.
        records: of its runs, finished or not; their folders are relative to ``out``.
        analysis: of the same records, by :func:`polydistill.study.analysis.analyse`.
        command: by which the user started the study; empty: it is not shown.

    Raises:
        MissingExtra: matplotlib is not installed; one line.
        UserError: the disk refused; a file is there as it was, or new and whole.
    """
    require_extra("study")
    n_arms, n_seeds = len(plan.arms), len(plan.all_seeds)
    title = f"Study of {n_arms} arms over {n_seeds} seeds ({plan.world})"
    document = build(title, plan, records, analysis, gather(out, records), published_values(plan), command)
    equal = "" if plan.margin is None else f" Equal: within {plan.margin:g}{with_unit(plan, plan.margin)}."
    caption = f"The contrasts named beforehand, paired by seed.{equal} Plan {plan.sha256[:16]}."
    for name, text in (
        (HTML, render_html(document)),
        (MARKDOWN, render_markdown(document)),
        (TABLE, render_latex(paper_table(plan, analysis), caption)),
        (METHODS, methods(plan, analysis) + "\n"),
    ):
        atomic_write(out / name, text.encode())
