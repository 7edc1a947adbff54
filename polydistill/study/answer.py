"""A contrast as one sentence, which is what a study was made for."""

from __future__ import annotations

from polydistill.study.contrasts import Contrast
from polydistill.study.plan import Plan
from polydistill.study.records import METRICS, Metric

VERBS = {  # what was not named beforehand is only how it looks
    ("better", True): "beats",
    ("better", False): "looks better than",
    ("worse", True): "is worse than",
    ("worse", False): "looks worse than",
}


def describe_metric(plan: Plan) -> Metric:
    """Name and unit of the plan's metric; one that this version does not know is called as it is."""
    return METRICS.get(plan.metric, Metric(plan.direction, plan.metric.replace("_", " ")))


def with_unit(plan: Plan, value: float | None = None) -> str:
    """`` points`` for a metric in points, `` point`` of one, nothing for a metric without a unit."""
    unit = describe_metric(plan).unit
    return f" {unit.removesuffix('s') if value == 1 else unit}" if unit else ""


def say(contrast: Contrast, plan: Plan, digits: int) -> str:
    """The contrast as one sentence.

    Example: "ban beats labels by 0.62 points (95% interval 0.31 to 0.94, 20 seeds)."
    """
    first, second, n = contrast.first, contrast.second, len(contrast.gains)
    unit = with_unit(plan)
    if contrast.comparison is None or contrast.comparison.interval is None:
        seen = "".join(f" It was {signed(gain, digits)}{unit}." for gain in contrast.gains.values())
        why = "one seed gives no interval" if n else "no seed has finished both"
        return f"{first} against {second}: nothing can be said, {why}.{seen}"
    mean, (low, high) = contrast.comparison.mean, contrast.comparison.interval
    if contrast.verdict == "worse":
        mean, low, high = -mean, -high, -low
    confidence = f"{100 * (1 - plan.alpha):g}%"
    seen = f"{confidence} interval {low:z.{digits}f} to {high:z.{digits}f}, {n} seeds"
    within = contrast.p_equivalence is not None and contrast.p_equivalence <= plan.alpha
    if contrast.verdict in {"better", "worse"}:
        verb = VERBS[contrast.verdict, contrast.planned]
        small = f", which is within the margin of {plan.margin:g} named beforehand" if within else ""
        chance = " The two differ in the student's seed alone, so this is a false alarm." if contrast.null else ""
        return f"{first} {verb} {second} by {mean:z.{digits}f}{unit} ({seen}){small}.{chance}"
    shown = f"{signed(mean, digits)}{unit} ({seen})"
    if contrast.null:
        return f"{first} against {second}, which differ in the student's seed alone, the size of nothing: {shown}."
    if contrast.verdict == "equivalent":
        return f"{first} equals {second} within {plan.margin:g}{with_unit(plan, plan.margin)}: {shown}."
    if contrast.p is not None and (low > 0 or high < 0):  # the interval alone would mislead
        shown = shown.removesuffix(")") + f", yet p = {contrast.p:.2g}{' after Holm' * contrast.planned})"
    return f"{first} against {second}: undecided, {shown}; {_to_decide(contrast)}."


def signed(value: float, digits: int) -> str:
    """``+0.62``, ``-0.10``; zero has no minus."""
    return f"{value:+z.{digits}f}"


def _to_decide(contrast: Contrast) -> str:
    if contrast.seeds_to_decide is None:
        return "if that is the true gain, no practical number of seeds would decide"
    return f"if that is the true gain, about {contrast.seeds_to_decide:,} seeds would decide"
