"""Rebuild the tables of studies in RESULTS.md, and in the pages beside the raw measurements.

    python scripts/render_studies.py            rewrites what stands between `<!-- table: NAME -->` and `<!-- end -->`
    python scripts/render_studies.py --check    changes nothing; exit code 1 if a table is out of date

A measurement is what scripts/study.py leaves: a folder with plan.json and results.csv. All intervals are over seeds.
"""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # this clone's packages, installed or not
from polydistill._environment import require_environment

require_environment("study")

import csv
import statistics
from collections.abc import Callable
from pathlib import Path

from polydistill.errors import UserError
from polydistill.report.blocks import render
from polydistill.runs import format_interval, format_table
from polydistill.study.analysis import analyse
from polydistill.study.answer import describe_metric
from polydistill.study.plan import Plan, read_plan
from polydistill.study.records import RunRecord
from polydistill.study.table import format_mean_interval

ROOT = Path(__file__).resolve().parent.parent
MEASUREMENTS = ROOT / "scripts" / "measurements"


def read_study(name: str) -> tuple[Plan, list[RunRecord]]:
    """``plan.json`` and the finished rows of ``results.csv`` that a study of scripts/study.py left in ``name``/."""
    plan = read_plan(MEASUREMENTS / name)
    if plan is None:
        raise UserError(f"no plan.json in {MEASUREMENTS.name}/{name}/")
    records = []
    with open(MEASUREMENTS / name / "results.csv", encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            texts = {key: text for key, text in line.items() if key not in {"arm", "status", "folder", "why"}}
            numbers = {key: float(text) for key, text in texts.items() if text}
            seed, seconds = int(numbers.pop("seed")), numbers.pop("seconds", 0.0)
            if line["status"] == "done":
                records.append(RunRecord(line["arm"], seed, line["folder"], "done", numbers, seconds=seconds))
    return plan, records


def contrasts_table(*names: str) -> str:
    """The contrasts of studies that were named beforehand, judged as their own reports judge them."""
    rows: list[list[str | float | None]] = []
    for name in names:
        plan, records = read_study(name)
        analysis = analyse(plan, records)
        task = [plan.base["env"]] if len(names) > 1 else []
        for contrast in analysis.planned:
            if contrast.comparison is None or contrast.p is None:
                raise UserError(f"{name}: {contrast.first} against {contrast.second} has fewer than two seeds")
            gain = f"{contrast.comparison.mean:+z.{analysis.digits}f}"
            interval = format_interval(contrast.comparison.interval, analysis.digits)
            pair, p, n = f"{contrast.first} against {contrast.second}", f"{contrast.p:.2g}", len(contrast.gains)
            rows.append([*task, pair, f"{gain} ({interval})", p, n, contrast.verdict])
    metric = describe_metric(plan)
    headers = ["contrast", f"gain, {metric.unit or metric.name} (95% over seeds)", "p (Holm)", "seeds", "verdict"]
    return format_table([*(["environment"] if len(names) > 1 else []), *headers], rows)


def arms_table(name: str) -> str:
    """The arms of a study of classifiers: means over its seeds."""
    plan, records = read_study(name)
    analysis = analyse(plan, records)
    rows: list[list[str | float | None]] = []
    for arm in ([] if analysis.teachers is None else [analysis.teachers]) + list(analysis.arms):
        others = [f"{arm.others[key]:.3f}" for key in ("test_nll", "test_ece", "train_accuracy")]
        agreement = f"{statistics.mean(arm.agreement.values()):.3f}" if arm.agreement else None
        error = f"{arm.mean:.2f} ({format_interval(arm.interval)})"
        rows.append([arm.arm, error, *others, agreement, len(arm.values), f"{arm.seconds:.0f}"])
    headers = ["arm", f"{describe_metric(plan).name} % (95% over seeds)", "test NLL", "test ECE", "right in training"]
    return format_table([*headers, "agreement", "seeds", "seconds"], rows)


def agents_table(name: str) -> str:
    """The arms of a study of agents: means over its seeds."""
    plan, records = read_study(name)
    rows: list[list[str | float | None]] = []
    for arm in plan.names:
        of_arm = [record.metrics for record in records if record.arm == arm]
        columns = {key: [metrics[key] for metrics in of_arm if key in metrics] for key in of_arm[0]}
        reached, agreement = columns.get("reached_95"), columns.get("agreement")  # ensembles have no such number
        rows.append(
            [
                arm,
                format_mean_interval(columns["steps_to_95"], ".0f") if reached else None,
                f"{sum(reached):.0f} of {len(reached)}" if reached else None,
                format_mean_interval(columns["score"], ".1f"),
                format_mean_interval(columns["teacher_normalized"], ".3f"),
                f"{statistics.mean(agreement):.3f}" if agreement else None,
                len(of_arm),
            ]
        )
    headers = ["arm", "steps to 0.95 (95% over seeds)", "got there", "score at the end (95% over seeds)"]
    return format_table([*headers, "of teacher (95% over seeds)", "agreement", "seeds"], rows)


def sizes_over_seeds_table(name: str, sizes: str, arms: dict[str, str], published: dict[str, str]) -> str:
    """What each size of student keeps of its teacher's score over the seeds of a study, and what a decision takes.

    Args:
        name: of the study.
        sizes: the sizes.csv of compress_agent.py that has parameters and times; its first row is the teacher's.
        arms: the study's arm for each size of ``sizes``.
        published: percent of the teacher's score in Rusu et al. 2016, table 1, by size.
    """
    _, records = read_study(name)
    with open(MEASUREMENTS / sizes, encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    loaders = [key for key in lines[0] if key.endswith("_ms_of_1") and not key.startswith("as_teacher")]
    whole = int(lines[0]["parameters"])
    rows: list[list[str | float | None]] = []
    for line in lines:
        if line is lines[0]:  # every arm of a seed has the same games of the teacher
            first = next(iter(arms.values()))
            scores, kept = [run.metrics["teacher_score"] for run in records if run.arm == first], None
        else:
            of_arm = [run.metrics for run in records if run.arm == arms[line["size"]]]
            scores = [metrics["score"] for metrics in of_arm]
            kept = format_mean_interval([metrics["teacher_normalized"] for metrics in of_arm], ".3f")
        parameters = int(line["parameters"])
        rows.append(
            [
                line["size"],
                f"{parameters:,} ({parameters / whole:.1%})",
                format_mean_interval(scores, ".2f"),
                kept,
                published.get(line["size"]),
                *(f"{float(line[key]):.2f}" for key in loaders),
                len(scores),
            ]
        )
    headers = ["size", "parameters", "score (95% over seeds)", "of teacher (95% over seeds)", "the paper's %"]
    return format_table([*headers, *(f"ms, {key.removesuffix('_ms_of_1')}" for key in loaders), "seeds"], rows)


def learning_on_table(name: str) -> str:
    """The arms of a study whose students learn on: scores before and after, means over its seeds."""
    plan, records = read_study(name)
    rows: list[list[str | float | None]] = []
    for arm in plan.names:
        of_arm = [record.metrics for record in records if record.arm == arm]
        before, after = ([metrics[key] for metrics in of_arm] for key in ("score", "score_after"))
        rows.append([arm, *(format_mean_interval(scores, ".1f") for scores in (before, after)), len(of_arm)])
    return format_table(["arm", "score before (95% over seeds)", "score after (95% over seeds)", "seeds"], rows)


def curves_table(name: str) -> str:
    """Mean scores over the seeds of each arm along the way, of ``curves.csv`` (arm, seed, step, score)."""
    points: dict[str, dict[int, list[float]]] = {}
    with open(MEASUREMENTS / name / "curves.csv", encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            points.setdefault(line["arm"], {}).setdefault(int(line["step"]), []).append(float(line["score"]))
    steps = sorted({step for curve in points.values() for step in curve})
    rows: list[list[str | float | None]] = [
        [arm, *(f"{statistics.mean(curve[step]):.0f}" for step in steps)] for arm, curve in points.items()
    ]
    return format_table(["arm, mean over seeds after steps", *(f"{step:,}" for step in steps)], rows)


def costs_table(names: dict[str, str]) -> str:
    """What a seed of each study takes of one core, its teacher included, and how many seeds an hour that gives.

    Args:
        names: of the studies, each with what its runs are.
    """
    rows: list[list[str | float | None]] = []
    for name, what in names.items():
        _, records = read_study(name)
        arms: dict[str, list[float]] = {}
        for record in records:
            arms.setdefault(record.arm, []).append(record.seconds / AT_ONCE.get(name, 1))
        seed = sum(statistics.mean(seconds) for seconds in arms.values())
        median = statistics.median(seconds for arm in arms.values() for seconds in arm)
        runs = [f"{median:,.0f}", len(arms), f"{seed:,.0f}"]
        rates = (3600 * cores / seed for cores in CORES)
        rows.append([name, what, *runs, *(f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}" for rate in rates)])
    headers = ["study", "its runs", "core-seconds of a run (median)", "runs of a seed", "core-seconds of a seed"]
    return format_table([*headers, *(f"seeds/h, {cores:,} cores" for cores in CORES)], rows)


CORES = (2, 64, 2_000)
AT_ONCE = {"learn_on": 2}  # runs on one core, which share its seconds; one where none are named
STUDIES = {
    "control_cartpole": "CartPole, students of 800 steps",
    "control_acrobot": "Acrobot, students of 1,200 steps",
    "control_lunarlander": "LunarLander, students of 6,000 steps",
    "small_data": "ResNet-8 on 1,500 images",
    "learn_on": "CartPole, then 12,000 steps of DQN",
    "pong_study": "Pong, 40,000 steps, bfloat16",
}
PONG_SIZES = {"twin": "kl", "net1": "net1", "net2": "net2", "net3": "net3"}
PAPERS_SIZES = {"net1": "100.6", "net2": "103.7", "net3": "96.9"}

TABLES: dict[str, Callable[[], str]] = {
    "small_data": lambda: contrasts_table("small_data"),
    "small_data_arms": lambda: arms_table("small_data"),
    "control_study": lambda: contrasts_table("control_cartpole", "control_acrobot"),
    "control_lunarlander": lambda: contrasts_table("control_lunarlander"),
    "control_cartpole_arms": lambda: agents_table("control_cartpole"),
    "control_acrobot_arms": lambda: agents_table("control_acrobot"),
    "control_lunarlander_arms": lambda: agents_table("control_lunarlander"),
    "pong_study": lambda: contrasts_table("pong_study"),
    "pong_study_arms": lambda: agents_table("pong_study"),
    "pong_sizes": lambda: sizes_over_seeds_table("pong_study", "sizes_pong.csv", PONG_SIZES, PAPERS_SIZES),
    "pong_generations": lambda: contrasts_table("pong_generations"),
    "pong_generations_arms": lambda: agents_table("pong_generations"),
    "study_costs": lambda: costs_table(STUDIES),
    "learn_on": lambda: contrasts_table("learn_on"),
    "learn_on_arms": lambda: learning_on_table("learn_on"),
    "learn_on_curves": lambda: curves_table("learn_on"),
}


if __name__ == "__main__":
    render(TABLES, ["RESULTS.md", "docs/scale.md"], ROOT, description=__doc__)
