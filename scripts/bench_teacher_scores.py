"""Measure a step of ModuleDomain whose teacher's scores are on disk: all of them, or those of the likeliest classes.

    python scripts/bench_teacher_scores.py --threads 1 --json scripts/measurements/bench_teacher_scores.json
    python scripts/bench_teacher_scores.py --classes "[50000]" --top_k 100 --features 512 --device cuda

A linear student of ``features`` inputs learns by hinton_kd from a linear teacher, which is asked in each step, or was
asked before. So the step is little more than the last layer of a network, its loss, and what is read from disk: the
time that `top_k` adds or saves. All three run in turn, in several rounds of one process; batches are in memory.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # this clone's packages, installed or not
from polydistill._environment import require_environment

require_environment("vision")

import json
import statistics
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from polydistill.config.parsing import parse
from polydistill.config.plain_yaml import to_mapping
from polydistill.device import prepare, resolve_device, resolve_threads
from polydistill.disk import atomic_write
from polydistill.errors import require_at_least, run_script
from polydistill.learning.training import Training
from polydistill.modules import ModuleDomain, TeacherCache
from polydistill.modules.feed import Feed
from polydistill.provenance import git_state, hardware, versions
from polydistill.runs import format_table

N_BATCHES = 10  # in an epoch
ASKED, ALL, LIKELIEST = "asked in each step", "all on disk", "the likeliest on disk"


@dataclass(frozen=True)
class BenchConfig:
    """What is measured, and how long.

    Args:
        classes: how many there are.
        top_k: of them are kept.
        dtype: of what is kept.
        features: inputs of student and teacher.
        batch_size: samples per step.
        threads: processor threads of torch; 0: as many as pay.
        device: auto, cpu or cuda.
        rounds: times that everything is measured, in turn.
        steps: per measurement.
        json: file for the raw measurements; empty: none.
    """

    classes: tuple[int, ...] = (1000, 10_000, 50_000)
    top_k: int = 50
    dtype: Literal["float32", "float16", "bfloat16"] = "float16"
    features: int = 128
    batch_size: int = 64
    threads: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    rounds: int = 7
    steps: int = 10
    json: str = ""

    def __post_init__(self) -> None:
        require_at_least(1, self, "top_k", "features", "batch_size", "rounds", "steps")
        if not self.classes or min(self.classes) < 2:
            raise ValueError(f"classes must be at least 2 each, got {list(self.classes)}")


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser of all."""
    return torch.optim.SGD(parameters, 1e-3)


def make_training(config: BenchConfig, classes: int, device: torch.device, cache: TeacherCache | None) -> Training:
    """Of a student, with a report every ``steps`` steps; its teacher is asked before, where there is a cache."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(N_BATCHES * config.batch_size, config.features, generator=generator)
    labels = torch.randint(classes, (len(inputs),), generator=generator)
    batches = list(zip(inputs.split(config.batch_size), labels.split(config.batch_size), strict=True))
    torch.manual_seed(0)
    student, teacher = (nn.Linear(config.features, classes).to(device) for _ in range(2))
    domain = ModuleDomain(
        build=lambda: student,
        batches=batches,
        test=batches[:1],
        epochs=1_000_000,
        optimizer=sgd,
        objective="hinton_kd",
        teacher=teacher,
        teacher_cache=cache,
        log_every_steps=config.steps,
    )
    lesson = domain.workshop.make_lesson(teacher.eval().requires_grad_(False), 1)
    known = domain.workshop.ask_teacher(lesson, lambda what: None)
    return domain.workshop.make_training(student, lesson, Feed(batches, seed=0), known)


def measure(config: BenchConfig, classes: int, device: torch.device, folder: Path) -> dict[str, Any]:
    """Milliseconds of a step, once per round, and bytes of a sample on disk, of each way."""
    caches = {
        ASKED: None,
        ALL: TeacherCache(folder / f"{classes} all", dtype=config.dtype),
        LIKELIEST: TeacherCache(folder / f"{classes} likeliest", top_k=config.top_k, dtype=config.dtype),
    }
    trainings = {way: make_training(config, classes, device, cache) for way, cache in caches.items()}
    reports = {way: training.run() for way, training in trainings.items()}
    times: dict[str, list[float]] = {way: [] for way in trainings}
    for number in range(config.rounds + 1):
        for way, training in trainings.items():
            before, started = training.steps, time.perf_counter()
            while training.steps - before < config.steps:  # an epoch's end makes a report too
                next(reports[way])  # which waits for the device
            if number:  # the first is a warm-up
                times[way].append(round(1e3 * (time.perf_counter() - started) / (training.steps - before), 4))
    samples = N_BATCHES * config.batch_size
    sizes = {
        way: sum(path.stat().st_size for path in Path(cache.folder).rglob("*.safetensors")) / samples
        for way, cache in caches.items()
        if cache is not None
    }
    return {"milliseconds": times, "bytes": sizes}


def format_result(classes: int, found: dict[str, Any]) -> str:
    """The medians as a table, and the medians of the rounds' ratios."""
    asked, rows = found["milliseconds"][ASKED], list[list[Any]]()
    for way, times in found["milliseconds"].items():
        ratio = statistics.median(theirs / ours for ours, theirs in zip(asked, times, strict=True))
        span = f"{min(times):.3g} to {max(times):.3g}"
        size = found["bytes"].get(way)
        rows.append([f"{classes:,}", way, statistics.median(times), span, f"{ratio:.2f}", size])
    return format_table(["classes", "teacher's scores", "ms/step", "range", "this / asked", "bytes/sample"], rows)


@run_script
def main(argv: list[str] | None = None) -> None:
    config = parse(
        BenchConfig, argv, program="python scripts/bench_teacher_scores.py", description=__doc__, default_name=None
    ).config
    kind, threads = resolve_device(config.device), resolve_threads(config.threads)
    device = prepare(kind, threads)
    raw: dict[str, Any] = {
        "config": {**to_mapping(config), "device": kind, "threads": threads},
        "classes": {},
        "hardware": hardware(),
        "versions": versions(),
        "git": git_state(),
    }
    print(
        f"{kind}, {threads} threads, batches of {config.batch_size}, the {config.top_k} likeliest in {config.dtype}\n"
    )
    for classes in config.classes:
        with tempfile.TemporaryDirectory() as folder:
            raw["classes"][str(classes)] = found = measure(config, classes, device, Path(folder))
        print(format_result(classes, found), flush=True)
        if config.json:  # after each: an interrupted run keeps what it has measured
            atomic_write(Path(config.json), (json.dumps(raw, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
