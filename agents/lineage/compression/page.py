"""The tables, the picture and the page of a sweep.

Contract: the same runs and the same ``sizes.json`` give the same bytes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from polydistill.disk import atomic_write
from polydistill.report.document import Code, Document, Items, Paragraph, Picture, Section, Table
from polydistill.report.html import render_html
from polydistill.runs import format_interval, format_table
from polydistill.study.records import RunRecord
from polydistill.study.report.trade_offs import Mark, TradeOff, draw_trade_off, print_trade_offs
from polydistill_agents.lineage.compression.answer import (
    Kept,
    notes,
    read_kept,
    read_teacher,
    say,
    tell_percent,
)
from polydistill_agents.lineage.compression.loaders import BATCHES, LOADERS
from polydistill_agents.lineage.compression.opening import Opened
from polydistill_agents.lineage.compression.weighing import Weighed, Weight, weigh
from polydistill_agents.lineage.report import format_number, format_points

TEACHER = "teacher"
PAGE, CSV, PICTURE = "report.html", "sizes.csv", "sizes"  # the picture is sizes.png and sizes.svg


class Sweep(NamedTuple):
    """All that a page is made of.

    Attributes:
        played: name of the game or environment.
        kept: what each size has reached, the largest first.
        teacher: its mean score.
        weighed: what each costs.
        enough: share that is enough.
        missing: one line for each size whose runs are not all there.
        command: by which the user started the sweep.
    """

    played: str
    kept: Sequence[Kept]
    teacher: float
    weighed: Weighed
    enough: float
    missing: Sequence[str]
    command: str


def gather(out: Path, opened: Opened, records: Sequence[RunRecord], command: str) -> Sweep | None:
    """All that the page is made of; what each size costs is measured unless it was. None: no run is finished.

    Args:
        out: folder of the sweep.
        opened: the sweep.
        records: of its runs, none of which is at work.
        command: by which the user started it.
    """
    kept, teacher = read_kept(out, opened.names, records), read_teacher(out, records)
    if teacher is None:
        return None
    weighed = weigh(out, opened.teacher, {one.name: one.stem for one in kept})
    failed = [record for record in records if record.status != "done"]
    missing = [f"{record.arm}, seed {record.seed}, is not in: {record.why}" for record in failed]
    return Sweep(opened.played, kept, teacher, weighed, opened.config.keep, missing, command)


def format_sweep(sweep: Sweep) -> str:
    """The answer, the two tables and the notes, for a terminal."""
    answer = say(sweep.kept, sweep.weighed, sweep.enough)
    said = [f"note: {line}" for line in [*sweep.missing, *notes(sweep.kept, sweep.weighed)]]
    tables = [format_table(table.headers, table.rows) for table in (scores(sweep), costs(sweep))]
    return "\n".join([*answer, "", tables[0], "", tables[1], "", *said])


def write_sweep(out: Path, sweep: Sweep) -> None:
    """Write the page, the picture and the table of all numbers into the folder of the sweep.

    Raises:
        UserError: the disk refused.
    """
    atomic_write(out / CSV, _numbers(sweep).encode())
    for ending, content in print_trade_offs(_trade_offs(sweep)).items():
        atomic_write(out / f"{PICTURE}.{ending}", content)
    atomic_write(out / PAGE, render_html(_document(sweep)).encode())


# ---- tables ----------------------------------------------------------------------------------------------------------


def scores(sweep: Sweep) -> Table:
    """What each size keeps, beside its parameters."""
    headers = ("size", "parameters", "of teacher's", "score", "score kept", "95%", "seeds x games")
    whole = sweep.weighed.teacher.parameters
    games, known = max(one.games for one in sweep.kept), any(one.share is not None for one in sweep.kept)
    rows = [
        (TEACHER, f"{whole:,}", "100%", format_points(sweep.teacher), "1.000" if known else "-", "-", f"1 x {games}")
    ]
    for one in sweep.kept:
        parameters = sweep.weighed.students[one.name].parameters
        share, interval = format_number(one.share, 3) or "-", format_interval(one.interval, 3)
        told = (f"{parameters:,}", tell_percent(parameters / whole), format_points(one.score))
        rows.append((one.name, *told, share, interval, f"{one.runs} x {one.games}"))
    return Table(headers, tuple(rows))


def costs(sweep: Sweep) -> Table:
    """What each size costs to play: milliseconds of a decision by each loader, at each number of observations."""
    headers = ["size", "multiply-adds"]
    for loader in LOADERS:
        headers += [f"{loader.ending} bytes", *(f"{loader.name} ms, {batch} at once" for batch in BATCHES)]
    rows = []
    for name, weight in _all(sweep):
        row = [name, f"{weight.multiply_adds:,}"]
        for loader in LOADERS:
            n_bytes = weight.n_bytes.get(loader.ending)
            row.append("-" if n_bytes is None else f"{n_bytes:,}")
            row += [_milliseconds(weight.seconds_of(loader.name, batch)) for batch in BATCHES]
        rows.append(tuple(row))
    return Table(tuple(headers), tuple(rows))


def _all(sweep: Sweep) -> Iterator[tuple[str, Weight]]:
    yield TEACHER, sweep.weighed.teacher
    yield from ((one.name, sweep.weighed.students[one.name]) for one in sweep.kept)


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.3g}"


def _numbers(sweep: Sweep) -> str:
    """``sizes.csv``: a row for each size, no number rounded; an empty cell was not measured."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["size", "parameters", "multiply_adds", "score", "kept", "kept_low", "kept_high", "seeds", "games"]
    for loader in LOADERS:
        head += [f"bytes{loader.ending}", *(f"{loader.name}_ms_of_{batch}" for batch in BATCHES)]
    writer.writerow(head)
    reached: dict[str, tuple[object, ...]] = {TEACHER: (sweep.teacher, 1.0, "", "", 1, sweep.kept[0].games)}
    for one in sweep.kept:
        ends = ("", "") if one.interval is None else tuple(one.interval)
        reached[one.name] = (one.score, "" if one.share is None else one.share, *ends, one.runs, one.games)
    for name, weight in _all(sweep):
        row: list[object] = [name, weight.parameters, weight.multiply_adds, *reached[name]]
        for loader in LOADERS:
            times = [weight.seconds_of(loader.name, batch) for batch in BATCHES]
            row += [weight.n_bytes.get(loader.ending, ""), *("" if one is None else 1e3 * one for one in times)]
        writer.writerow(row)
    return text.getvalue()


# ---- picture and page ------------------------------------------------------------------------------------------------


def _trade_offs(sweep: Sweep) -> list[TradeOff]:
    """What is kept against parameters, and against the time of a decision."""
    costs_of: dict[str, Callable[[Weight], float]] = {
        "parameters": lambda weight: float(weight.parameters),
        "microseconds of a decision, one thread": lambda weight: 1e6 * weight.decision,
    }
    shown = []
    for across, cost in costs_of.items():
        marks = [
            Mark(one.name, cost(sweep.weighed.students[one.name]), one.share, one.interval)
            for one in sweep.kept
            if one.share is not None
        ]
        reference = Mark(TEACHER, cost(sweep.weighed.teacher), 1.0)
        shown.append(TradeOff(marks, reference, sweep.enough, across, "score kept"))
    return shown


def _document(sweep: Sweep) -> Document:
    over = "seeds" if max(one.runs for one in sweep.kept) > 1 else "games"
    caption = (
        f"Each dot is a size, its bar the 95% interval over {over}. Dashed: the teacher. Dotted: {sweep.enough:g} of "
        "it, which is enough."
    )
    pictures = [Picture(draw_trade_off(one), caption) for one in _trade_offs(sweep)]
    answer = [Paragraph(sentence, "answer") for sentence in say(sweep.kept, sweep.weighed, sweep.enough)]
    missing = [Paragraph(f"{line}.", "warning") for line in sweep.missing]
    return Document(
        f"How small can a student for {sweep.played} be?",
        [
            Section("", [*missing, *answer, *pictures]),
            Section("What each size keeps", [scores(sweep)]),
            Section("What each size costs to play", [costs(sweep)]),
            Section("What to know", [Items(tuple(notes(sweep.kept, sweep.weighed)))]),
            Section("How it was made", [Paragraph("The sweep is the work of this command:"), Code(sweep.command)]),
        ],
    )
