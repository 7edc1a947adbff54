"""Rebuild the tables of RESULTS.md, docs/speed.md, docs/scale.md and of pages beside the measurements: of benchmarks.

    python scripts/render_speed.py            rewrites what stands between `<!-- table: NAME -->` and `<!-- end -->`
    python scripts/render_speed.py --check    changes nothing; exit code 1 if a table is out of date

scripts/render_results.py and scripts/render_studies.py do the others.
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

from polydistill.errors import UserError
from polydistill.report.blocks import render
from polydistill.runs import format_table

ROOT = Path(__file__).resolve().parent.parent
MEASUREMENTS = ROOT / "scripts" / "measurements"


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


def bench_cifar_table(name: str, ours: str, short: str) -> str:
    """Medians of bench_cifar.py, and how many times as fast one contender is.

    Args:
        name: of the raw measurement.
        ours: that contender.
        short: its name above the column of the ratios.
    """
    raw = json.loads((MEASUREMENTS / name).read_text(encoding="utf-8"))
    names = {
        "trainer": "the trainer, loader included",
        "unaugmented": "the trainer without augmentation",
        "modules": "ModuleDomain, batches in memory",
        "bare": "the bare step in its precision, one batch in memory",
        "float32": "plain float32, one batch in memory",
        "timm": "timm's LogitDistillationTask, one batch in memory",
        "torchdistill": "torchdistill's box, its loader included",
    }
    rows: list[list[str | float | None]] = []
    for rates in raw["images_per_second"].values():
        for contender, values in rates.items():
            ratio = statistics.median(a / b for a, b in zip(rates[ours], values, strict=True))
            spread = f"{min(values):,.0f} to {max(values):,.0f}"
            rows.append([names[contender], f"{statistics.median(values):,.0f}", spread, f"{ratio:.2f}"])
    return format_table(["images/s", "median", "range", f"{short} / this"], rows)


def bench_images_table() -> str:
    """Medians of bench_images.py, and how many times as fast ours is."""
    rates = json.loads((MEASUREMENTS / "bench_images.json").read_text(encoding="utf-8"))["pictures_per_second"]
    names = {
        "ours": "distill_images.py's training, loader included",
        "timm": "timm's loader and LogitDistillationTask",
        "timm bfloat16": "the same in bfloat16",
    }
    rows: list[list[str | float | None]] = []
    for who, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(rates["ours"], values, strict=True))
        spread = f"{min(values):,.1f} to {max(values):,.1f}"
        rows.append([names[who], f"{statistics.median(values):,.1f}", spread, f"{ratio:.2f}"])
    return format_table(["pictures/s", "median", "range", "ours / this"], rows)


def bench_agent_table() -> str:
    """Medians of bench_agent.py, and how many times as fast the student is."""
    raw = json.loads((MEASUREMENTS / "bench_agent.json").read_text(encoding="utf-8"))
    games = raw["config"]["n_envs"]
    names = {
        "student": f"PolicyDistillation, {games} games",
        "dqn": "DQN.learn, one game",
        "dqn_games": f"DQN.learn, {games} games",
    }
    rows: list[list[str | float | None]] = []
    for width, rates in raw["samples_per_second"].items():
        for name, text in names.items():
            values = rates[name]
            ratio = statistics.median(a / b for a, b in zip(rates["student"], values, strict=True))
            spread = f"{min(values):,.0f} to {max(values):,.0f}"
            rows.append([f"[{width}, {width}]", text, f"{statistics.median(values):,.0f}", spread, f"{ratio:.2f}"])
    return format_table(["net_arch", "learner", "samples/s", "range", "student / this"], rows)


def online_table() -> str:
    """Medians of bench_online.py, and how many times as long a teacher takes with students."""
    seconds = json.loads((MEASUREMENTS / "bench_online.json").read_text(encoding="utf-8"))["seconds_per_step"]
    alone = next(iter(seconds.values()))
    rows: list[list[str | float | None]] = []
    for name, values in seconds.items():
        ratios = [ours / without for ours, without in zip(values, alone, strict=True)]
        ratio = None if values is alone else f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        rows.append([name, f"{1 / statistics.median(values):,.0f}", ratio])
    return format_table(["students", "steps of the teacher/s", "time / without (range)"], rows)


CONTENDERS = ("ours", "one pass", "ours compiled", "formula", "compiled", "liger")
Key = tuple[str, ...]  # objective, shape, type, work
KEY = ("objective", "shape", "type", "work")
ALL = "loss and gradient"
FEW_ROWS: dict[str, list[Key]] = {
    "losses_cpu": [
        *(("policy_kl", shape, "float32", ALL) for shape in ("256x18", "128x100", "8192x100", "4096x32000")),
        *(("hinton_kd", shape, "float32", ALL) for shape in ("128x100", "8192x100", "4096x32000")),
        ("jsd", "128x100", "float32", ALL),
    ],
    "losses_cuda": [
        ("policy_kl", "256x18", "float32", ALL),
        ("policy_kl", "256x18", "float32", "replayed"),
        ("policy_kl", "8192x100", "bfloat16", "replayed"),
        ("policy_kl", "4096x32000", "float32", ALL),
        ("policy_kl", "4096x32000", "bfloat16", ALL),
        ("hinton_kd", "128x100", "bfloat16", "replayed"),
        ("hinton_kd", "4096x32000", "bfloat16", ALL),
    ],
}


def read_losses(name: str) -> dict[Key, dict[str, dict[str, str]]]:
    """Of bench_losses.py: key -> contender -> line."""
    path = MEASUREMENTS / f"{name}.csv"
    if not path.exists():
        raise UserError(f"no measurement {path.name} in {MEASUREMENTS.name}/")
    groups: dict[Key, dict[str, dict[str, str]]] = {}
    with open(path, encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            groups.setdefault(tuple(line[field] for field in KEY), {})[line["contender"]] = line
    return groups


def losses_table(name: str) -> str:
    """Medians of bench_losses.py in microseconds, with the range of the middle two thirds of the samples."""
    groups = read_losses(name)
    lines = [line for of in groups.values() for line in of.values()]
    contenders = [c for c in CONTENDERS if any(c in of for of in groups.values())]
    of_copy = [c for c in ("ours", "one pass") if c in contenders]
    peaks = [c for c in ("ours", "formula") if any(line["contender"] == c and line["peak_bytes"] for line in lines)]
    rows: list[list[str | float | None]] = []
    for key, of in groups.items():
        rows.append(
            [
                *key,
                *(spread_text(of[c]) if c in of else None for c in contenders),
                ratio_text(of),
                f"{int(next(iter(of.values()))['bytes']) / 1e6:,.4g}",
                *(f"{float(of[c]['of_copy']):.1%}" if c in of else None for c in of_copy),
                *(f"{int(of[c]['peak_bytes']) / 1e6:,.4g}" if c in of and of[c]["peak_bytes"] else None for c in peaks),
            ]
        )
    headers = [*KEY, *contenders, "ours / formula", "MB"]
    headers += [f"{c} of copy" for c in of_copy] + [f"{c} peak MB" for c in peaks]
    return format_table(headers, rows)


def few_losses_table(name: str) -> str:
    """Of :func:`losses_table` the medians of the rows ``FEW_ROWS``."""
    groups = {key: of for key, of in read_losses(name).items() if key in FEW_ROWS[name]}
    contenders = [c for c in CONTENDERS if any(c in of for of in groups.values())]
    rows: list[list[str | float | None]] = []
    for key in FEW_ROWS[name]:
        of = groups[key]
        of_copy = f"{float(of['one pass']['of_copy']):.0%}"
        medians = [micro_text(float(of[c]["median_us"])) if c in of else None for c in contenders]
        rows.append([*key, *medians, ratio_text(of), of_copy])
    return format_table([*KEY, *contenders, "ours / formula", "one pass of copy"], rows)


def ratio_text(of: dict[str, dict[str, str]]) -> str | None:
    """Ours / formula, where both were measured."""
    ratio = of.get("ours", {}).get("of_formula")
    return f"{float(ratio):.2f}" if ratio else None


def micro_text(microseconds: float) -> str:
    """With as many digits as matter."""
    return f"{microseconds:,.0f}" if microseconds >= 100 else f"{microseconds:.1f}"


def spread_text(line: dict[str, str]) -> str:
    """``median (low-high)``."""
    median, low, high = (micro_text(float(line[name])) for name in ("median_us", "low_us", "high_us"))
    return f"{median} ({low}-{high})"


def executors_table() -> str:
    """What each place of execution costs a study beside its runs, of bench_executors.py."""
    rows: list[list[str | float | None]] = []
    for name in ("local", "ray"):
        raw = json.loads((MEASUREMENTS / f"bench_executors_{name}.json").read_text(encoding="utf-8"))
        memory = (f"{raw[f'memory_mib_{when}']:.0f}" for when in ("after_a_tenth", "at_the_end"))
        own = (f"{raw[f'own_ms{part}']:.0f}" for part in ("", "_of_the_last_tenth"))
        rows.append([name, raw["runs"], f"{raw['seconds_of_a_run']:.2f}", f"{raw['overhead_ms']:.0f}", *own, *memory])
    headers = ["executor", "runs", "s of a run", "overhead of a run, ms", "study's own work for a run, ms"]
    return format_table([*headers, "of the last tenth", "its memory after a tenth, MiB", "at the end"], rows)


def clusters_table() -> str:
    """What a cluster costs a study, and what students together give: control_ray.json, bench_executors.py,
    bench_together.py."""
    ray, local, control, together = (
        json.loads((MEASUREMENTS / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("bench_executors_ray", "bench_executors_local", "control_ray", "bench_together")
    )
    times = statistics.mean(control["seconds"]["ray"]) / statistics.mean(control["seconds"]["local"])
    both = together["students"]["4"]["milliseconds"]
    speeds = [alone / one for one, alone in zip(both["together"], both["one after the other"], strict=True)]
    rows: list[list[str | float | None]] = [
        [f"time of {control['runs']} runs of CartPole, two Ray nodes", f"{times:.2f} of local", "1.10"],
        [f"beside each of {ray['runs']:,} runs, Ray", f"{ray['overhead_ms']:.0f} ms", "50 ms"],
        [f"beside each of {local['runs']:,} runs, local", f"{local['overhead_ms']:.0f} ms", "50 ms"],
        ["speed of 4 ResNet-8 together, CPU", f"{statistics.median(speeds):.2f} of one by one", None],
    ]
    return format_table(["what", "measured", "limit"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "bench_atari": bench_table,
    "bench_cifar": lambda: bench_cifar_table("bench_cifar.json", "trainer", "trainer"),
    "bench_modules": lambda: bench_cifar_table("bench_modules.json", "modules", "ModuleDomain"),
    "bench_images": bench_images_table,
    "bench_agent": bench_agent_table,
    "bench_online": online_table,
    "bench_executors": executors_table,
    "clusters": clusters_table,
    "losses_cpu": lambda: losses_table("losses_cpu"),
    "losses_cuda": lambda: losses_table("losses_cuda"),
    "losses_cpu_few": lambda: few_losses_table("losses_cpu"),
    "losses_cuda_few": lambda: few_losses_table("losses_cuda"),
}


if __name__ == "__main__":
    render(TABLES, ["RESULTS.md", "docs/speed.md", "docs/scale.md"], ROOT, description=__doc__)
