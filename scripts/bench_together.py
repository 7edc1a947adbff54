"""Measure students that take their steps together, beside the same students one after the other.

    python scripts/bench_together.py --threads 2 --json scripts/measurements/bench_together.json
    python scripts/bench_together.py --network wrn-28-1 --students "[4, 16]" --device cuda

Each student learns by `ban` from a teacher of its own, of the same architecture, on made-up images; both ways take the
same batches with the same weights, in turn, in several rounds of one process. So the ratio is what
`--students_together` gives or costs, and the distance of the weights is what one pass for all changes in each.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # this clone's packages, installed or not
from polydistill._environment import require_environment

require_environment("vision")

import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from polydistill.config.parsing import parse
from polydistill.config.plain_yaml import to_mapping
from polydistill.device import prepare, resolve_device, resolve_precision, resolve_threads
from polydistill.disk import atomic_write
from polydistill.errors import UserError, require_at_least, run_script
from polydistill.learning.lesson import Lesson
from polydistill.learning.schedules import TrainingConfig
from polydistill.learning.together import Table
from polydistill.learning.training import Report
from polydistill.provenance import git_state, hardware, versions
from polydistill.runs import format_table
from polydistill.vision.images.augmentation import Normalizer
from polydistill.vision.images.data import ImageSet, Normalization
from polydistill.vision.joint import JointStep
from polydistill.vision.networks import build_network
from polydistill.vision.training import Trainer

CLASSES = 100
TOGETHER, ALONE = "together", "one after the other"


@dataclass(frozen=True)
class BenchConfig:
    """What is measured, and how long.

    Args:
        network: of students and teachers.
        students: how many, once for each number.
        batch_size: images per step and student.
        threads: processor threads of torch; 0: as many as pay.
        precision: auto, float32 or bfloat16.
        device: auto, cpu or cuda.
        rounds: times that both ways are measured, in turn.
        steps: per measurement, of each student.
        json: file for the raw measurements; empty: none.
    """

    network: str = "resnet-8"
    students: tuple[int, ...] = (4,)
    batch_size: int = 128
    threads: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    rounds: int = 7
    steps: int = 10
    json: str = ""

    def __post_init__(self) -> None:
        require_at_least(1, self, "batch_size", "rounds", "steps")
        if not self.students or min(self.students) < 2:
            raise ValueError(f"students must be at least 2 each, got {list(self.students)}")


def make_images(config: BenchConfig, device: torch.device) -> ImageSet:
    """Of noise, as many as all steps of a student need, so that no epoch ends."""
    n = config.batch_size * config.steps * (config.rounds + 1)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (n, 32, 32, 3), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels.to(device), torch.randint(CLASSES, (n,), generator=generator).to(device))


def make_trainer(config: BenchConfig, number: int, images: ImageSet) -> Trainer:
    """Of a student, with a report every ``steps`` steps."""
    device = images.labels.device

    def build(seed: int) -> Any:
        network: Any = build_network(config.network, CLASSES, seed=seed).to(device)
        return network.to(memory_format=torch.channels_last)

    lesson = Lesson("ban", build(1000 + number).eval(), seed=number, generation=1)
    schedule = TrainingConfig(epochs=1, batch_size=config.batch_size, log_every_steps=config.steps)
    normalizer = Normalizer.of(Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)), device)
    precision = resolve_precision(config.precision, device.type)
    return Trainer(build(number), lesson, images, normalizer, schedule, seed=number, generation=1, precision=precision)


def measure(config: BenchConfig, students: int, device: torch.device) -> dict[str, Any]:
    """Milliseconds of a step of one student, once per round, of each way; and how far the weights are apart."""
    images = make_images(config, device)
    alone = [make_trainer(config, number, images) for number in range(students)]
    alone_reports = [trainer.run() for trainer in alone]
    trainers: dict[int, Trainer] = {}
    times: dict[str, list[float]] = {TOGETHER: [], ALONE: []}
    distances: list[float] = []

    def take_time(way: str, act: Callable[[], object]) -> None:
        started = time.perf_counter()
        act()  # ends with reports, which wait for the device
        times[way].append(round(1e3 * (time.perf_counter() - started) / (config.steps * students), 4))

    def next_of_all() -> None:
        for reports in alone_reports:
            next(reports)

    def learn(number: int) -> Callable[[], int]:
        def learn_here() -> int:
            trainer = trainers[number] = make_trainer(config, number, images)
            reports: Iterator[Report] = trainer.run()
            for _ in range(config.rounds + 1):
                if number:
                    next(reports)
                    continue
                take_time(TOGETHER, lambda: next(reports))
                take_time(ALONE, next_of_all)
                distances.append(distance(trainer, alone[0]))
            return 0

        return learn_here

    table = Table(JointStep)
    codes = table.run([learn(number) for number in range(students)])
    if any(codes) or table.alone:
        raise UserError(f"{students} students cannot learn together: see above, or choose fewer")
    milliseconds = {way: values[1:] for way, values in times.items()}  # the first round warms up
    return {"milliseconds": milliseconds, "distance": distances}


def distance(one: Trainer, other: Trainer) -> float:
    """The largest difference of weights and running statistics, in parts of the largest number of each tensor."""

    def apart(own: Tensor, its: Tensor) -> float:
        return float((own - its).abs().max() / its.abs().max().clamp(min=1e-3))

    pairs = zip(one.student.state_dict().values(), other.student.state_dict().values(), strict=True)
    return max(apart(own.double(), its.double()) for own, its in pairs)


def format_result(config: BenchConfig, students: int, found: dict[str, Any]) -> str:
    """The medians as a table, and the median of the rounds' ratios."""
    rows = list[list[Any]]()
    together, alone = (found["milliseconds"][way] for way in (TOGETHER, ALONE))
    for way, values in found["milliseconds"].items():
        span = f"{min(values):.3g} to {max(values):.3g}"
        ratio = statistics.median(theirs / ours for theirs, ours in zip(alone, together, strict=True))
        rows.append([students, way, statistics.median(values), span, f"{ratio:.2f}" if way == TOGETHER else "1.00"])
    table = format_table(["students", "way", "ms/step and student", "range", "times as fast"], rows)
    first, last = found["distance"][0], found["distance"][-1]
    return f"{table}\nweights apart after {config.steps} steps: {first:.1e}, at the end: {last:.1e}"


@run_script
def main(argv: list[str] | None = None) -> None:
    config = parse(
        BenchConfig, argv, program="python scripts/bench_together.py", description=__doc__, default_name=None
    ).config
    kind, threads = resolve_device(config.device), resolve_threads(config.threads)
    device, precision = prepare(kind, threads), resolve_precision(config.precision, kind)
    raw: dict[str, Any] = {
        "config": {**to_mapping(config), "device": kind, "threads": threads, "precision": precision},
        "students": {},
        "hardware": hardware(),
        "versions": versions(),
        "git": git_state(),
    }
    print(f"{config.network} on {kind}, {threads} threads, {precision}, batches of {config.batch_size}\n")
    for students in config.students:
        raw["students"][str(students)] = found = measure(config, students, device)
        print(format_result(config, students, found), flush=True)
        if config.json:  # after each: an interrupted run keeps what it has measured
            atomic_write(Path(config.json), (json.dumps(raw, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
