"""What a lineage will take, for ``--dry_run``: time from counted operations and a measured rate, memory, disk."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import nn

from polydistill.device import prepare
from polydistill.plain_yaml import dump_yaml, to_mapping
from polydistill.vision.archives import RELEASES
from polydistill.vision.config import CifarConfig
from polydistill.vision.cost import BACKWARD, count_cost

REPORT_BYTES = 1_000  # of metrics, timing and events
SMALL_FILES_BYTES = 200_000  # config.yaml, summary.json, cards, and what a network has beside its parameters
MEASURED_SECONDS = 0.3


def measure_rate(device: torch.device, precision: str) -> float:
    """Operations per second of a small 3 x 3 convolution, which networks for small images mostly consist of."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    layer = nn.Conv2d(64, 64, 3, padding=1, bias=False).to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.zeros(64, 64, 16, 16, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    operations = 2 * 64 * 64 * 64 * 9 * 16 * 16

    def run(n: int) -> float:
        started = time.perf_counter()
        for _ in range(n):
            layer(images)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    with torch.no_grad():
        run(3)
        n = max(1, int(MEASURED_SECONDS / max(run(3) / 3, 1e-6)))
        return n * operations / run(n)


def disk_bytes(config: CifarConfig, images: int) -> int:
    """Bytes that the run folder takes at most: weights of each generation, checkpoints, curves.

    Args:
        config: resolved.
        images: to train on.
    """
    classes, generations = config.data.classes, config.lineage.generations
    teacher, student = (count_cost(name, classes) for name in (config.teacher.network, config.student_network))
    files = 4 * (teacher.parameters + generations * student.parameters)
    # weights and momentum, and the best weights so far; two stay while the third is written
    numbers = 3 if config.evaluation.selection == "best_val" else 2
    checkpoints = 3 * numbers * 4 * max(teacher.parameters, student.parameters)
    per_epoch = -(-images // (config.training.batch_size * config.training.log_every_steps)) + 2
    curves = (generations + 1) * config.training.epochs * per_epoch * REPORT_BYTES
    return files + checkpoints + curves + SMALL_FILES_BYTES


def format_plan(config: CifarConfig, out: Path) -> str:
    """The config, then what it costs on this machine. Takes a second; reads no data and writes nothing.

    Args:
        config: resolved.
        out: the run folder, for the text.
    """
    classes, generations = config.data.classes, config.lineage.generations
    teacher, student = (count_cost(name, classes) for name in (config.teacher.network, config.student_network))
    rate = measure_rate(prepare(config.device, config.threads), config.precision)
    release = RELEASES[config.data.name]
    images = config.data.expected_images
    passes = images * config.training.epochs
    first = 0 if config.teacher.path else passes * (1 + BACKWARD) * teacher.operations
    # a student's own pass and its teacher's: generation 0 teaches the first, students teach the others
    taught = teacher.operations + (generations - 1) * student.operations
    learning = passes * (generations * (1 + BACKWARD) * student.operations + taught)
    number = 2 if config.precision == "bfloat16" else 4
    memory = config.training.batch_size * max(teacher.outputs, student.outputs) * number + 16 * student.parameters
    steps = -(-images // config.training.batch_size) * config.training.epochs
    lines = [
        dump_yaml(to_mapping(config)),
        f"would write {out}: {generations + 1} generations of {images:,} images and {steps:,} steps each",
        f"generation 0: {config.teacher.network}, {teacher.parameters:,} parameters, "
        f"{teacher.operations / 2e6:,.1f} million multiply-adds per image",
        f"students: {config.student_network}, {student.parameters:,} parameters, "
        f"{student.operations / 2e6:,.1f} million multiply-adds per image",
        f"time: about {_duration((first + learning) / rate)} at the {rate / 1e12:.2f} TFLOP/s of a convolution here; "
        "a network may be two or three times slower, or faster",
        f"memory: about {memory / 2**30:.2f} GiB on {config.device}, beside 0.2 GiB of data and 1 GiB of libraries",
        f"disk: up to {disk_bytes(config, images) / 1e6:,.1f} MB, of weights, checkpoints and curves"
        + ("" if config.data.root or config.data.made_up else f"; {release.archive} (170 MB) is downloaded into data/"),
    ]
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
