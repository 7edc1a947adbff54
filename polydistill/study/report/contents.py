"""What stands in a report, section by section. Numbers come from the analysis; nothing is computed anew here."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from polydistill.errors import list_first
from polydistill.report.document import Block, Document, Items, Paragraph, Section
from polydistill.study.analysis import Analysis, measure
from polydistill.study.answer import describe_metric
from polydistill.study.plan import Plan
from polydistill.study.records import TEACHER, RunRecord
from polydistill.study.report.evidence import Evidence
from polydistill.study.report.illustrations import picture_of_agreement, picture_of_generations, picture_of_shares
from polydistill.study.report.prose import limits, making, methods
from polydistill.study.report.tables import arms, components, ensembles, exploratory, new_images, pairing, planned
from polydistill.study.teachers import are_given, shares_one

NAMED_LINES = 8  # of runs that are not in
NAMED_SEEDS = 10


def build(
    title: str,
    plan: Plan,
    records: Sequence[RunRecord],
    analysis: Analysis,
    evidence: Evidence,
    published: Mapping[str, float],
    command: str,
) -> Document:
    """The report as sections; those that have nothing to say are left out."""
    sections = [
        Section(
            "",
            [*_missing(plan, records), *_beforehand(plan), *_never_reached(plan, analysis), *_answer(plan, analysis)],
        ),
        Section("The planned contrasts" if analysis.planned else "The contrasts", list(planned(plan, analysis))),
        Section("What pairing by seed gained", list(pairing(analysis))),
        Section("New seeds, and new images", list(new_images(plan, analysis))),
        Section("The arms", list(arms(plan, analysis, published))),
        Section("What the ensembles cost", list(ensembles(plan, analysis))),
        Section("Agreement against gain", list(picture_of_agreement(plan, analysis))),
        Section("Generation after generation", list(picture_of_generations(plan, analysis))),
        Section("Where the gradient comes from", list(picture_of_shares(plan, evidence.shares))),
        Section("Teachers and students: whose seed matters", list(components(analysis))),
        Section("Exploratory", list(exploratory(plan, analysis))),
        Section("What this study cannot say", [Items(tuple(limits(plan, analysis)))]),
        Section("Methods, ready to paste", [Paragraph(methods(plan, analysis))]),
        Section("How it was made", list(making(plan, records, evidence, command))),
    ]
    return Document(title, [section for section in sections if section.blocks])


def _missing(plan: Plan, records: Sequence[RunRecord]) -> Iterator[Block]:
    """What is not in, before anything else."""
    by_key = {record.key: record for record in records}
    absent: dict[tuple[str, str, str], list[int]] = {}
    names = [*plan.names, *([TEACHER] if plan.teacher else [])]
    for arm, seed in itertools.product(names, plan.all_seeds):
        record = by_key.get((arm, seed))
        status, why = ("missing", "") if record is None else (record.status, record.why)
        if record is not None and status == "done" and not math.isfinite(measure(record, plan.metric)):
            status, why = "failed", f"it has no {describe_metric(plan).name}"
        if status != "done":
            absent.setdefault((arm, status, why), []).append(seed)
    if not absent:
        return
    counts = Counter[str]()
    for (_, status, _), seeds in absent.items():
        counts[status] += len(seeds)
    yield Paragraph(
        f"{counts.total()} of {len(names) * len(plan.all_seeds)} runs are not in: "
        f"{', '.join(f'{n} {status}' for status, n in sorted(counts.items()))}. A seed counts for a contrast only "
        "where both of its runs are done.",
        "warning",
    )
    lines = [
        f"{arm}: seed{'s' * (len(seeds) > 1)} {list_first(seeds, NAMED_SEEDS)} {status}" + (f" ({why})" if why else "")
        for (arm, status, why), seeds in absent.items()
    ]
    yield Items(
        (
            *lines[:NAMED_LINES],
            *([f"and {len(lines) - NAMED_LINES} more such lines"] if len(lines) > NAMED_LINES else []),
        )
    )


def _beforehand(plan: Plan) -> Iterator[Block]:
    """What the reader must know of how the plan came about."""
    if plan.found:
        yield Paragraph(
            "The plan was made after the runs: nothing was named beforehand, so all of this is exploratory.", "warning"
        )
    if shares_one(plan):
        yield Paragraph("All seeds share one teacher: this study says nothing of other teachers.", "warning")
    elif are_given(plan):
        yield Paragraph("Each seed has its own teacher, which was given.", "note")
    for amendment in plan.amendments:
        yield Paragraph(
            f"{len(amendment.seeds)} seeds were added on {amendment.date}, when {amendment.finished} runs were "
            "finished. Who adds seeds after a look at the results finds too much.",
            "warning",
        )


def _never_reached(plan: Plan, analysis: Analysis) -> Iterator[Block]:
    """Of a time until something happens: how many runs ended before, since their time is not known."""
    never = [(result.arm, result.never, len(result.values)) for result in analysis.arms if result.never]
    if never:
        counts = "; ".join(f"{arm}: {count} of {runs}" for arm, count, runs in never)
        yield Paragraph(
            f"Some runs never got there ({counts}): they count with the length of the whole run. So the means are "
            f"restricted means: of the {describe_metric(plan).name} up to the end of the run, not of all that would be "
            "needed.",
            "warning",
        )


def _answer(plan: Plan, analysis: Analysis) -> Iterator[Block]:
    yield from (Paragraph(sentence, "answer") for sentence in analysis.answer)
    unit = " A point is one percentage point of the test error." if plan.metric == "test_error" else ""
    rule = f"Decided is what has a p of at most {plan.alpha:g}"
    n = len(plan.contrasts)
    corrected = f"{rule} after Holm's correction over the contrasts named beforehand ({n})."
    uncorrected = f"{rule}; no contrast was named beforehand, so none is corrected for their number."
    yield Paragraph(
        f"A gain above zero says that the first arm is better.{unit} {corrected if n else uncorrected}", "note"
    )
