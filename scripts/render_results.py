"""Rebuild the tables of README.md and RESULTS.md, and of the pages beside the raw measurements: what runs gave.

    python scripts/render_results.py            rewrites what stands between `<!-- table: NAME -->` and `<!-- end -->`
    python scripts/render_results.py --check    changes nothing; exit code 1 if a table is out of date

scripts/render_studies.py does those of studies, scripts/render_speed.py those of benchmarks. A measurement is the
summary.json of a run (``<config>-<arm>-seed<n>.json``), or a table of runs.
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
from pathlib import Path
from typing import Any

import numpy as np

from polydistill.errors import UserError
from polydistill.report.blocks import render
from polydistill.runs import format_interval, format_table
from polydistill.statistics import bootstrap_normalized_interval, pooled_interval, t_interval
from polydistill.study.table import format_mean_interval

ROOT = Path(__file__).resolve().parent.parent
MEASUREMENTS = ROOT / "scripts" / "measurements"


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


def acktr_table() -> str:
    """Twins of actor-critics: each one run, so that its intervals are those of its games alone."""
    rows: list[list[str | float | None]] = []
    for game, run in acktr_runs().items():
        teacher, student = (generation["metrics"] for generation in run["generations"])
        scores = [f"{m['score_mean']:,.1f} ({format_interval(m['score_ci95'])})" for m in (teacher, student)]
        ratio = f"{student['teacher_normalized']:.3f} ({format_interval(student['teacher_normalized_ci95'], 3)})"
        minutes = f"{run['wall_seconds'] / 60:.0f}"
        steps = f"{run['config']['play']['steps']:,}"
        rows.append([game, *scores, ratio, f"{student['agreement']:.3f}", student["episodes"], steps, minutes])
    over = "(95% over games)"
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


def four_games_table() -> str:
    """One student of four games: a single run, beside the twins that learned one game each."""
    (run,) = load("four_games")
    teachers, student = run["generations"][0]["metrics"]["tasks"], run["generations"][-1]["metrics"]
    alone = {game: single["generations"][-1]["metrics"] for game, single in acktr_runs().items()}

    def of_teacher(metrics: dict[str, Any]) -> str:
        return f"{metrics['teacher_normalized']:.3f} ({format_interval(metrics['teacher_normalized_ci95'], 3)})"

    rows: list[list[str | float | None]] = []
    for game, teacher in teachers.items():
        own = student["tasks"][game]
        scores = [f"{metrics['score_mean']:,.1f}" for metrics in (teacher, own)]
        percent = f"{own['percent_of_teacher']:.1f}"
        rows.append([game, *scores, of_teacher(own), percent, of_teacher(alone[game]), own["episodes"]])
    means = [student[f"{name}_geometric_mean"] for name in ("teacher_normalized", "percent_of_teacher")]
    apart = statistics.geometric_mean(metrics["teacher_normalized"] for metrics in alone.values())
    rows.append(["geometric mean", None, None, f"{means[0]:.3f}", f"{means[1]:.1f}", f"{apart:.3f}", None])
    over = "(95% over games)"
    headers = ["game", "teacher", "student", f"of teacher {over}", "% of teacher", f"alone, of teacher {over}", "games"]
    return format_table(headers, rows)


def curves_table(name: str) -> str:
    """Mean scores of ``name``.csv (step, score, and before them a game or whose) over time, a column for each."""
    curves: dict[int, dict[str, str]] = {}
    with open(MEASUREMENTS / f"{name}.csv", encoding="utf-8", newline="") as file:
        for who, at, score in list(csv.reader(file))[1:]:
            step = round(int(at), -4)  # of a few rounds later, whole steps of all games
            curves.setdefault(step, {})[who] = f"{float(score):,.1f}"
    columns = list(dict.fromkeys(who for of in curves.values() for who in of))
    return format_table(
        ["steps, about", *columns], [[f"{step:,}", *map(of.get, columns)] for step, of in sorted(curves.items())]
    )


def online_table() -> str:
    """A teacher, and the students that learned while it did: one run."""
    card = json.loads((MEASUREMENTS / "online_pong.json").read_text(encoding="utf-8"))

    def row(who: str, of: dict[str, Any]) -> list[str | float | None]:
        played, parameters = of["evaluation"], of["parameters"]
        share = of.get("teacher_normalized")
        return [
            who,
            f"{parameters:,} ({100 * parameters / card['parameters']:.1f}%)",
            f"{played['score_mean']:.2f} ({format_interval(played['score_ci95'])})",
            None if share is None else f"{share:.3f} ({format_interval(of['teacher_normalized_ci95'], 3)})",
            played["episodes"],
        ]

    rows = [row("teacher", card), *(row(student["student"], student) for student in card["students"])]
    over = "(95% over games)"
    return format_table(["who", "parameters", f"score {over}", f"of teacher {over}", "games"], rows)


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
            row += [format_mean_interval(values, form), None if values == first else format_mean_interval(less, "+.3f")]
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


LESS_CONTROL = "less the control (95% over seeds)"
ARMS = {
    "labels": "labels alone (the control)",
    "ban": "BAN: the teacher alone",
    "uniform_confidence": "uniform confidence: the teacher, equally sure of each image",
    "dkpp": "DKPP: the teacher, its other classes permuted",
    "cwtm": "CWTM: labels, weighted by the teacher's confidence",
    "ban_l": "BAN+L: the teacher and labels",
    "hinton_kd": "Hinton's: the teacher at T = 4, and labels",
}


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


def study_table(name: str, short: bool = False) -> str:
    """Arms of a study: each student beside the label-only one of its seed; ``short``: names and errors alone."""
    teachers, arms = study_arms(name)

    def row(who: str, of: Metrics) -> list[str | float | None]:
        alone = of is teachers or of is arms["labels"]
        agreement = None if of is teachers else f"{statistics.mean(m['agreement'] for m in of.values()):.3f}"
        others: list[str | float | None] = [
            f"{statistics.mean(m['test_nll'] for m in of.values()):.3f}",
            f"{statistics.mean(m['test_ece'] for m in of.values()):.3f}",
            agreement,
        ]
        return [
            who.partition(":")[0] if short else who,
            format_mean_interval(list(errors_of(of).values()), ".2f"),
            None if alone else format_mean_interval(less_control(f"{name}: {who}", of, arms["labels"]), "+.2f"),
            *([] if short else others),
            len(of),
        ]

    rows = [row("teacher, generation 0", teachers), *(row(ARMS[arm], of) for arm, of in arms.items())]
    others = [] if short else ["test NLL", "test ECE", "agreement"]
    return format_table(["who", "test error % (95% over seeds)", LESS_CONTROL, *others, "seeds"], rows)


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
            rows.append([ARMS[arm], stage, f"{seeds[0]} to {seeds[-1]}", format_mean_interval(points, "+.2f")])
    return format_table(["who", "stage", "which seeds", LESS_CONTROL], rows)


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
    return format_mean_interval([float(run[field]) for run in runs], form)


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
    "acktr_curves": lambda: curves_table("acktr_curves"),
    "four_games": four_games_table,
    "four_games_curves": lambda: curves_table("four_games_curves"),
    "pong_seeds": seed_table,
    "online_pong": online_table,
    "online_pong_curves": lambda: curves_table("online_pong_curves"),
    "resnet8_short": lambda: study_table("resnet8_short", short=True),
    "resnet8_short_arms": lambda: study_table("resnet8_short"),
    "resnet8_short_stages": lambda: stages_table("resnet8_short", first_later=6),
    "control": control_table,
    "control_short": lambda: control_table(short=True),
    "control_acts": lambda: control_arms_table("acts", "beta"),
    "control_temperature": lambda: control_arms_table("temperature", "temperature"),
}


if __name__ == "__main__":
    render(TABLES, ["README.md", "RESULTS.md"], ROOT, description=__doc__)
