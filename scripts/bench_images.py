"""Measure the training part of distill_images.py beside a loop of timm's own parts, on the same folder.

    python scripts/bench_images.py --run.data.root pictures --rounds 5 --json scripts/measurements/bench_images.json

Both have the same networks, transforms, batch size, optimiser and number of workers, and learn by the teacher's scores
alone: "ours" is the training that distill_images.py runs, with its loader, losses, curves and checks; "timm" is
timm.data.create_loader with timm.task.LogitDistillationTask, and "timm bfloat16" the same in autocast where ours is in
bfloat16. They run in turn, an epoch each, in several rounds of one process; the first round is a warm-up, and medians
of the others are reported. Workers that load pictures begin anew in each epoch of ours, so that runs repeat
themselves; timm's stay.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # this clone's packages, installed or not
from polydistill._environment import require_environment

require_environment("timm")

import contextlib
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from polydistill.config.parsing import parse
from polydistill.config.plain_yaml import to_mapping
from polydistill.disk import atomic_write
from polydistill.errors import require_at_least, run_script
from polydistill.image_folders.config import ImagesConfig
from polydistill.image_folders.data import Folders, read_data
from polydistill.image_folders.domain import ImagesDomain
from polydistill.image_folders.library import load_timm
from polydistill.image_folders.networks import PictureNetwork, expectations
from polydistill.image_folders.training import make_optimizer
from polydistill.modules.seeding import seeded
from polydistill.provenance import git_state, hardware, versions
from polydistill.runs import format_table


@dataclass(frozen=True)
class BenchConfig:
    """What is measured, and how often.

    Args:
        run: as for distill_images.py.
        rounds: that count.
        json: file for the raw measurements; empty: none.
    """

    run: ImagesConfig
    rounds: int = 5
    json: str = ""

    def __post_init__(self) -> None:
        require_at_least(1, self, "rounds")


def ours(config: ImagesConfig, folders: Folders) -> Callable[[], int]:
    """An epoch of the training of a student; the pictures that it saw."""
    domain = ImagesDomain(config, folders)
    teacher, student = domain.workshop.take(0), domain.workshop.take(1)
    loader = domain.loaders.train

    def epoch() -> int:
        with seeded(0, loader) as feed:
            training = domain.workshop.make_training(student, domain.workshop.make_lesson(teacher, 1), feed)
            for report in training.run():
                if report.epoch_ends:
                    return training.samples
        return training.samples

    return epoch


def timms(config: ImagesConfig, folders: Folders, *, autocast: bool) -> Callable[[], int]:
    """The same of timm's loader and task."""
    timm = load_timm()
    from timm.task import LogitDistillationTask

    device = torch.device(config.device)
    domain = ImagesDomain(config, folders)
    networks = []
    for generation in (1, 0):
        member = domain.workshop.take(generation)
        assert isinstance(member, PictureNetwork)
        networks.append(member.network)
    student, teacher = networks
    task = LogitDistillationTask(
        student, teacher, task_loss_weight=0.0, distill_loss_weight=1.0, device=device, verbose=False
    )
    optimizer = make_optimizer(config.training, student.parameters())
    wants, augmentation = expectations(config.student_network), config.augmentation
    loader = timm.data.create_loader(
        timm.data.create_dataset("folder", str(folders.train.root)),
        input_size=(3, config.side, config.side),
        batch_size=config.training.batch_size,
        is_training=True,
        scale=augmentation.scale,
        ratio=augmentation.ratio,
        hflip=augmentation.hflip,
        vflip=augmentation.vflip,
        color_jitter=augmentation.color_jitter or None,
        auto_augment=augmentation.auto_augment or None,
        interpolation=augmentation.interpolation,
        mean=wants.mean,
        std=wants.std,
        num_workers=config.data.workers,
        persistent_workers=config.data.workers > 0,
        device=device,
        use_prefetcher=True,
    )
    around = torch.autocast(device.type, torch.bfloat16) if autocast else contextlib.nullcontext()
    layout = torch.channels_last if config.training.channels_last else torch.contiguous_format

    def epoch() -> int:
        seen = 0
        student.train()
        for pictures, labels in loader:
            with around:
                loss = task(pictures.contiguous(memory_format=layout), labels)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen += len(labels)
        return seen

    return epoch


@run_script
def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, and write the raw measurements."""
    config = parse(
        BenchConfig, argv, program="python scripts/bench_images.py", description=__doc__ or "", default_name=None
    ).config
    run = config.run.resolve()
    run = dataclasses.replace(run, training=dataclasses.replace(run.training, epochs=1))
    folders = read_data(run)
    contenders = {"ours": ours(run, folders), "timm": timms(run, folders, autocast=False)}
    if run.precision == "bfloat16":
        contenders["timm bfloat16"] = timms(run, folders, autocast=True)
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(config.rounds + 1):
        for name, epoch in contenders.items():
            started = time.perf_counter()
            seen = epoch()
            if run.device == "cuda":
                torch.cuda.synchronize()
            if number:
                rates[name].append(round(seen / (time.perf_counter() - started), 1))
    rows = []
    for name, found in rates.items():
        ratio = statistics.median(ours / its for ours, its in zip(rates["ours"], found, strict=True))
        rows.append([name, f"{statistics.median(found):,.1f}", f"{ratio:.2f}"])
    print(format_table(["who", "pictures/s", "ours / it"], rows))
    if config.json:
        known = {"versions": versions("timm", "torchvision", "pillow"), "hardware": hardware(), "git": git_state()}
        whole = {"config": to_mapping(config), "pictures_per_second": rates, **known}
        atomic_write(Path(config.json), (json.dumps(whole, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
