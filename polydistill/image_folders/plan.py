"""What a lineage will take, for ``--dry_run``: time from counted operations and a measured speed, memory, disk; and the
checks that a run makes before its first step."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from polydistill.config.plain_yaml import dump_yaml, to_mapping
from polydistill.device import prepare
from polydistill.errors import UserError
from polydistill.image_folders.config import ImagesConfig
from polydistill.image_folders.data import Folders, read_data, require_batch
from polydistill.image_folders.domain import require_same_pictures
from polydistill.image_folders.networks import make_network
from polydistill.image_folders.teacher import open_teacher
from polydistill.learning.own_objective import try_own
from polydistill.losses.objectives import OwnObjective
from polydistill.provenance import weights_sha256
from polydistill.runs.checkpoint import Checkpoints
from polydistill.runs.correctness import OF_GENERATION
from polydistill.runs.lock import require_unlocked
from polydistill.runs.space import lineage_bytes, require_room
from polydistill.runs.speeds import format_duration, recall, remember
from polydistill.vision.cost import BACKWARD, Cost, count_network
from polydistill.vision.plan import measure_rate

KIND = "images"
PRODUCTS = (
    "generation_*.safetensors",
    "generation_*.json",
    OF_GENERATION.format("*"),
)  # files that a run writes into its folder


@functools.cache
def count_cost(name: str, classes: int, side: int) -> Cost:
    """The cost of a network for one picture of ``side`` x ``side`` pixels, counted without computing anything.

    Raises:
        UserError: it cannot be built, or does not take such a picture.
    """
    with torch.random.fork_rng(devices=[]):
        network = make_network(name, classes, side)
    try:
        return count_network(network.to("meta"), side)
    except (RuntimeError, ValueError, AssertionError) as error:
        told = str(error).strip().partition("\n")[0]
        raise UserError(f"{name} does not take pictures of {side} x {side} pixels: {told}") from error


def costs(config: ImagesConfig, classes: int) -> tuple[Cost, Cost]:
    """Of the teacher and of a student."""
    teacher, student = (count_cost(*_swap(config.network_of(generation), classes)) for generation in (0, 1))
    return teacher, student


def check_objective(config: ImagesConfig, classes: int) -> None:
    """Try a loss of one's own.

    Raises:
        UserError: it fails.
    """
    objective = config.student.find_objective()
    if isinstance(objective, OwnObjective):
        try:
            try_own(objective, classes, config.student.options())
        except ValueError as error:
            raise UserError(f"student: {error}") from error


def check_configs(configs: Mapping[str, ImagesConfig]) -> dict[str, dict[str, object]]:
    """Refuse runs of the same pictures, as those of a study, that could not begin. Writes nothing.

    Args:
        configs: whose they are, like "arm ban" -> resolved.

    Returns:
        what summary.json would say of the pictures that all of them have alike, whatever their seeds hold out.

    Raises:
        UserError: as the first of them that could not begin would, with whose it is.
    """
    folders = read_data(next(iter(configs.values())))
    classes = folders.train.classes
    for whose, config in configs.items():
        try:
            require_batch(config, len(folders.train) + len(folders.validation))
            check_objective(config, len(classes))
            costs(config, len(classes))
        except UserError as error:
            raise UserError(f"{whose}: {error}") from error
    for config in {config.teacher: config for config in configs.values() if config.teacher.given}.values():
        open_teacher(config, classes)
    return {"test": folders.test.describe(), "whole": folders.whole.describe()}


def disk_bytes(config: ImagesConfig, folders: Folders) -> int:
    """Bytes that the run folder takes at most: weights of each generation, checkpoints, curves."""
    teacher, student = costs(config, len(folders.train.classes))
    generations, training = config.lineage.generations, config.training
    parameters = [teacher.parameters, *[student.parameters] * generations]
    # weights and what the optimiser keeps, their mean, and the best weights so far
    numbers = (3 if training.optimizer == "adamw" else 2) + (training.ema is not None)
    numbers += config.evaluation.selection == "best_val"
    per_epoch = len(folders.train) // (training.batch_size * training.log_every_steps) + 3
    return lineage_bytes(parameters, numbers, len(parameters) * training.epochs * per_epoch)


def check_run(config: ImagesConfig, out: Path, moved: Sequence[str]) -> Folders:
    """The pictures, once all is found that the run would refuse before its first step. Writes nothing.

    Args:
        config: resolved.
        out: the run folder, not of a finished run.
        moved: see :func:`require_same_start`.

    Raises:
        UserError: as the run would.
    """
    require_unlocked(out)
    folders = read_data(config)
    check_objective(config, len(folders.train.classes))
    require_room(out, disk_bytes(config, folders), quiet=True)
    if not require_same_start(config, folders, out, moved) and config.teacher.given:
        open_teacher(config, folders.train.classes)
    return folders


def require_same_start(config: ImagesConfig, folders: Folders, out: Path, moved: Sequence[str]) -> bool:
    """Check that pictures and teacher are those that the run in ``out`` began with; write nothing.

    Args:
        config: resolved.
        folders: of the run.
        out: its folder.
        moved: keys of places that differ from those that the run began with.

    Returns:
        whether there is a run that has finished generation 0, of which it has its own copy.

    Raises:
        UserError: they differ, or no checkpoint is good.
    """
    saved = Checkpoints(out / "checkpoints", kind=KIND).latest(tidy=False)
    if saved is None:
        return False
    state = saved["state"]
    require_same_pictures(config, folders.describe(), state["data"])
    files = [key for key in moved if key.startswith("teacher.")]
    if state["generations"] and files:
        found = open_teacher(config, folders.train.classes)  # its classes decide which of its scores are taken
        if weights_sha256(found.state_dict()) != state["generations"][0]["sha256"]:
            named = " and ".join(f"{key} {getattr(config.teacher, key.removeprefix('teacher.'))}" for key in files)
            raise UserError(
                f"with {named} the teacher has other weights than the one that this run began with; give --out "
                "another folder"
            )
    return bool(state["generations"])


def format_plan(config: ImagesConfig, folders: Folders, out: Path, *, measure: bool = False) -> str:
    """The config, then what it costs. Writes nothing.

    Args:
        config: resolved.
        folders: its pictures.
        out: the run folder, for the text.
        measure: use the speed of this machine, measured now; else the remembered one.
    """
    teacher, student = costs(config, len(folders.train.classes))
    generations, n_images, training = config.lineage.generations, len(folders.train), config.training
    steps = n_images // training.batch_size * training.epochs
    number = 4 if config.precision == "float32" else 2
    memory = max(_memory(config, number, cost) for cost in (teacher, student)) + 4 * teacher.parameters
    lines = [
        dump_yaml(to_mapping(config)),
        f"would write {out}: {generations + 1} generations of {n_images:,} pictures of {config.side} x {config.side} "
        f"pixels in {len(folders.train.classes):,} classes, {steps:,} steps each; {len(folders.test):,} test pictures",
        f"generation 0: {_say(config, 0, teacher)}",
        *[f"students: {_say(config, 1, student)}"][:generations],
        f"time: {_say_time(config, n_images, teacher, student, measure=measure)}",
        f"memory: about {memory / 2**30:.2f} GiB on {config.device}, beside 1 GiB of libraries and in each of "
        f"{config.data.workers} workers",
        f"disk: up to {disk_bytes(config, folders) / 1e6:,.1f} MB, of weights, checkpoints and curves",
    ]
    return "\n".join(lines)


def remember_speed(config: ImagesConfig, summary: Mapping[str, Any]) -> None:
    """Store the speed of a finished run's last generation, for the plans of later ones."""
    last = len(summary["generations"]) - 1
    images = summary["throughput"].get(f"generation_{last}_train_samples_per_second")
    if images and last and summary["processes"] == 1:
        remember(_work(config), images)


def _swap(network: tuple[str, int], classes: int) -> tuple[str, int, int]:
    name, side = network
    return name, classes, side


def _memory(config: ImagesConfig, number: int, cost: Cost) -> float:
    """Of one that learns: what its layers give, its weights, gradients and what the optimiser keeps."""
    rows = -(-config.training.batch_size // config.training.parts)
    return rows * cost.outputs * number + (16 if config.training.ema is None else 20) * cost.parameters


def _say(config: ImagesConfig, generation: int, cost: Cost) -> str:
    name, side = config.network_of(generation)
    size = f", sees {side} x {side} pixels" if side != config.side else ""
    return (
        f"{name}, {cost.parameters:,} parameters, {cost.operations / 2e6:,.1f} million multiply-adds per picture{size}"
    )


def _say_time(config: ImagesConfig, images: int, teacher: Cost, student: Cost, *, measure: bool) -> str:
    """At the speed of an earlier run, decoding and all; or by operations alone, measured now."""
    generations, epochs = config.lineage.generations, config.training.epochs
    first = 0 if config.teacher.given else (1 + BACKWARD) * teacher.operations
    taught = (1 + BACKWARD) * student.operations + teacher.operations
    operations = images * epochs * (first + generations * taught)
    if measure:
        rate = measure_rate(prepare(config.device, config.threads), config.precision)
        return (
            f"about {format_duration(operations / rate)} at the {rate / 1e12:.2f} TFLOP/s of a convolution measured "
            "here, if pictures are decoded as fast; a network may be two or three times slower, or faster"
        )
    per_second = recall(_work(config))
    if per_second is None:
        return "not known before such a run has finished here; --dry_run_measure measures this machine"
    seconds = operations / (per_second * taught)
    return f"about {format_duration(seconds)} at the {per_second:,.0f} pictures/s of an earlier run here"


def _work(config: ImagesConfig) -> dict[str, Any]:
    """What the speed of a student depends on."""
    return {
        "kind": KIND,
        "networks": [*config.network_of(0), *config.network_of(1)],
        "side": config.side,
        "workers": config.data.workers,
        **{name: getattr(config, name) for name in ("device", "threads", "precision")},
        **{name: getattr(config.training, name) for name in ("batch_size", "compile", "channels_last")},
    }
