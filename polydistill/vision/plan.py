"""What a lineage will take, for ``--dry_run``: time from counted operations and a measured speed, memory, disk; and the
checks that a run makes before its first step."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from polydistill.config.plain_yaml import dump_yaml, to_mapping
from polydistill.device import prepare
from polydistill.runs.checkpoint import Checkpoints
from polydistill.runs.correctness import OF_GENERATION
from polydistill.runs.lock import require_unlocked
from polydistill.runs.space import lineage_bytes, require_room
from polydistill.runs.speeds import format_duration, recall, remember
from polydistill.vision.config import CifarConfig
from polydistill.vision.cost import BACKWARD, Cost, count_cost
from polydistill.vision.images.archives import RELEASES
from polydistill.vision.images.data import Images, load_images, needs_download
from polydistill.vision.rehearsal import check
from polydistill.vision.sources import describe_images, require_same_images, require_same_teacher
from polydistill.vision.workshop import Workshop

PRODUCTS = (
    "generation_*.safetensors",
    "generation_*.json",
    OF_GENERATION.format("*"),
)  # files that a run writes into its folder
MEASURED_SECONDS = 0.3
# images/s of a network that learns by ban from its twin, in batches of 128, bfloat16, without compiling: docs/speed.md
ELSEWHERE = {
    "cpu": (725, "resnet-20", "two cores of an AMD EPYC (Zen 4)"),
    "cuda": (35_606, "wrn-28-1", "one NVIDIA H100"),  # replayed as CUDA graphs
}
DOUBT = "a network may be two or three times slower, or faster"


def measure_rate(device: torch.device, precision: str) -> float:
    """Operations per second of a small 3 x 3 convolution: networks for small images consist mostly of these."""
    dtype: torch.dtype = getattr(torch, precision)
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
    classes, generations = config.data.n_classes, config.lineage.generations
    names = [config.teacher.network, *[config.student_network] * generations]
    numbers = 3 if config.evaluation.selection == "best_val" else 2  # weights and momentum, and the best weights so far
    per_epoch = -(-images // (config.training.batch_size * config.training.log_every_steps)) + 2
    epochs = sum(config.training_of(generation).epochs for generation in range(generations + 1))
    return lineage_bytes([count_cost(name, classes).parameters for name in names], numbers, epochs * per_epoch)


def check_run(config: CifarConfig, out: Path, moved: Sequence[str]) -> None:
    """Refuse what the run would refuse before its first step. Reads the data where it is there; writes nothing.

    Args:
        config: resolved.
        out: the run folder, not of a finished run.
        moved: see :func:`require_same_start`.

    Raises:
        UserError, FloatingPointError, ValueError: as the run would.
    """
    require_unlocked(out)
    config.check_processes(1)
    images = None if needs_download(config.data) else load_images(config.data, config.device)
    n_images = config.data.expected_images if images is None else len(images.train)
    require_room(out, disk_bytes(config, n_images), quiet=True)
    if images is not None and not require_same_start(config, images, out, moved):
        check(Workshop(config, images))


def require_same_start(config: CifarConfig, images: Images, out: Path, moved: Sequence[str]) -> bool:
    """Check that images and teacher are those that the run in ``out`` began with; write nothing.

    Args:
        config: resolved.
        images: of the run.
        out: its folder.
        moved: keys of places that differ from those that the run began with. A teacher in the old place may be
            gone: the run has its own copy.

    Returns:
        whether there is a run that has begun.

    Raises:
        UserError: they differ, or no checkpoint is good.
    """
    saved = Checkpoints(out / "checkpoints", kind="cifar").latest(tidy=False)
    if saved is None:
        return False
    state = saved["state"]
    require_same_images(config, describe_images(images), state["data"])
    if state["generations"] and "teacher.path" in moved:
        require_same_teacher(config, state["generations"][0]["sha256"])
    return True


def format_plan(config: CifarConfig, out: Path, *, measure: bool = False) -> str:
    """The config, then what it costs. Writes nothing.

    Args:
        config: resolved.
        out: the run folder, for the text.
        measure: use the speed of this machine, measured now; else the remembered one, or another machine's.
    """
    classes, generations = config.data.n_classes, config.lineage.generations
    teacher, student = (count_cost(name, classes) for name in (config.teacher.network, config.student_network))
    release = RELEASES[config.data.name]
    images = config.data.expected_images
    epochs = [config.training_of(generation).epochs for generation in (0, 1)]
    rate, whose = _measured(config) if measure else _remembered(config)
    number = 2 if config.precision == "bfloat16" else 4
    memory = _memory_bytes(config, number, teacher, student)
    steps = [-(-images // config.training.batch_size) * of_each for of_each in epochs]
    lines = [
        dump_yaml(to_mapping(config)),
        f"would write {out}: {_say_steps(generations, images, *steps)}",
        f"generation 0: {config.teacher.network}, {teacher.parameters:,} parameters, "
        f"{teacher.operations / 2e6:,.1f} million multiply-adds per image",
        *[
            f"students: {config.student_network}, {student.parameters:,} parameters, "
            f"{student.operations / 2e6:,.1f} million multiply-adds per image"
        ][:generations],
        f"time: about {format_duration(_operations(config) / rate)} {whose}",
        f"memory: about {memory / 2**30:.2f} GiB on {config.device}, beside 0.2 GiB of data and 1 GiB of libraries",
        f"disk: up to {disk_bytes(config, images) / 1e6:,.1f} MB, of weights, checkpoints and curves"
        + (f"; {release.archive} (170 MB) is downloaded into data/" if needs_download(config.data) else ""),
    ]
    return "\n".join(lines)


def expected_seconds(config: CifarConfig) -> float:
    """How long a run takes, by the speed of an earlier one here or else elsewhere; it may be two or three times off.

    Args:
        config: resolved.
    """
    return _operations(config) / _remembered(config)[0]


def _operations(config: CifarConfig) -> float:
    """Operations of all lessons: forward and backward passes, and those of the teachers."""
    classes, generations, images = config.data.n_classes, config.lineage.generations, config.data.expected_images
    teacher, student = (
        count_cost(name, classes).operations for name in (config.teacher.network, config.student_network)
    )
    first = 0 if config.teacher.path else images * config.training_of(0).epochs * (1 + BACKWARD) * teacher
    # a student's own pass and its teacher's: generation 0 teaches the first, students teach the others
    taught = [student if generation else teacher for generation in range(generations)]
    return first + images * config.training_of(1).epochs * (generations * (1 + BACKWARD) * student + sum(taught))


def _memory_bytes(config: CifarConfig, number: int, teacher: Cost, student: Cost) -> int:
    """Of the generation that takes most: what its layers give, its weights, gradients, momentum; and its teacher.

    Args:
        config: resolved.
        number: bytes of one number between two layers.
        teacher: of generation 0.
        student: of the others.
    """

    def learning(network: Cost) -> int:
        return config.training.batch_size * network.outputs * number + 16 * network.parameters

    first = 0 if config.teacher.path else learning(teacher)
    if not config.lineage.generations:
        return first
    teachers = teacher.parameters if config.lineage.generations == 1 else max(teacher.parameters, student.parameters)
    return max(first, learning(student) + 4 * teachers)


def _say_steps(generations: int, images: int, steps: int, student_steps: int) -> str:
    if not generations:
        return f"generation 0 alone, of {images:,} images and {steps:,} steps"
    each = f"{steps:,} steps each" if steps == student_steps else f"{steps:,} steps, a student {student_steps:,}"
    return f"{generations + 1} generations of {images:,} images and {each}"


def _measured(config: CifarConfig) -> tuple[float, str]:
    """Operations per second of a convolution here, and words that say so."""
    rate = measure_rate(prepare(config.device, config.threads), config.precision)
    return rate, f"at the {rate / 1e12:.2f} TFLOP/s of a convolution measured here; {DOUBT}"


def _remembered(config: CifarConfig) -> tuple[float, str]:
    """Operations per second of the last such run here, or of one elsewhere, and words that say so."""
    per_image = (1 + BACKWARD) * count_cost(config.teacher.network, config.data.n_classes).operations
    images = recall(_work(config))
    if images is not None:
        return images * per_image, f"at the {images:,.0f} images/s of {config.teacher.network} in an earlier run here"
    images, network, machine = ELSEWHERE[config.device]
    rate = images * (1 + BACKWARD + 1) * count_cost(network, 100).operations
    return rate, f"on {machine} (measured there, with {network}); {DOUBT}; --dry_run_measure measures this machine"


def _work(config: CifarConfig) -> dict[str, Any]:
    """What the speed of generation 0 depends on."""
    return {
        "kind": "cifar",
        "network": config.teacher.network,
        "classes": config.data.n_classes,
        **{name: getattr(config, name) for name in ("device", "threads", "precision")},
        **{name: getattr(config.training, name) for name in ("batch_size", "compile")},
    }


def remember_speed(config: CifarConfig, summary: Mapping[str, Any]) -> None:
    """Store the speed of a finished run, for the plans of later ones."""
    images = summary["throughput"].get("generation_0_train_samples_per_second")
    if images and summary["processes"] == 1:
        remember(_work(config), images)
