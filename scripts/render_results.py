"""Rebuild the tables of README.md and RESULTS.md, and of the pages beside the raw measurements: what runs gave.

    python scripts/render_results.py            rewrites what stands between `<!-- table: NAME -->` and `<!-- end -->`
    python scripts/render_results.py --check true     changes nothing; exit code 1 if a table is out of date

scripts/render_speed.py does those of the benchmarks. A measurement is the summary.json of a run
(``<config>-<arm>-seed<n>.json``), a table of runs, or what a study leaves: a folder with plan.json and results.csv.
"95% over seeds" is Student's interval of the seeds' means: each seed has its own games or training, so it
includes their spread. "95% over games" is a bootstrap interval that resamples the games within each seed: it does not
cover other seeds.
"""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # this clone's packages, installed or not
from polydistill._environment import require_environment

require_environment("study")

import csv
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polydistill.config.parsing import parse
from polydistill.errors import UserError, run_script
from polydistill.report.blocks import fill_documents
from polydistill.runs import format_interval, format_table
from polydistill.statistics import bootstrap_normalized_interval, pooled_interval, t_interval
from polydistill.study.analysis import analyse
from polydistill.study.answer import describe_metric
from polydistill.study.plan import Plan, read_plan
from polydistill.study.records import RunRecord

ROOT = Path(__file__).resolve().parent.parent
MEASUREMENTS = ROOT / "scripts" / "measurements"


@dataclass(frozen=True)
class RenderConfig:
    """Whether to write.

    Args:
        check: compare only, and write nothing.
    """

    check: bool = False


def load(name: str) -> list[dict[str, Any]]:
    """The measurements ``NAME-seed<n>.json``, by seed."""
    files = sorted(MEASUREMENTS.glob(f"{name}-seed*.json"))
    if not files:
        raise UserError(f"no measurements {name}-seed<n>.json in {MEASUREMENTS.name}/")
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def pong_table(name: str) -> str:
    """One row per generation: means over the seeds. The teacher is one agent, so it has no interval over seeds."""
    runs = load(name)
    rows: list[list[str | float | None]] = []
    for k, generation in enumerate(runs[0]["generations"]):
        metrics = [run["generations"][k]["metrics"] for run in runs]
        means = [m["score_mean"] for m in metrics]
        over_games = pooled_interval([m["scores"] for m in metrics], generator=np.random.default_rng(0))
        over_seeds = t_interval(means) if k else None
        rows.append(
            [
                "its twin, distilled" if k else "teacher",
                f"{statistics.mean(means):.2f} ({format_interval(over_seeds)}; {format_interval(over_games)})",
                f"{statistics.mean(m['human_normalized'] for m in metrics):.2f}",
                of_teacher_text(runs, k) if k else None,
                f"{statistics.mean(m['agreement'] for m in metrics):.3f}" if k else None,
                generation["parameters"],
                f"{len(runs)} x {metrics[0]['episodes']}",
            ]
        )
    headers = ["Pong, protocol rusu", "score (95% over seeds; over games)", "of human"]
    headers += ["of teacher (95% over seeds; over games)", "agreement", "parameters", "seeds x games"]
    return format_table(headers, rows)


def acktr_runs() -> dict[str, dict[str, Any]]:
    """Game -> the run of its actor-critic; one seed each."""
    return {
        run["config"]["game"]: run
        for name in ("pong", "breakout", "qbert", "seaquest")
        for run in load(f"acktr_{name}")
    }


def acktr_table(short: bool = False) -> str:
    """Twins of actor-critics: each one run, so that its intervals are those of its games alone."""
    rows: list[list[str | float | None]] = []
    for game, run in acktr_runs().items():
        teacher, student = (generation["metrics"] for generation in run["generations"])
        scores = [f"{m['score_mean']:,.1f} ({format_interval(m['score_ci95'])})" for m in (teacher, student)]
        ratio = f"{student['teacher_normalized']:.3f} ({format_interval(student['teacher_normalized_ci95'], 3)})"
        minutes = f"{run['wall_seconds'] / 60:.0f}"
        steps = f"{run['config']['play']['steps']:,}"
        if short:
            rows.append([game, *(f"{m['score_mean']:,.1f}" for m in (teacher, student)), ratio, student["episodes"]])
            continue
        rows.append([game, *scores, ratio, f"{student['agreement']:.3f}", student["episodes"], steps, minutes])
    over = "(95% over games)"
    if short:
        return format_table(["game", "teacher", "student", f"of teacher {over}", "games"], rows)
    headers = [
        "game",
        f"teacher {over}",
        f"student {over}",
        f"of teacher {over}",
        "agreement",
        "games",
        "steps",
        "minutes",
    ]
    return format_table(headers, rows)


def acktr_curves_table() -> str:
    """The student's mean score over time."""
    curves: dict[int, dict[str, str]] = {}
    with open(MEASUREMENTS / "acktr_curves.csv", encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            step = round(int(line["step"]), -4)  # of a few rounds later, whole steps of all games
            curves.setdefault(step, {})[line["game"]] = f"{float(line['score']):,.1f}"
    games = list(dict.fromkeys(game for of in curves.values() for game in of))
    return format_table(
        ["steps, about", *games], [[f"{step:,}", *map(of.get, games)] for step, of in sorted(curves.items())]
    )


def acting_table() -> str:
    """Who acts, at equal samples and seeds; differences are of the same seeds."""
    arms = {"the teacher": load("pong"), "the student more and more": load("pong_dagger")}
    seeds = sorted(set.intersection(*({run["seed"] for run in runs} for runs in arms.values())))
    of = {who: [run["generations"][1]["metrics"] for run in runs if run["seed"] in seeds] for who, runs in arms.items()}
    rows: list[list[str | float | None]] = []
    for who, metrics in of.items():
        row: list[str | float | None] = [who]
        for name, form in (("teacher_normalized", ".3f"), ("agreement", ".3f")):
            values, first = [m[name] for m in metrics], [m[name] for m in of["the teacher"]]
            less = [value - start for value, start in zip(values, first, strict=True)]
            row += [interval_text(values, form), None if values == first else interval_text(less, "+.3f")]
        rows.append([*row, f"{len(seeds)} x {metrics[0]['episodes']}"])
    headers = ["who acts in Pong", "of teacher (95% over seeds)", "less the first row's"]
    return format_table([*headers, "agreement (95% over seeds)", "less the first row's", "seeds x games"], rows)


def of_teacher_text(runs: list[dict[str, Any]], k: int) -> str:
    """(student - random) / (teacher - random) of all games of generation ``k``, and both its intervals."""
    from polydistill_agents.environments.references import reference

    row = reference(runs[0]["config"]["game"])
    assert row is not None
    students, teachers = (np.concatenate([run["generations"][i]["metrics"]["scores"] for run in runs]) for i in (k, 0))
    over_games = bootstrap_normalized_interval(students, teachers, row.random, generator=np.random.default_rng(0))
    over_seeds = t_interval([run["generations"][k]["metrics"]["teacher_normalized"] for run in runs])
    ratio = (students.mean() - row.random) / (teachers.mean() - row.random)
    return f"{ratio:.3f} ({format_interval(over_seeds, 3)}; {format_interval(over_games, 3)})"


def seed_table() -> str:
    """Each seed of the default run."""
    rows: list[list[str | float | None]] = []
    for run in load("pong"):
        for k, generation in enumerate(run["generations"]):
            metrics = generation["metrics"]
            score = f"{metrics['score_mean']:.2f} ({format_interval(metrics['score_ci95'])})"
            of_teacher = None
            if metrics["teacher_normalized"] is not None:
                ends = format_interval(metrics["teacher_normalized_ci95"], 3)
                of_teacher = f"{metrics['teacher_normalized']:.3f} ({ends})"
            agreement = f"{metrics['agreement']:.3f}" if k else None
            who = f"seed {run['seed']}, {'student' if k else 'teacher'}"
            rows.append([who, score, of_teacher, agreement])
    return format_table(["run", "score (95% over games)", "of teacher (95% over games)", "agreement"], rows)


LESS_CONTROL = "less the control, points (95% over seeds)"
ARMS = {
    "labels": "student, labels alone (the control)",
    "ban": "BAN: the teacher alone",
    "uniform_confidence": "uniform confidence: the teacher, equally sure of each image",
    "dkpp": "DKPP: the teacher, its other classes permuted",
    "cwtm": "CWTM: labels, weighted by the teacher's confidence",
    "ban_l": "BAN+L: the teacher and labels",
    "hinton_kd": "Hinton's: the teacher at T = 4, and labels",
}


def interval_text(values: list[float], form: str) -> str:
    """``mean (low to high)`` over seeds."""
    interval = t_interval(values)
    ends = "-" if interval is None else " to ".join(format(end, form) for end in interval)
    return f"{statistics.mean(values):{form}} ({ends})"


Metrics = dict[int, dict[str, Any]]  # by seed


def study_arms(name: str) -> tuple[Metrics, dict[str, Metrics]]:
    """The metrics of the teachers, and of the students of each arm."""
    arms = {arm: load(f"{name}-{arm}") for arm in ARMS if any(MEASUREMENTS.glob(f"{name}-{arm}-seed*.json"))}
    teachers = {run["seed"]: run["generations"][0]["metrics"] for run in arms["ban"]}
    return teachers, {
        arm: {run["seed"]: run["generations"][1]["metrics"] for run in runs} for arm, runs in arms.items()
    }


def errors_of(metrics: Metrics) -> dict[int, float]:
    """Seed -> test error in percent."""
    return {seed: 100 * (1 - m["test_accuracy"]) for seed, m in metrics.items()}


def less_control(who: str, metrics: Metrics, control: Metrics) -> list[float]:
    """Points of test error above the control of the same seed."""
    if not metrics.keys() <= control.keys():
        raise UserError(f"{who} has the seeds {sorted(metrics)}, the control {sorted(control)}")
    labels = errors_of(control)
    return [error - labels[seed] for seed, error in errors_of(metrics).items()]


def study_table(name: str) -> str:
    """Arms of a study: each student beside the label-only one of its seed."""
    teachers, arms = study_arms(name)

    def row(who: str, of: Metrics) -> list[str | float | None]:
        alone = of is teachers or of is arms["labels"]
        agreement = None if of is teachers else f"{statistics.mean(m['agreement'] for m in of.values()):.3f}"
        return [
            who,
            interval_text(list(errors_of(of).values()), ".2f"),
            None if alone else interval_text(less_control(f"{name}: {who}", of, arms["labels"]), "+.2f"),
            f"{statistics.mean(m['test_nll'] for m in of.values()):.3f}",
            f"{statistics.mean(m['test_ece'] for m in of.values()):.3f}",
            agreement,
            len(of),
        ]

    rows = [row("teacher, generation 0", teachers), *(row(ARMS[arm], of) for arm, of in arms.items())]
    headers = ["who", "test error % (95% over seeds)", LESS_CONTROL, "test NLL", "test ECE", "agreement", "seeds"]
    return format_table(headers, rows)


def stages_table(name: str, first_later: int) -> str:
    """Arms that got more seeds after a look: the seeds before it, and those from ``first_later`` on, each alone."""
    _, arms = study_arms(name)
    rows: list[list[str | float | None]] = []
    for arm, of in arms.items():
        if arm == "labels" or max(of) < first_later:
            continue
        for stage, seeds in (
            ("exploratory", [seed for seed in of if seed < first_later]),
            ("decided on before they ran", [seed for seed in of if seed >= first_later]),
        ):
            points = less_control(ARMS[arm], {seed: of[seed] for seed in seeds}, arms["labels"])
            rows.append([ARMS[arm], stage, f"{seeds[0]} to {seeds[-1]}", interval_text(points, "+.2f")])
    return format_table(["who", "stage", "which seeds", LESS_CONTROL], rows)


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
    unit = describe_metric(plan).unit
    headers = ["contrast", f"gain, {unit} (95% over seeds)", "p (Holm)", "seeds", "verdict"]
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
        reached = columns.get("reached_95")
        rows.append(
            [
                arm,
                interval_text(columns["steps_to_95"], ".0f") if reached else None,
                f"{sum(reached):.0f} of {len(reached)}" if reached else None,
                interval_text(columns["score"], ".1f"),
                interval_text(columns["teacher_normalized"], ".3f"),
                f"{statistics.mean(columns['agreement']):.3f}",
                len(of_arm),
            ]
        )
    headers = ["arm", "steps to 0.95 (95% over seeds)", "got there", "score at the end (95% over seeds)"]
    return format_table([*headers, "of teacher (95% over seeds)", "agreement", "seeds"], rows)


def read_control(study: str) -> dict[tuple[str, str, str], list[dict[str, str]]]:
    """The runs of ``study`` in control.csv: (environment, teacher, arm) -> one row per seed."""
    groups: dict[tuple[str, str, str], list[dict[str, str]]] = {}
    with open(MEASUREMENTS / "control.csv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["study"] == study:
                groups.setdefault((row["env"], row["teacher"], row["arm"]), []).append(row)
    return groups


def seeds_text(runs: list[dict[str, str]], field: str, form: str) -> str:
    """Mean over the seeds with its interval."""
    return interval_text([float(run[field]) for run in runs], form)


def control_table(short: bool = False) -> str:
    """Twins of agents of control tasks."""
    rows: list[list[str | float | None]] = []
    for (env, teacher, _), runs in read_control("twins").items():
        random, taught = (
            f"{statistics.mean(float(run[of]) for run in runs):.1f}" for of in ("random", "teacher_score")
        )
        students = [seeds_text(runs, "student_score", ".1f"), seeds_text(runs, "of_teacher", ".3f")]
        agreement = seeds_text(runs, "agreement", ".3f")
        full = [env, teacher, random, taught, *students, agreement, len(runs)]
        rows.append([f"{env}, {teacher}", *students] if short else full)
    over = "(95% over seeds)"
    found = [f"student {over}", f"of teacher {over}"]
    if short:
        return format_table(["environment, teacher", *found], rows)
    headers = ["environment", "teacher", "random", "its score", *found, f"agreement {over}", "seeds"]
    return format_table(headers, rows)


def control_arms_table(study: str, arm: str) -> str:
    """Students that learned in different ways from equal samples."""
    rows: list[list[str | float | None]] = [
        [env, teacher, name, *(seeds_text(runs, field, ".3f") for field in ("of_teacher", "agreement")), len(runs)]
        for (env, teacher, name), runs in read_control(study).items()
    ]
    over = "(95% over seeds)"
    return format_table(["environment", "teacher", arm, f"of teacher {over}", f"agreement {over}", "seeds"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "pong": lambda: pong_table("pong"),
    "pong_long": lambda: pong_table("pong_long"),
    "pong_acting": acting_table,
    "acktr": acktr_table,
    "acktr_short": lambda: acktr_table(short=True),
    "acktr_curves": acktr_curves_table,
    "pong_seeds": seed_table,
    "resnet8_short": lambda: study_table("resnet8_short"),
    "resnet8_short_stages": lambda: stages_table("resnet8_short", first_later=6),
    "small_data": lambda: contrasts_table("small_data"),
    "small_data_arms": lambda: arms_table("small_data"),
    "control_study": lambda: contrasts_table("control_cartpole", "control_acrobot"),
    "control_cartpole_arms": lambda: agents_table("control_cartpole"),
    "control_acrobot_arms": lambda: agents_table("control_acrobot"),
    "control": control_table,
    "control_short": lambda: control_table(short=True),
    "control_acts": lambda: control_arms_table("acts", "beta"),
    "control_temperature": lambda: control_arms_table("temperature", "temperature"),
}


@run_script
def main(argv: list[str] | None = None) -> None:
    config = parse(
        RenderConfig, argv, program="python scripts/render_results.py", description=__doc__, default_name=None
    ).config
    documents = (ROOT / "README.md", ROOT / "RESULTS.md", *sorted(MEASUREMENTS.glob("*.md")))
    changed = fill_documents(documents, TABLES, write=not config.check)
    if config.check and changed:
        name = changed[0].relative_to(ROOT)
        print(f"error: the tables of {name} are not what the measurements give; run {Path(__file__).name}")
        sys.exit(1)


if __name__ == "__main__":
    main()
