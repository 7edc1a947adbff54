"""Rebuild the tables of README.md and RESULTS.md from the raw measurements in scripts/measurements.

    python scripts/render_results.py            rewrites what stands between `<!-- table: NAME -->` and `<!-- end -->`
    python scripts/render_results.py --check true     changes nothing; exit code 1 if a table is not what it should be

A measurement is the summary.json of a run (``<config>-<arm>-seed<n>.json``) or what a benchmark writes.
"""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # this clone's packages, installed or not
from polydistill._environment import require_environment

require_environment("runs", "jsonargparse", "yaml")

import csv
import json
import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polydistill.config import parse
from polydistill.disk import atomic_write
from polydistill.errors import UserError, run_script
from polydistill.statistics import Interval, bootstrap_normalized_interval
from polydistill.tracking import format_interval, format_table

ROOT = Path(__file__).resolve().parent.parent
MEASUREMENTS = ROOT / "scripts" / "measurements"
BLOCK = re.compile(r"(<!-- table: ([a-z0-9_]+) -->\n).*?(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True)
class RenderConfig:
    """Whether to write.

    Args:
        check: compare only.
    """

    check: bool = False


def load(name: str) -> list[dict[str, Any]]:
    """The measurements ``NAME-seed<n>.json``, by seed."""
    files = sorted(MEASUREMENTS.glob(f"{name}-seed*.json"))
    if not files:
        raise UserError(f"no measurements {name}-seed<n>.json in {MEASUREMENTS.name}/")
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def pooled_interval(runs: list[dict[str, Any]], generation: int) -> Interval:
    """Bootstrap 95% interval of the mean score over the games of all seeds, drawn again within each seed."""
    generator = np.random.default_rng(0)
    games = [np.array(run["generations"][generation]["metrics"]["scores"]) for run in runs]
    means = np.mean([generator.choice(g, (10_000, len(g))).mean(axis=1) for g in games], axis=0)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(low), float(high))


def lineage_rows(name: str, title: str) -> list[list[str | float | None]]:
    """One row per generation: means over the seeds."""
    from agents.scores import reference

    runs = load(name)
    row = reference(runs[0]["config"]["game"])
    assert row is not None
    rows: list[list[str | float | None]] = []
    for k, generation in enumerate(runs[0]["generations"]):
        metrics = [run["generations"][k]["metrics"] for run in runs]
        score = statistics.mean(m["score_mean"] for m in metrics)
        of_teacher = None
        if k:
            students, teachers = (
                np.concatenate([run["generations"][i]["metrics"]["scores"] for run in runs]) for i in (k, 0)
            )
            ends = bootstrap_normalized_interval(students, teachers, row.random, generator=np.random.default_rng(0))
            ratio = (students.mean() - row.random) / (teachers.mean() - row.random)
            of_teacher = f"{ratio:.3f} ({format_interval(ends, 3)})"
        agreement = None if not k else f"{statistics.mean(m['agreement'] for m in metrics):.3f}"
        rows.append(
            [
                "teacher" if not k else title.format(k),
                f"{score:.2f} ({format_interval(pooled_interval(runs, k))})",
                f"{statistics.mean(m['human_normalized'] for m in metrics):.2f}",
                of_teacher,
                agreement,
                generation["parameters"],
                f"{statistics.mean(run['seconds'][k] for run in runs):.0f}",
                f"{len(runs)} x {metrics[0]['episodes']}",
            ]
        )
    return rows


HEADERS = [
    *("Pong, protocol rusu", "score (95% interval)", "of human", "of teacher (95% interval)", "agreement"),
    *("parameters", "seconds", "seeds x games"),
]


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
    return format_table(["run", "score (95% interval)", "of teacher (95% interval)", "agreement"], rows)


def bench_table() -> str:
    """Medians of bench_atari.py."""
    raw = json.loads((MEASUREMENTS / "bench_atari.json").read_text(encoding="utf-8"))
    rates = raw["rates_per_second"]
    names = {
        "environment": "emulator, steps/s",
        "labels": "teacher's labels, labels/s",
        "training": "student's updates, samples/s",
        "loop": "whole loop, samples/s",
        "by_hand": "the same update by hand in float32, samples/s",
        "dqn_loop": "Stable-Baselines3's DQN.learn, samples/s",
    }
    rows: list[list[str | float | None]] = []
    for name, text in names.items():
        beside = rates.get(f"loop_{name}")
        spread = f"{min(rates[name]):,.0f} to {max(rates[name]):,.0f}"
        in_loop = None if beside is None else statistics.median(beside)
        rows.append([text, statistics.median(rates[name]), spread, in_loop])
    return format_table(["rate", "median", "range", "in the running loop"], rows)


ARMS = {
    "labels": "student, labels alone (the control)",
    "ban": "BAN: the teacher alone",
    "uniform_confidence": "uniform confidence: the teacher, equally sure of each image",
    "dkpp": "DKPP: the teacher, its other classes permuted",
    "cwtm": "CWTM: labels, weighted by the teacher's confidence",
    "ban_l": "BAN+L: the teacher and labels",
    "hinton_kd": "Hinton's: the teacher at T = 4, and labels",
}


def t_interval(values: list[float]) -> Interval | None:
    """Student's 95% interval of the mean over seeds; None for one seed, which tells nothing of the others."""
    from scipy import stats

    if len(values) < 2:
        return None
    spread = stats.sem(values)
    low, high = stats.t.interval(0.95, len(values) - 1, statistics.mean(values), spread) if spread else (values[0],) * 2
    return Interval(float(low), float(high))


def interval_text(values: list[float], form: str) -> str:
    """``mean (low to high)`` over seeds."""
    interval = t_interval(values)
    ends = "-" if interval is None else " to ".join(format(end, form) for end in interval)
    return f"{statistics.mean(values):{form}} ({ends})"


def study_table(name: str) -> str:
    """Arms of a study: each student beside the label-only one of its seed."""
    arms = {arm: load(f"{name}-{arm}") for arm in ARMS if any(MEASUREMENTS.glob(f"{name}-{arm}-seed*.json"))}
    teachers = {run["seed"]: run["generations"][0]["metrics"] for run in arms["ban"]}
    metrics = {arm: {run["seed"]: run["generations"][1]["metrics"] for run in runs} for arm, runs in arms.items()}

    def row(who: str, of: dict[int, dict[str, Any]]) -> list[str | float | None]:
        errors = {seed: 100 * (1 - m["test_accuracy"]) for seed, m in of.items()}
        control = {seed: 100 * (1 - m["test_accuracy"]) for seed, m in metrics["labels"].items()}
        if not errors.keys() <= control.keys():
            raise UserError(f"{name}: {who} has the seeds {sorted(errors)}, the control {sorted(control)}")
        differences = [error - control[seed] for seed, error in errors.items()]
        agreement = None if of is teachers else f"{statistics.mean(m['agreement'] for m in of.values()):.3f}"
        return [
            who,
            interval_text(list(errors.values()), ".2f"),
            interval_text(differences, "+.2f") if of is not teachers and of is not metrics["labels"] else None,
            f"{statistics.mean(m['test_nll'] for m in of.values()):.3f}",
            f"{statistics.mean(m['test_ece'] for m in of.values()):.3f}",
            agreement,
            len(of),
        ]

    rows = [row("teacher, generation 0", teachers), *(row(ARMS[arm], of) for arm, of in metrics.items())]
    headers = ["who", "test error %", "less the control, points", "test NLL", "test ECE", "agreement", "seeds"]
    return format_table(headers, rows)


def bench_cifar_table() -> str:
    """Medians of bench_cifar.py, and how many times as fast the trainer is."""
    raw = json.loads((MEASUREMENTS / "bench_cifar.json").read_text(encoding="utf-8"))
    names = {
        "trainer": "the trainer, loader included",
        "bare": "the bare step in its precision, one batch in memory",
        "float32": "plain float32, one batch in memory",
        "timm": "timm's LogitDistillationTask, one batch in memory",
        "torchdistill": "torchdistill's box, its loader included",
    }
    rows: list[list[str | float | None]] = []
    for rates in raw["images_per_second"].values():
        for contender, values in rates.items():
            ratio = statistics.median(a / b for a, b in zip(rates["trainer"], values, strict=True))
            spread = f"{min(values):,.0f} to {max(values):,.0f}"
            rows.append([names[contender], f"{statistics.median(values):,.0f}", spread, f"{ratio:.2f}"])
    return format_table(["images/s", "median", "range", "trainer / this"], rows)


CONTENDERS = ("ours", "one pass", "ours compiled", "formula", "compiled", "liger")


def losses_table(name: str) -> str:
    """Medians of bench_losses.py in microseconds, with the range of the middle two thirds of the samples."""
    path = MEASUREMENTS / name
    if not path.exists():
        raise UserError(f"no measurement {name} in {MEASUREMENTS.name}/")
    with open(path, encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    groups: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    for line in found:
        key = tuple(line[field] for field in ("objective", "shape", "type", "work"))
        groups.setdefault(key, {})[line["contender"]] = line
    present = {line["contender"] for line in found}
    contenders = [c for c in CONTENDERS if c in present]
    of_copy = [c for c in ("ours", "one pass") if c in present]
    peaks = [c for c in ("ours", "formula") if any(line["contender"] == c and line["peak_bytes"] for line in found)]
    rows: list[list[str | float | None]] = []
    for key, of in groups.items():
        ratio = of.get("ours", {}).get("of_formula")
        rows.append(
            [
                *key,
                *(spread_text(of[c]) if c in of else None for c in contenders),
                f"{float(ratio):.2f}" if ratio else None,
                f"{int(next(iter(of.values()))['bytes']) / 1e6:,.4g}",
                *(f"{float(of[c]['of_copy']):.1%}" if c in of else None for c in of_copy),
                *(f"{int(of[c]['peak_bytes']) / 1e6:,.4g}" if c in of and of[c]["peak_bytes"] else None for c in peaks),
            ]
        )
    headers = ["objective", "shape", "type", "work", *contenders, "ours / formula", "MB"]
    headers += [f"{c} of copy" for c in of_copy] + [f"{c} peak MB" for c in peaks]
    return format_table(headers, rows)


def spread_text(line: dict[str, str]) -> str:
    """``median (low-high)``."""
    median, low, high = (f"{x:,.0f}" if x >= 100 else f"{x:.1f}" for x in times_of(line))
    return f"{median} ({low}-{high})"


def times_of(line: dict[str, str]) -> tuple[float, float, float]:
    """Median and range in microseconds."""
    return float(line["median_us"]), float(line["low_us"]), float(line["high_us"])


TABLES: dict[str, Callable[[], str]] = {
    "pong": lambda: format_table(HEADERS, lineage_rows("pong", "its twin, distilled")),
    "pong_seeds": seed_table,
    "bench_atari": bench_table,
    "resnet8_short": lambda: study_table("resnet8_short"),
    "bench_cifar": bench_cifar_table,
    "losses_cpu": lambda: losses_table("losses_cpu.csv"),
    "losses_cuda": lambda: losses_table("losses_cuda.csv"),
}


def render(text: str) -> str:
    """The document with every table made anew."""
    return BLOCK.sub(lambda block: f"{block[1]}\n{TABLES[block[2]]()}\n\n{block[3]}", text)


@run_script
def main(argv: list[str] | None = None) -> None:
    config = parse(RenderConfig, argv, program="render_results.py", description=__doc__, default_name=None).config
    for name in ("README.md", "RESULTS.md"):
        path = ROOT / name
        old = path.read_text(encoding="utf-8")
        new = render(old)
        if config.check and new != old:
            print(f"error: the tables of {name} are not what the measurements give; run {Path(__file__).name}")
            sys.exit(1)
        if new != old:
            atomic_write(path, new.encode())


if __name__ == "__main__":
    main()
