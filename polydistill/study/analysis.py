"""What the finished runs of a study say: arms, planned and exploratory contrasts, and the answer in words.

Symbols: a gain is how much better the first arm of a contrast is than the second with the same seed, in the metric's
unit: positive is better whether the metric should be low or high. The contract: pure functions of the plan and its
records; the same records give the same numbers to the last bit; no interval is made of one seed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from polydistill.statistics import Interval, PairedComparison, t_interval, two_way_interval, variance_components
from polydistill.streams import numpy_stream
from polydistill.study.answer import say
from polydistill.study.contrasts import Contrast, compare_arms, correct_for_all, differ_in_seed_alone, judge
from polydistill.study.plan import Plan
from polydistill.study.records import METRICS, TEACHER, RunRecord

MOST_SHOWN = 10  # contrasts that nobody asked for
ReadCorrect = Callable[[RunRecord], "NDArray[np.bool_] | None"]


@dataclass(frozen=True)
class ArmResult:
    """An arm over its seeds: the metric of each finished run, and means over the runs of what else is known."""

    arm: str
    values: Mapping[int, float]  # seed -> metric
    mean: float | None
    interval: Interval | None  # Student's, over seeds; None below two
    agreement: Mapping[int, float]  # seed -> share of test inputs on which it agrees with its teacher
    others: Mapping[str, float]  # means of the other metrics that all of its runs have
    seconds: float | None  # mean of a run
    never: int | None = None  # runs that ended before what the metric waits for; None: it waits for nothing


@dataclass(frozen=True)
class Components:
    """Spread of two arms that differ in the student's seed alone: standard deviations in the metric's unit."""

    first: str
    second: str
    seeds: int
    teachers: float
    students: float


@dataclass(frozen=True)
class Analysis:
    """All that the records say. ``answer`` is one sentence for each of the contrasts ``shown``."""

    arms: tuple[ArmResult, ...]
    teachers: ArmResult | None  # of the seeds; None: nothing is known of them
    planned: tuple[Contrast, ...]
    exploratory: tuple[Contrast, ...]
    components: tuple[Components, ...]
    digits: int  # after the point, of gains: two of the digits of their spread
    answer: tuple[str, ...] = ()

    @property
    def shown(self) -> tuple[Contrast, ...]:
        """What the answer is about: the planned contrasts, or where none was named beforehand the first others."""
        return self.planned or self.exploratory[:MOST_SHOWN]


def analyse(plan: Plan, records: Sequence[RunRecord], read_correct: ReadCorrect | None = None) -> Analysis:
    """Analyse the finished runs.

    Args:
        plan: of the study.
        records: of its runs in any order; those that are not done do not count.
        read_correct: gives ``(inputs,)`` bool of a run, true where the test input was named rightly, or None where that
            is not stored. None: no run has it.
    """
    done = {(record.arm, record.seed): record for record in records if record.status == "done"}
    done = {key: record for key, record in done.items() if math.isfinite(measure(record, plan.metric))}
    arms = tuple(_arm(plan, arm, done) for arm in plan.names)
    values = {result.arm: result.values for result in arms}
    teachers = _teachers(plan, done)
    named = [(first, second) for first, second in plan.contrasts]
    others = [pair for pair in itertools.combinations(plan.names, 2) if not {pair, pair[::-1]} & set(named)]
    planned = correct_for_all(plan, [compare_arms(plan, values, pair, planned=True) for pair in named])
    exploratory = [judge(plan, compare_arms(plan, values, pair, planned=False), 1) for pair in others]
    if read_correct is not None and plan.metric == "test_error":
        draw = partial(_new_images, done=done, read_correct=read_correct, confidence=1 - plan.alpha)
        planned = [draw(contrast) for contrast in planned]
        shown = 0 if planned else MOST_SHOWN
        exploratory = [*map(draw, exploratory[:shown]), *exploratory[shown:]]
    digits = _digits([contrast.comparison for contrast in planned or exploratory])
    analysis = Analysis(arms, teachers, tuple(planned), tuple(exploratory), tuple(_components(plan, values)), digits)
    return replace(analysis, answer=tuple(say(contrast, plan, digits) for contrast in analysis.shown))


def measure(record: RunRecord, metric: str) -> float:
    """The study's metric of a finished run; NaN where the run does not have it."""
    return record.metrics.get(metric, math.nan)


def _arm(plan: Plan, arm: str, done: Mapping[tuple[str, int], RunRecord]) -> ArmResult:
    runs = {seed: done[arm, seed] for seed in plan.all_seeds if (arm, seed) in done}
    values = {seed: measure(record, plan.metric) for seed, record in runs.items()}
    agreement = {seed: run.metrics["agreement"] for seed, run in runs.items() if _known(run, "agreement")}
    names = sorted(set.intersection(*(set(run.metrics) for run in runs.values()))) if runs else []
    others = {name: float(np.mean([run.metrics[name] for run in runs.values()])) for name in names}
    return ArmResult(
        arm=arm,
        values=values,
        mean=float(np.mean(list(values.values()))) if values else None,
        interval=t_interval(list(values.values()), confidence=1 - plan.alpha) if len(values) > 1 else None,
        agreement=agreement,
        others={name: value for name, value in others.items() if math.isfinite(value)},
        seconds=float(np.mean([run.seconds for run in runs.values()])) if runs else None,
        never=_count_never(plan, runs.values()),
    )


def _count_never(plan: Plan, runs: Iterable[RunRecord]) -> int | None:
    reached = METRICS[plan.metric].reached if plan.metric in METRICS else ""
    return sum(run.metrics.get(reached) == 0 for run in runs) if reached else None


def _teachers(plan: Plan, done: Mapping[tuple[str, int], RunRecord]) -> ArmResult | None:
    """The seeds' own teachers, or those that were given, as the runs of the first arm that has any measured them."""
    if plan.teacher is not None:
        return _arm(plan, TEACHER, done)
    student = next((arm.name for arm in plan.arms if not arm.members), None)
    given = {
        (TEACHER, seed): replace(record, arm=TEACHER, metrics=record.teacher_metrics, seconds=math.nan)
        for (arm, seed), record in done.items()
        if arm == student and plan.metric in record.teacher_metrics
    }
    teachers = _arm(plan, TEACHER, given)
    if len(set(teachers.values.values())) == 1:  # one teacher for all seeds: it has no spread
        return replace(teachers, interval=None)
    return teachers if given else None


def _known(record: RunRecord, name: str) -> bool:
    return math.isfinite(record.metrics.get(name, math.nan))


def _components(plan: Plan, values: Mapping[str, Mapping[int, float]]) -> list[Components]:
    found = []
    for first, second in itertools.combinations(plan.names, 2):
        one, other = values[first], values[second]
        groups = [[one[seed], other[seed]] for seed in plan.all_seeds if seed in one and seed in other]
        if differ_in_seed_alone(plan, first, second) and len(groups) > 1:
            teachers, students = variance_components(groups)
            found.append(Components(first, second, len(groups), math.sqrt(teachers), math.sqrt(students)))
    return found


def _new_images(
    contrast: Contrast, done: Mapping[tuple[str, int], RunRecord], read_correct: ReadCorrect, confidence: float
) -> Contrast:
    """The contrast with its interval over seeds and test inputs, in percentage points, where all its runs stored it."""
    if contrast.comparison is None:
        return contrast
    read = [[read_correct(done[arm, seed]) for seed in contrast.gains] for arm in (contrast.first, contrast.second)]
    stored = [[run for run in runs if run is not None] for runs in read]
    sizes = {len(run) for runs in stored for run in runs}
    if len(sizes) != 1 or any(len(runs) < len(contrast.gains) for runs in stored):
        return contrast
    generator = numpy_stream(0, f"new inputs {contrast.first} {contrast.second}")
    interval = two_way_interval(np.array(stored[0]), np.array(stored[1]), generator=generator, confidence=confidence)
    if interval is None:
        return contrast
    return replace(contrast, new_images=Interval(100.0 * interval.low, 100.0 * interval.high))


def _digits(comparisons: Sequence[PairedComparison | None]) -> int:
    """Digits after the point that show two digits of the widest interval's half, at most four."""
    halves = [(c.interval.high - c.interval.low) / 2 for c in comparisons if c is not None and c.interval is not None]
    widest = max((half for half in halves if half > 0), default=0.1)
    return min(max(1 - math.floor(math.log10(widest)), 0), 4)
