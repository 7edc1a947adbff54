"""One arm against another: gains paired by seed, their comparison, and a verdict at the plan's rate of errors.

Symbols: a gain is how much better the first arm of a contrast is than the second with the same seed, in the metric's
unit: positive is better whether the metric should be low or high. The contract: no interval is made of one seed, and
the verdict is that of the permutation test, which assumes no form of the differences; of planned contrasts after Holm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from polydistill.statistics import (
    Interval,
    PairedComparison,
    compare_pairs,
    equivalence,
    holm,
    least_p,
    seeds_needed,
    smallest_effect,
)
from polydistill.streams import numpy_stream
from polydistill.study.plan import Plan

MOST_SEEDS = 10_000  # more than that decide nothing in practice
REPEAT = "student.repeat"  # arms that differ in it alone are students of the same kind with other seeds
Verdict = Literal["better", "worse", "equivalent", "undecided", "unknown"]


@dataclass(frozen=True)
class Contrast:
    """One arm against another over the seeds that both have finished."""

    first: str
    second: str
    planned: bool
    null: bool  # the arms differ in the student's seed alone: what is seen is chance
    gains: Mapping[int, float]  # seed -> gain
    comparison: PairedComparison | None = None  # None below two seeds
    p: float | None = None  # of the permutation test; of a planned contrast adjusted by Holm over the planned ones
    p_equivalence: float | None = None  # likewise, of the two one-sided tests; None without a margin
    verdict: Verdict = "unknown"
    seeds_to_decide: int | None = None  # if the true gain is the one seen; None: it is decided, or no number would do
    visible: float | None = None  # the smallest true gain that so many seeds see with 80% power
    new_images: Interval | None = None  # of the gain over new seeds and new test inputs; None: not stored


def compare_arms(
    plan: Plan, values: Mapping[str, Mapping[int, float]], pair: tuple[str, str], *, planned: bool
) -> Contrast:
    """The gains of a pair and their comparison, not yet judged.

    Args:
        plan: says what is better.
        values: arm -> seed -> metric.
        pair: the first arm against the second.
        planned: whether it was named beforehand.
    """
    first, second = pair
    sign = -1.0 if plan.direction == "lower" else 1.0
    one, other = values[first], values[second]
    seeds = [seed for seed in plan.all_seeds if seed in one and seed in other]
    gains = {seed: sign * (one[seed] - other[seed]) for seed in seeds}
    null = differ_in_seed_alone(plan, first, second)
    if len(seeds) < 2:
        return Contrast(first, second, planned, null, gains)
    comparison = compare_pairs(
        [sign * one[seed] for seed in seeds],
        [sign * other[seed] for seed in seeds],
        generator=numpy_stream(0, f"compare {first} {second}"),
        confidence=1 - plan.alpha,
    )
    p_equivalence = None if plan.margin is None else equivalence(list(gains.values()), plan.margin)
    return Contrast(
        first, second, planned, null, gains, comparison, p=comparison.p_permutation, p_equivalence=p_equivalence
    )


def correct_for_all(plan: Plan, contrasts: Sequence[Contrast]) -> list[Contrast]:
    """The planned contrasts judged, their p adjusted by Holm. Those without seeds count too: they were named."""
    adjusted = holm([1.0 if contrast.p is None else contrast.p for contrast in contrasts])
    equal = holm([1.0 if contrast.p_equivalence is None else contrast.p_equivalence for contrast in contrasts])
    return [
        judge(
            plan,
            replace(
                contrast,
                p=None if contrast.p is None else p,
                p_equivalence=None if contrast.p_equivalence is None else p_equivalence,
            ),
            len(contrasts),
        )
        for contrast, p, p_equivalence in zip(contrasts, adjusted, equal, strict=True)
    ]


def judge(plan: Plan, contrast: Contrast, n_tests: int) -> Contrast:
    """The contrast with its verdict; ``n_tests`` contrasts share the error rate."""
    comparison = contrast.comparison
    if comparison is None or comparison.deviation is None or contrast.p is None:
        return contrast
    verdict: Verdict = "undecided"
    if contrast.p <= plan.alpha:
        verdict = "better" if comparison.mean > 0 else "worse"
    elif contrast.p_equivalence is not None and contrast.p_equivalence <= plan.alpha:
        verdict = "equivalent"
    deviation, alpha = comparison.deviation, plan.alpha / n_tests  # the strictest step of Holm
    return replace(
        contrast,
        verdict=verdict,
        visible=smallest_effect(deviation, comparison.n, alpha=alpha) if deviation else None,
        seeds_to_decide=_seeds_to_decide(plan, comparison, n_tests) if verdict == "undecided" else None,
    )


def _seeds_to_decide(plan: Plan, comparison: PairedComparison, n_tests: int) -> int | None:
    """Seeds with which 80% of studies would decide, if the gain and its spread are those seen; more than now."""
    more = range(comparison.n + 1, MOST_SEEDS + 1)
    least = next((n for n in more if least_p(n, contrasts=n_tests) <= plan.alpha), None)
    if not comparison.mean or least is None:
        return None
    if not comparison.deviation:
        return least
    needed = seeds_needed(comparison.mean, comparison.deviation, alpha=plan.alpha / n_tests)
    return max(least, needed) if needed is not None and needed <= MOST_SEEDS else None


def differ_in_seed_alone(plan: Plan, first: str, second: str) -> bool:
    """Whether two arms are the same but for the number of the student among those of one teacher."""
    one, other = plan.arm(first), plan.arm(second)
    same, likewise = dict(one.overrides), dict(other.overrides)
    differ = same.pop(REPEAT, 0) != likewise.pop(REPEAT, 0)
    return differ and same == likewise and one.teacher == other.teacher
