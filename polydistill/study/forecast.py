"""What a study will do, take and see, for ``--dry_run``.

Its cost comes from the seconds that such runs took here before, else from the world's own estimate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import stdev
from typing import Any

from polydistill.config.parsing import read_config
from polydistill.config.plain_yaml import dump_yaml, flatten
from polydistill.runs import format_table
from polydistill.runs.speeds import format_duration, recall
from polydistill.statistics import least_p, smallest_effect
from polydistill.study.answer import with_unit
from polydistill.study.arms import GIVEN
from polydistill.study.budget import unequal_ensembles, unequal_epochs
from polydistill.study.plan import ENSEMBLE, Plan
from polydistill.study.planned import PlannedRun, planned_runs
from polydistill.study.records import RunRecord
from polydistill.study.runner import work_of
from polydistill.study.teachers import shares_one
from polydistill.study.worlds import World

FEWEST_PAIRS = 3  # finished ones, for a standard deviation of their differences that is worth a word
POWER = 0.8
DOUBT = "it may be two or three times off, and more for runs of seconds"


def format_forecast(plan: Plan, records: Sequence[RunRecord], world: World, out: Path, workers: int) -> str:
    """The plan, what of it is finished, what the rest takes, and what can be seen then. Writes nothing.

    Args:
        plan: with the amendments that would be made.
        records: of its runs.
        world: of them.
        out: folder of the study, for the text.
        workers: runs at once.
    """
    done = {record.key for record in records if record.status == "done"}
    runs = planned_runs(plan)
    margin = "" if plan.margin is None else f"; a difference below {_in_unit(plan.margin, plan)} does not matter"
    contrasts = ", ".join(f"{first} against {second}" for first, second in plan.contrasts)
    given = "given, one for all seeds" if shares_one(plan) else "given, one for each seed"
    rows = [
        (arm.name, "-" if arm.members else arm.teacher or given, format_overrides(arm.overrides)) for arm in plan.arms
    ]
    return "\n".join(
        [
            dump_yaml(plan.base),
            format_table(("arm", "taught by", "sets"), rows),
            f"compared by {plan.metric} ({plan.direction} is better), alpha {plan.alpha:g} over all contrasts{margin}",
            f"contrasts named beforehand: {contrasts or 'none, so every comparison is exploratory'}",
            f"plan {plan.sha256[:12]}: {len(plan.all_seeds)} seeds, {len(runs)} runs in {out}, {len(done)} finished",
            f"time: {forecast_time([run for run in runs if run.key not in done], world, workers)}",
            *_sight(plan, records),
            *(f"warning: {line}" for line in (*unequal_epochs(plan), *unequal_ensembles(plan))),
        ]
    )


def warning_of_too_few(plan: Plan) -> str:
    """One line where no permutation test of the plan can find anything, however large the difference; else empty."""
    n, contrasts = len(plan.all_seeds), max(1, len(plan.contrasts))
    least = least_p(n, contrasts=contrasts)
    if least < plan.alpha:
        return ""
    enough = next((more for more in range(n, 200) if least_p(more, contrasts=contrasts) < plan.alpha), None)
    over = f" and {contrasts} contrasts" if contrasts > 1 else ""
    return (
        f"with {n} seeds{over} no permutation test can reach a p below {plan.alpha:g}: the smallest is {least:.3g}"
        + (f"; {enough} seeds can" if enough else "")
    )


def _sight(plan: Plan, records: Sequence[RunRecord]) -> list[str]:
    """How large a difference must be to be seen; in the metric's unit, where finished pairs say how much they vary."""
    n, alpha = len(plan.all_seeds), plan.alpha / max(1, len(plan.contrasts))  # Holm's smallest step
    lines = [
        f"what it sees: with a probability of {POWER:g}, a mean difference between arms of "
        f"{smallest_effect(1.0, n, POWER, alpha):.3g} standard deviations of the differences in a seed"
    ]
    values = {record.key: record.metrics[plan.metric] for record in records if plan.metric in record.metrics}
    for first, second in plan.contrasts:
        seeds = [seed for seed in plan.all_seeds if (first, seed) in values and (second, seed) in values]
        differences = [values[first, seed] - values[second, seed] for seed in seeds]
        if len(differences) >= FEWEST_PAIRS and (deviation := stdev(differences)) > 0:
            effect = _in_unit(smallest_effect(deviation, n, POWER, alpha), plan)
            lines.append(f"  {first} against {second}: {effect}, by the {len(seeds)} pairs that are finished")
    return [*lines, *([f"warning: {few}"] if (few := warning_of_too_few(plan)) else [])]


def _in_unit(value: float, plan: Plan) -> str:
    return f"{value:.3g}{with_unit(plan, value)}"


def format_overrides(overrides: Mapping[str, Any]) -> str:
    """What an arm sets, in one line.

    Example:
        >>> format_overrides({"student.objective": "ban", "student.repeat": 1})
        'student.objective ban, student.repeat 1'
    """
    values = {key: " + ".join(value) if key == ENSEMBLE else value for key, value in overrides.items()}
    return ", ".join(f"{key} {value}" for key, value in values.items()) or "nothing"


def forecast_time(runs: Sequence[PlannedRun], world: World, workers: int) -> str:
    """How long the runs take, from those whose like has finished here, else from the world's estimate."""
    cores = f"{workers} core{'s' * (workers > 1)}"
    if not runs:
        return "none, all runs are finished"
    arms = {run.arm: run for run in runs}
    seen = {arm: 1 / rate for arm, run in arms.items() if (rate := recall(work_of(world.name, run.config)))}
    estimate = {arm: _estimate(run, world) for arm, run in arms.items() if arm not in seen}
    guessed = {arm: seconds for arm, seconds in estimate.items() if seconds is not None}
    unknown = [arm for arm in estimate if arm not in guessed]
    seconds = [known for run in runs if (known := {**guessed, **seen}.get(run.arm))]
    if not seconds:
        return f"not known, no such run has finished here yet; one seed says how long the others take on {cores}"
    mean = sum(seconds) / len(seconds)
    total = sum(seconds) + mean * (len(runs) - len(seconds))
    why = [
        "by what such runs took here" if seen else "",
        f"{_whose(guessed, arms)}by the size of the work alone: {DOUBT}" if guessed else "",
        f"not known of {', '.join(unknown)}: taken as the mean of the others" if unknown else "",
    ]
    return f"about {format_duration(total / workers)} on {cores}, {'; '.join(words for words in why if words)}"


def _whose(some: Mapping[str, float], arms: Mapping[str, PlannedRun]) -> str:
    return "" if len(some) == len(arms) else f"of {', '.join(some)} "


def _estimate(run: PlannedRun, world: World) -> float | None:
    """Seconds of a run whose like has not finished here; None: the world does not say."""
    if run.members:
        return None if world.ensemble is None else world.ensemble.seconds
    if world.expected_seconds is None:
        return None
    settings = dict(flatten(run.config)) | ({GIVEN: "given"} if run.teacher is not None else {})
    return world.expected_seconds(read_config(world.config_class, None, settings))
