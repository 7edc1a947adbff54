"""The results of a study in a table for a terminal: what each arm has reached so far."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev

from polydistill.runs import format_table
from polydistill.statistics import t_interval
from polydistill.study.plan import Plan
from polydistill.study.records import TEACHER, RunRecord


def format_results(plan: Plan, records: Sequence[RunRecord]) -> str:
    """One row per arm: mean and standard deviation of the metric over the seeds that are finished.

    Args:
        plan: of the study.
        records: of all its runs.
    """
    rows: list[list[str | float | None]] = []
    for name in (*([TEACHER] if plan.teacher is not None else []), *plan.names):
        own = [record for record in records if record.arm == name]
        values = [record.metrics[plan.metric] for record in own if plan.metric in record.metrics]
        failed = sum(record.status == "failed" for record in own)
        middle = f"{mean(values):.4g}" if values else None
        spread = f"{stdev(values):.3g}" if len(values) > 1 else None
        rows.append([name, middle, spread, f"{len(values)}/{len(own)}" + (f", {failed} failed" if failed else "")])
    title = f"{plan.metric}, {plan.direction} is better, over {len(plan.all_seeds)} seeds; plan {plan.sha256[:12]}"
    return f"{title}\n\n{format_table(['arm', 'mean', 'sd', 'finished'], rows)}"


def format_mean_interval(values: Sequence[float], form: str) -> str:
    """``mean (low to high)``: Student's 95% interval of the mean of ``values``, one of each seed.

    Args:
        values: at least one.
        form: of each number, like ``".2f"``.

    Example:
        >>> format_mean_interval([1.0, 2.0, 3.0], ".1f"), format_mean_interval([1.0], "+.1f")
        ('2.0 (-0.5 to 4.5)', '+1.0 (-)')
    """
    interval = t_interval(values)
    ends = "-" if interval is None else " to ".join(format(end, form) for end in interval)
    return f"{mean(values):{form}} ({ends})"
