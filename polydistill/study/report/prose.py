"""What a report says in prose: the methods paragraph, what the study cannot say, how it was made."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from polydistill.report.document import Block, Code, Items, Paragraph
from polydistill.study.analysis import Analysis
from polydistill.study.answer import describe_metric, with_unit
from polydistill.study.plan import Plan
from polydistill.study.records import TEACHER, RunRecord
from polydistill.study.report.evidence import Evidence
from polydistill.study.report.tables import confidence, number
from polydistill.study.teachers import shares_one

FEW = 10  # seeds: with fewer, an interval rests on the normal distribution alone


def methods(plan: Plan, analysis: Analysis) -> str:
    """A paragraph for the methods section of a paper."""
    outcome = describe_metric(plan).name + (" in %" if plan.metric == "test_error" else "")
    return " ".join(
        [
            f"We compared {len(plan.names)} arms ({', '.join(plan.names)}) over {len(plan.all_seeds)} seeds.",
            _replication(plan),
            *_ensembles(plan),
            f"The outcome was the {outcome} ({plan.direction} is better).",
            *_naming(plan, analysis),
            f"Differences were paired by seed; we report their mean with Student's {confidence(plan)} interval, and a "
            f"two-sided sign-flip permutation test at alpha = {plan.alpha:g}.",
            *_correction(plan),
        ]
    )


def _replication(plan: Plan) -> str:
    if plan.found:
        return "Runs of the same seed were paired."
    shared = "the initial weights and all other random streams of training, unless an arm says otherwise."
    if shares_one(plan):
        return f"One teacher was given for all seeds; the arms of a seed shared {shared}"
    if plan.teacher is None:
        return (
            "The unit of replication is a teacher with its students: each seed was given a teacher of its own, and the "
            f"arms of a seed shared it, {shared}"
        )
    return (
        "The unit of replication is a teacher with its students: each seed trained a teacher of its own, and the arms "
        f"of a seed shared it, {shared}"
    )


def _ensembles(plan: Plan) -> Iterator[str]:
    for arm in plan.arms:
        if arm.members:
            yield f"The arm {arm.name} is the mean of the probabilities of {' and '.join(arm.members)}."


def _naming(plan: Plan, analysis: Analysis) -> Iterator[str]:
    """How the plan came about, and how much of it is there."""
    if plan.found:
        yield "Arms and contrasts were chosen after the runs."
        return
    added = sum(len(amendment.seeds) for amendment in plan.amendments)
    later = f"; {added} seeds were added later" if added else ""
    yield (
        "Arms, contrasts and number of seeds were fixed in a plan before the first run (sha256 "
        f"{plan.sha256[:16]}){later}."
    )
    counts = sorted({len(contrast.gains) for contrast in analysis.planned})
    if counts and counts[0] < len(plan.all_seeds):
        some = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        yield f"Of the seeds {some} entered each of these contrasts, since runs are missing."


def _correction(plan: Plan) -> Iterator[str]:
    if not plan.contrasts:
        yield "No p-value was corrected for the number of comparisons: all of them are exploratory."
        return
    n, likewise = len(plan.contrasts), ""
    if n > 1:
        likewise = ", likewise corrected"
        yield f"The p-values of the {n} contrasts named beforehand were corrected by Holm's method."
    else:
        yield "One contrast was named beforehand."
    if plan.margin is not None:
        yield f"Equivalence within {plan.margin:g} was tested by two one-sided t-tests{likewise}."
    yield "All other comparisons are exploratory and not corrected."


def limits(plan: Plan, analysis: Analysis) -> Iterator[str]:
    """What the reader might take from it, and should not."""
    counts = [len(contrast.gains) for contrast in analysis.shown]
    yield (
        "Whether it is so for another data set, network, training budget or recipe: all runs share one configuration, "
        "except for what an arm changes."
    )
    if shares_one(plan):
        yield "Whether it is so for other teachers: all seeds share one, which was given."
    if plan.metric == "test_error" and not any(contrast.new_images for contrast in analysis.shown):
        yield (
            "Whether other test images would show the same: the intervals are over seeds, on one test set. (The runs "
            "did not store which images they got right, or not all of them.)"
        )
    undecided = [contrast for contrast in analysis.shown if contrast.verdict == "undecided"]
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


def making(plan: Plan, records: Sequence[RunRecord], evidence: Evidence, command: str) -> Iterator[Block]:
    seconds = sum(record.seconds for record in records if math.isfinite(record.seconds))
    done = sum(record.status == "done" for record in records)
    yield Paragraph(f"Cost: {_duration(seconds)} of computing, all runs together; {done} runs are done.")
    yield Paragraph(f"Plan: sha256 {plan.sha256}, commit {plan.commit or 'unknown'}.")
    if command:
        yield Paragraph("The study is the work of this command:")
        yield Code(command)
    if evidence.data:
        yield Paragraph("Data, by the sum of its content; of a folder of pictures, of its files' names and sizes:")
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
        yield from (Code(evidence.commands[arm]) for arm in (TEACHER, *plan.names) if arm in evidence.commands)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
