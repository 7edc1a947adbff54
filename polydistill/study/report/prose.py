"""What a report says in prose: the methods paragraph, what the study cannot say, how it was made."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from polydistill.study.analysis import Analysis
from polydistill.study.answer import describe_metric, with_unit
from polydistill.study.plan import Plan
from polydistill.study.records import TEACHER, RunRecord
from polydistill.study.report.document import Block, Code, Items, Paragraph
from polydistill.study.report.evidence import Evidence
from polydistill.study.report.tables import confidence, number

FEW = 10  # seeds: with fewer, an interval rests on the normal distribution alone


def methods(plan: Plan, analysis: Analysis) -> str:
    """A paragraph for the methods section of a paper."""
    counts = sorted({len(contrast.gains) for contrast in analysis.planned} or {0})
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    outcome = describe_metric(plan).name + (" in %" if plan.metric == "test_error" else "")
    named = "of interest" if plan.found else "named beforehand"
    margin = (
        ""
        if plan.margin is None
        else f" Equivalence within {plan.margin:g} was tested by two one-sided t-tests, likewise corrected."
    )
    return (
        f"We compared {len(plan.names)} arms ({', '.join(plan.names)}) over {len(plan.all_seeds)} planned seeds, of "
        f"which {seeds} entered each planned contrast. The unit of replication is a teacher with its students: each "
        "seed trained a teacher of its own, and the arms of a seed shared it, and unless an arm says otherwise the "
        f"initial weights, the order of the data and the augmentation. The outcome was the {outcome} ({plan.direction} "
        f"is better). {_plan(plan)} Differences were paired by seed; we report their mean with Student's "
        f"{confidence(plan)} interval, and a sign-flip permutation test (two-sided, alpha = {plan.alpha:g}), with the "
        f"p-values of the {len(plan.contrasts)} contrasts {named} corrected by Holm's method.{margin} All other "
        "comparisons are exploratory and not corrected."
    )


def _plan(plan: Plan) -> str:
    if plan.found:
        return "Arms and contrasts were chosen after the runs."
    added = sum(len(amendment.seeds) for amendment in plan.amendments)
    later = f", to which {added} seeds were added later" if added else ""
    return (
        "Arms, contrasts and number of seeds were fixed in a plan before the first run (sha256 "
        f"{plan.sha256[:16]}){later}."
    )


def limits(plan: Plan, analysis: Analysis) -> Iterator[str]:
    """What the reader might take from it, and should not."""
    counts = [len(contrast.gains) for contrast in analysis.planned]
    yield (
        "Whether it is so for another data set, network, training budget or recipe: all runs share one configuration, "
        "except for what an arm changes."
    )
    if plan.metric == "test_error" and not any(contrast.new_images for contrast in analysis.planned):
        yield (
            "Whether other test images would show the same: the intervals are over seeds, on one test set. (The runs "
            "did not store which images they got right, or not all of them.)"
        )
    undecided = [contrast for contrast in analysis.planned if contrast.verdict == "undecided"]
    if undecided:
        seen = "; ".join(
            f"{contrast.first} against {contrast.second}: {number(contrast.visible, analysis.digits)}"
            for contrast in undecided
        )
        unit = with_unit(plan)
        yield f"That undecided arms are equal: gains smaller than these would mostly be missed ({seen}{unit})."
    if counts and min(counts) < FEW:
        yield (
            f"Much about the form of the differences: with fewer than {FEW} seeds the interval rests on the assumption "
            "that they are normally distributed."
        )
    if counts and min(counts) < len(plan.all_seeds):
        yield (
            "What all planned seeds will say: not all are in. Who looks early and stops when a contrast is decided "
            "finds too much; the plan's number of seeds is the one that counts."
        )
    yield "Why an arm is better: a contrast shows the effect of all that its arms differ in, together."


def making(plan: Plan, records: Sequence[RunRecord], evidence: Evidence) -> Iterator[Block]:
    seconds = sum(record.seconds for record in records if math.isfinite(record.seconds))
    done = sum(record.status == "done" for record in records)
    yield Paragraph(f"Cost: {_duration(seconds)} of computing, all runs together; {done} runs are done.")
    yield Paragraph(f"Plan: sha256 {plan.sha256}, commit {plan.commit or 'unknown: no clone'}.")
    if evidence.data:
        yield Paragraph("Data, by the sum of its content:")
        yield Items(tuple(evidence.data))
    if len(evidence.environments) > 1:
        yield Paragraph(
            "The runs were made in different environments, so speeds and last digits may differ.", "warning"
        )
    if evidence.environments:
        yield Paragraph("Environment:")
        yield Items(tuple(evidence.environments))
    if evidence.commands:
        yield Paragraph("The exact command of each arm's first run; the others differ in the seed:")
        yield Code("\n".join(evidence.commands[arm] for arm in (TEACHER, *plan.names) if arm in evidence.commands))


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
