"""The tables of a report, and how numbers are written in them. Nothing is computed anew here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from polydistill.report.document import Block, Paragraph, Table
from polydistill.runs import format_interval
from polydistill.statistics import Interval
from polydistill.study.analysis import Analysis, ArmResult
from polydistill.study.answer import signed
from polydistill.study.budget import budgets, unequal_ensembles
from polydistill.study.contrasts import Contrast
from polydistill.study.plan import Plan
from polydistill.study.report.illustrations import axis_name, picture_of_arms, picture_of_gains, pictures_of_pairs

VERDICTS = {
    "better": "better",
    "worse": "worse",
    "equivalent": "equal within the margin",
    "undecided": "undecided",
    "unknown": "nothing can be said",
}
OTHERS = {
    "test_nll": "test NLL",
    "test_ece": "test ECE",
    "train_accuracy": "right on training inputs",
    "teacher_normalized": "of its teacher",
}


def main_table(plan: Plan, analysis: Analysis) -> Table:
    """The planned contrasts as a table."""
    return Table(
        (
            "contrast",
            "gain",
            f"{confidence(plan)} interval",
            "p (Holm)" if analysis.planned else "p",
            "seeds",
            "effect size",
            "P(better)",
            "verdict",
        ),
        tuple(_contrast_row(contrast, analysis.digits) for contrast in analysis.shown),
    )


def paper_table(plan: Plan, analysis: Analysis) -> Table:
    """:func:`main_table` as narrow as a column of text is: without effect size and P(better)."""
    whole = main_table(plan, analysis)
    kept = [column for column, name in enumerate(whole.headers) if name not in {"effect size", "P(better)"}]
    rows = [[row[column].replace(VERDICTS["equivalent"], "equal") for column in kept] for row in whole.rows]
    return Table(tuple(whole.headers[column] for column in kept), tuple(map(tuple, rows)))


def planned(plan: Plan, analysis: Analysis) -> Iterator[Block]:
    if not analysis.shown:
        return
    yield main_table(plan, analysis)
    yield Paragraph(
        "The effect size is the mean gain over the standard deviation of the gains. P(better) is how often a run of "
        "the first arm is better than one of the second, whatever their seeds.",
        "note",
    )
    yield from picture_of_gains(plan, analysis)
    yield from pictures_of_pairs(plan, analysis)


def _contrast_row(contrast: Contrast, digits: int) -> tuple[str, ...]:
    name, n = f"{contrast.first} against {contrast.second}", f"{len(contrast.gains)}"
    compared = contrast.comparison
    if compared is None:
        gain = "".join(signed(gain, digits) for gain in contrast.gains.values())
        return (name, gain or "-", "-", "-", n, "-", "-", VERDICTS[contrast.verdict])
    return (
        name,
        signed(compared.mean, digits),
        _interval(compared.interval, digits),
        _p(contrast.p),
        n,
        number(compared.effect_size, 2),
        number(compared.probability_of_improvement, 2),
        VERDICTS[contrast.verdict],
    )


def pairing(analysis: Analysis) -> Iterator[Block]:
    rows = [
        (
            f"{contrast.first} against {contrast.second}",
            number(contrast.comparison.correlation, 2),
            as_percent(contrast.comparison.variance_saved),
            number(contrast.visible, analysis.digits),
        )
        for contrast in analysis.shown
        if contrast.comparison is not None
    ]
    if rows:
        yield Table(("contrast", "correlation over seeds", "variance saved", "smallest gain in sight"), tuple(rows))
        yield Paragraph(
            "Variance saved is what the pairing takes from the variance of the gain, against as many unpaired seeds; "
            "below zero it added some. The smallest gain in sight is what so many seeds find with 80% power, at the "
            "strictest step of Holm's correction.",
            "note",
        )


def new_images(plan: Plan, analysis: Analysis) -> Iterator[Block]:
    stored = [contrast for contrast in analysis.shown if contrast.new_images is not None and contrast.comparison]
    if not stored:
        return
    rows = [
        (
            f"{contrast.first} against {contrast.second}",
            _interval(contrast.comparison.interval, analysis.digits),
            _interval(contrast.new_images, analysis.digits),
        )
        for contrast in stored
        if contrast.comparison is not None
    ]
    yield Paragraph(
        "Two questions have two answers. Would other seeds show the same on these test images? The first interval. "
        "Would other seeds on other test images of the same kind? The second, in which seeds and images are both drawn "
        "again."
    )
    yield Table(("contrast", "new seeds, these images", "new seeds and new images"), tuple(rows))


def arms(plan: Plan, analysis: Analysis, published: Mapping[str, float]) -> Iterator[Block]:
    results = [*analysis.arms, *([analysis.teachers] if analysis.teachers else [])]
    others = [name for name in OTHERS if any(name in result.others for result in results)]
    agrees = any(result.agreement for result in results)
    headers = ["arm", axis_name(plan), f"{confidence(plan)} interval", "seeds"]
    waits = any(result.never is not None for result in results)
    headers += (
        ["never reached"] * waits
        + ["the paper's"] * bool(published)
        + ["agreement"] * agrees
        + [OTHERS[name] for name in others]
    )
    rows = []
    for result in results:
        row = [result.arm, *_arm_cells(result, analysis.digits)]
        row += ["-" if result.never is None else f"{result.never}"] * waits
        row += [number(published.get(result.arm), 2)] * bool(published)
        row += [number(_mean(list(result.agreement.values())), 3)] * agrees
        row += [number(result.others.get(name), 3) for name in others]
        rows.append((*row, number(result.seconds, 0)))
    yield Table((*headers, "seconds per run"), tuple(rows))
    if published:
        yield Paragraph("The paper's numbers are of one run each: 200 epochs on all training images.", "note")
    yield from picture_of_arms(plan, analysis)


def ensembles(plan: Plan, analysis: Analysis) -> Iterator[Block]:
    """What each ensemble costs."""
    costs = budgets(plan)
    if not costs:
        return
    seconds = {result.arm: result.seconds for result in (*analysis.arms, analysis.teachers) if result is not None}
    rows = []
    for name, cost in costs.items():
        known = [seconds.get(trained) for trained in cost.trained]
        took = None if None in known else sum(each for each in known if each is not None)
        members, trained = " + ".join(plan.arm(name).members), ", ".join(cost.trained)
        rows.append((name, members, f"{cost.networks}", trained, f"{cost.training:,}", number(took, 0)))
    unit = next(iter(costs.values())).unit
    yield Table(("ensemble", "mean of", "networks that answer", "trained for it", unit, "seconds"), tuple(rows))
    yield Paragraph(
        "An ensemble is the mean of its networks' probabilities: each of its answers takes one of each network. "
        f"It trains nothing itself: {unit} and seconds are of one seed, of the runs that were needed for it, which are "
        "those of its members and of the arms that taught them.",
        "note",
    )
    yield from (Paragraph(f"{line}.", "warning") for line in unequal_ensembles(plan))


def _arm_cells(result: ArmResult, digits: int) -> Sequence[str]:
    return number(result.mean, digits), _interval(result.interval, digits), f"{len(result.values)}"


def components(analysis: Analysis) -> Iterator[Block]:
    rows = [
        (
            f"{found.first}, {found.second}",
            number(found.teachers, analysis.digits + 1),
            number(found.students, analysis.digits + 1),
            f"{found.seeds}",
        )
        for found in analysis.components
    ]
    if rows:
        headers = ("two students of one teacher", "deviation between seeds", "between students of one seed", "seeds")
        yield Table(headers, tuple(rows))
        yield Paragraph(
            "Standard deviations, from pairs of arms that differ in the student's seed alone. The arms of a seed share "
            "their teacher, so the first is the teacher's part; of arms that learn from labels alone it is chance.",
            "note",
        )


def exploratory(plan: Plan, analysis: Analysis) -> Iterator[Block]:
    rest = [contrast for contrast in analysis.exploratory if contrast not in analysis.shown]
    compared = [contrast for contrast in rest if contrast.comparison is not None]
    if not compared:
        return
    yield Paragraph(
        "These contrasts were not named beforehand. Their p is not corrected: of twenty contrasts without any "
        f"difference about {20 * plan.alpha:g} would fall below {plan.alpha:g}. They are ideas for the next study, and "
        "no results."
    )
    headers = ("contrast", "gain", f"{confidence(plan)} interval", "p (not corrected)", "seeds")
    yield Table(headers, tuple(_contrast_row(contrast, analysis.digits)[:5] for contrast in compared))


def confidence(plan: Plan) -> str:
    return f"{100 * (1 - plan.alpha):g}%"


def _interval(interval: Interval | None, digits: int) -> str:
    return format_interval(interval, digits)


def number(value: float | None, digits: int) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:z,.{digits}f}"


def as_percent(share: float | None) -> str:
    return "-" if share is None or not math.isfinite(share) else f"{100 * share:z.0f}%"


def _p(p: float | None) -> str:
    if p is None:
        return "-"
    return "<0.0001" if p < 0.0001 else f"{p:.4f}" if p < 0.01 else f"{p:.3f}"


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
