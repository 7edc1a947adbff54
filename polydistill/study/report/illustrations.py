"""The pictures that a report shows, from the analysis: which there are, and what stands below them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from polydistill.report.document import Picture
from polydistill.statistics import t_interval
from polydistill.study.analysis import Analysis, ArmResult
from polydistill.study.answer import describe_metric
from polydistill.study.plan import Plan
from polydistill.study.report.pictures import Row, draw_curves, draw_lines, draw_pair, draw_points, draw_rows


def axis_name(plan: Plan) -> str:
    """Of the metric."""
    metric = describe_metric(plan)
    unit = "%" if plan.metric == "test_error" else metric.unit  # its differences are in points
    return f"{metric.name}, {unit}" if unit else metric.name


def gain_name(plan: Plan) -> str:
    """Of a gain."""
    unit = describe_metric(plan).unit
    return f"gain in {unit}" if unit else "gain"


def picture_of_gains(plan: Plan, analysis: Analysis) -> Iterator[Picture]:
    """The paired differences of every contrast shown over one axis."""
    rows = [
        Row(
            f"{contrast.first} against {contrast.second}",
            list(contrast.gains.values()),
            contrast.comparison.mean if contrast.comparison else None,
            contrast.comparison.interval if contrast.comparison else None,
        )
        for contrast in analysis.shown
    ]
    if any(row.values for row in rows):
        band = "" if plan.margin is None else f" The band is the margin of equivalence, {plan.margin:g} to either side."
        caption = f"Each dot is the difference of one seed; diamond and bar are their mean and its interval.{band}"
        yield Picture(
            draw_rows(rows, f"{gain_name(plan)} (right of zero: the first is better)", zero=True, margin=plan.margin),
            caption,
        )


def pictures_of_pairs(plan: Plan, analysis: Analysis) -> Iterator[Picture]:
    """An estimation plot of each contrast shown that has at least two seeds."""
    values = {result.arm: result.values for result in analysis.arms}
    for contrast in analysis.shown:
        if contrast.comparison is None:
            continue
        first, second = contrast.first, contrast.second
        pairs = [(values[first][seed], values[second][seed]) for seed in contrast.gains]
        gains = Row("", list(contrast.gains.values()), contrast.comparison.mean, contrast.comparison.interval)
        caption = f"{first} against {second}: each line joins the two runs of a seed; on the right the paired gains."
        yield Picture(draw_pair((first, second), pairs, gains, axis_name(plan), gain_name(plan)), caption)


def picture_of_arms(plan: Plan, analysis: Analysis) -> Iterator[Picture]:
    """Every run of every arm."""
    rows = [Row(arm.arm, list(arm.values.values()), arm.mean, arm.interval) for arm in analysis.arms]
    if any(row.values for row in rows):
        better = "left" if plan.direction == "lower" else "right"
        caption = (
            f"Each dot is a run; further {better} is better. The bars are intervals of each arm by itself: whether two "
            "arms differ is not seen from their overlap, since seeds are paired."
        )
        yield Picture(draw_rows(rows, axis_name(plan)), caption)


def picture_of_agreement(plan: Plan, analysis: Analysis) -> Iterator[Picture]:
    """How far a student agrees with its teacher, and what it gained, of every contrast shown."""
    agreement = {result.arm: result.agreement for result in analysis.arms}
    groups = {}
    for contrast in analysis.shown:
        seen = agreement[contrast.first]
        points = [(seen[seed], gain) for seed, gain in contrast.gains.items() if seed in seen]
        if points:
            groups[f"{contrast.first} against {contrast.second}"] = points
    if groups:
        caption = "Each sign is a seed. To the right: the student answers as its teacher does on more test inputs."
        yield Picture(draw_points(groups, "agreement of the first arm with its teacher", gain_name(plan)), caption)


def picture_of_generations(plan: Plan, analysis: Analysis) -> Iterator[Picture]:
    """Each chain of arms that teach each other, from the teacher on."""
    results = {result.arm: result for result in analysis.arms}
    taught_by = {arm.name: arm.teacher for arm in plan.arms if arm.teacher in results}
    for last in [arm for arm in taught_by if arm not in taught_by.values()]:
        names = [last]
        while names[0] in taught_by:
            names.insert(0, taught_by[names[0]])
        steps = [*([analysis.teachers] if analysis.teachers else []), *(results[name] for name in names)]
        yield from _curve(plan, steps)


def _curve(plan: Plan, steps: Sequence[ArmResult]) -> Iterator[Picture]:
    seeds = [seed for seed in plan.all_seeds if all(seed in step.values for step in steps)]
    if not seeds:
        return
    curves = [[step.values[seed] for step in steps] for seed in seeds]
    columns = list(zip(*curves, strict=True))
    means = [
        Row(step.arm, column, sum(column) / len(column), t_interval(column, confidence=1 - plan.alpha))
        for step, column in zip(steps, columns, strict=True)
    ]
    caption = f"Each line is a seed ({len(seeds)} of them), each arm taught by the one to its left."
    yield Picture(draw_curves(curves, means, axis_name(plan), "generation"), caption)


def picture_of_shares(plan: Plan, shares: Mapping[str, Sequence[tuple[float, float]]]) -> Iterator[Picture]:
    """The label's share of the gradient while learning, of each arm that logged it."""
    drawn = {arm: shares[arm] for arm in plan.names if len(shares.get(arm, ())) > 1}
    if drawn:
        caption = (
            "How much of the gradient of cross-entropy with the teacher comes from the label; the rest is dark "
            "knowledge. Means over the arm's seeds."
        )
        yield Picture(draw_lines(drawn, "inputs seen in training", "share of the label"), caption)
