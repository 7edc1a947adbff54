"""Measure the speed of distillation on CIFAR-like images, loader included, beside the same work written by hand.

    python scripts/bench_cifar.py --threads 2 --compile --json scripts/measurements/bench_cifar.json
    python scripts/bench_cifar.py --device cuda --networks "[wrn-28-1, wrn-28-2, wrn-16-4, wrn-28-10]"

All contenders run in turn, in several rounds of one process, and medians are reported: such rates are noisy, and ratios
within a round are less so. The student is the twin of its teacher and learns by ban. "The trainer" is what
distill_cifar.py runs: drawing, cropping, flipping and normalising the images, both networks, the loss, the update, the
curves and the check that the loss is finite; "the trainer without augmentation" leaves out cropping and flipping.
"ModuleDomain" trains the same network on batches of such images, normalised, in memory. The others get one such batch:
"the bare step" with the trainer's precision and memory format, "plain float32" without either, and timm's
LogitDistillationTask where timm can be imported, which is plain float32 too. torchdistill, where it can be, runs its
own box with its own data loader over the same images, with the augmentation of its CIFAR configurations.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # this clone's packages, installed or not
from polydistill._environment import require_environment

require_environment("vision")

import importlib
import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from polydistill.config.parsing import parse
from polydistill.config.plain_yaml import to_mapping
from polydistill.device import prepare, resolve_device, resolve_precision, resolve_threads
from polydistill.disk import atomic_write
from polydistill.errors import run_script
from polydistill.learning.lesson import Lesson
from polydistill.learning.schedules import TrainingConfig
from polydistill.learning.training import Training
from polydistill.modules import ModuleDomain
from polydistill.modules.feed import Feed
from polydistill.provenance import git_state, hardware, versions
from polydistill.runs import format_table
from polydistill.vision.cost import BACKWARD, count_cost
from polydistill.vision.images.augmentation import Normalizer
from polydistill.vision.images.data import ImageSet, Normalization
from polydistill.vision.networks import build_network, check_name
from polydistill.vision.training import Trainer

CLASSES = 100
EPOCH = 50_000  # images
PIXELS = Normalization((0.50708, 0.48655, 0.44092), (0.26733, 0.25644, 0.27615))


def can_import(name: str) -> bool:
    """Whether a module is there and works: both packages import torchvision, which must be made for the torch here."""
    try:
        importlib.import_module(name)
    except (ImportError, RuntimeError):
        return False
    return True


def sgd(parameters: Iterable[nn.Parameter], *, fused: bool | None = True) -> torch.optim.SGD:
    """The optimiser of all but torchdistill, whose box makes its own."""
    return torch.optim.SGD(parameters, 1e-3, 0.9, weight_decay=5e-4, nesterov=True, fused=fused)


@dataclass(frozen=True)
class BenchConfig:
    """What is measured, and how long.

    Args:
        networks: names, each as teacher and student.
        batch_size: images per step.
        threads: processor threads of torch; 0: as many as there are cores.
        device: auto, cpu or cuda.
        precision: of the trainer and of the bare step.
        compile: whether these two use torch.compile.
        rounds: times that everything is measured, in turn.
        steps: per measurement.
        json: file for the raw measurements; empty: none.
    """

    networks: tuple[str, ...] = ("resnet-20",)
    batch_size: int = 128
    threads: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False
    rounds: int = 5
    steps: int = 10
    json: str = ""

    def __post_init__(self) -> None:
        for name in self.networks:
            check_name(name)
        for name in ("batch_size", "rounds", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class Contenders:
    """Functions that make ``steps`` steps of one network each."""

    def __init__(self, name: str, config: BenchConfig, device: torch.device, precision: str) -> None:
        self.name, self.config, self.device, self.precision = name, config, device, precision
        generator = torch.Generator().manual_seed(0)
        # whole batches only: for a short last batch torch.compile would compile once more, half a minute of it
        pixels = torch.randint(0, 256, (40 * config.batch_size, 32, 32, 3), dtype=torch.uint8, generator=generator)
        labels = torch.randint(CLASSES, (len(pixels),), generator=generator)
        self.data = ImageSet(pixels.to(device), labels.to(device))
        self.normalizer = Normalizer.of(PIXELS, device)
        self.batch = self.normalizer(self.data.images[: config.batch_size])

    def all(self) -> dict[str, Callable[[], None]]:
        """Each by name; the trainer first."""
        fast = self.precision == "bfloat16"
        found = {
            "trainer": self.trainer(augment=True),
            "unaugmented": self.trainer(augment=False),
            "modules": self.modules(),
            "bare": self.by_hand(fast=fast),
            "float32": self.by_hand(fast=None),
        }
        if can_import("timm.task"):
            found["timm"] = self.timm()
        if can_import("torchdistill.core.distillation"):
            found["torchdistill"] = self.torchdistill()
        return found

    def pair(self, *, channels_last: bool) -> tuple[nn.Module, nn.Module]:
        """A student and a teacher of its own weights, frozen."""
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        student, teacher = (
            build_network(self.name, CLASSES, seed=seed).to(self.device).to(memory_format=memory_format)
            for seed in (0, 1)
        )
        return student, teacher.eval().requires_grad_(False)

    def trainer(self, *, augment: bool) -> Callable[[], None]:
        """This project's own loop: a report every ``steps`` steps."""
        student, teacher = self.pair(channels_last=True)
        schedule = TrainingConfig(
            epochs=100_000,
            batch_size=self.config.batch_size,
            learning_rate=1e-3,
            compile=self.config.compile,
            augment=augment,
            log_every_steps=self.config.steps,
        )
        trainer = Trainer(
            student,
            Lesson("ban", teacher, generation=1),
            self.data,
            self.normalizer,
            schedule,
            seed=0,
            generation=1,
            precision=self.precision,
        )
        return self.reports_of(trainer)

    def modules(self) -> Callable[[], None]:
        """The loop of one's own modules, on a list of batches."""
        student, teacher = self.pair(channels_last=True)
        parts = (part.split(self.config.batch_size) for part in (self.data.images, self.data.labels))
        batches = [(self.normalizer(images), labels) for images, labels in zip(*parts, strict=True)]
        domain = ModuleDomain(
            build=lambda: student,
            batches=batches,
            test=batches[:1],
            epochs=100_000,
            optimizer=sgd,
            objective="ban",
            teacher=teacher,
            precision=self.precision,
            compile=self.config.compile,
            log_every_steps=self.config.steps,
        )
        lesson, feed = domain.workshop.make_lesson(teacher, 1), Feed(batches, seed=0)
        return self.reports_of(domain.workshop.make_training(student, lesson, feed))

    def reports_of(self, training: Training) -> Callable[[], None]:
        """``steps`` steps of it, up to a report."""
        reports = training.run()

        def run() -> None:
            target = training.steps + self.config.steps
            while training.steps < target:  # an epoch's end makes a report too
                next(reports)

        return run

    def by_hand(self, *, fast: bool | None) -> Callable[[], None]:
        """The step as one writes it; ``fast`` None: plain float32, contiguous, eager."""
        student, teacher = self.pair(channels_last=fast is not None)
        optimizer = sgd(student.parameters(), fused=True if fast is not None else None)
        images = self.batch if fast is not None else self.batch.contiguous()
        compiled = self.config.compile and fast is not None
        learn, label = ((torch.compile(n) if compiled else n) for n in (student, teacher))

        def step() -> None:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=bool(fast)):
                with torch.no_grad():
                    target = label(images)
                scores = learn(images)
            loss = -(target.float().softmax(dim=1) * scores.float().log_softmax(dim=1)).sum(dim=1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return self.repeat(step)

    def timm(self) -> Callable[[], None]:
        """timm's task; both networks declare the same normalisation of pixels (else it assumes ImageNet's)."""
        from timm.task import LogitDistillationTask

        student, teacher = self.pair(channels_last=False)
        for network in (student, teacher):
            network.pretrained_cfg = {"mean": PIXELS.mean, "std": PIXELS.std}  # type: ignore[assignment]
            network.num_classes, network.in_chans = CLASSES, 3  # type: ignore[assignment]
        task = LogitDistillationTask(
            student, teacher, task_loss_weight=0.0, distill_loss_weight=1.0, device=self.device, verbose=False
        )
        optimizer = sgd(student.parameters(), fused=None)
        images, labels = self.batch.contiguous(), self.data.labels[: self.config.batch_size]

        def step() -> None:
            optimizer.zero_grad()
            task(images, labels)["loss"].backward()
            optimizer.step()

        return self.repeat(step)

    def torchdistill(self) -> Callable[[], None]:
        """torchdistill's box, its loader included; KDLoss at T = 1 without labels is ban."""
        from torch.utils.data import RandomSampler
        from torchdistill.core.distillation import get_distillation_box

        student, teacher = self.pair(channels_last=False)
        loss = {
            "key": "KDLoss",
            "kwargs": {
                **{"student_module_path": ".", "student_module_io": "output", "teacher_module_path": "."},
                **{"teacher_module_io": "output", "temperature": 1.0, "alpha": 0.0, "reduction": "batchmean"},
            },
        }
        terms = {"kd": {"criterion": loss, "weight": 1.0}}
        config = {
            "num_epochs": 1,
            "train_data_loader": {
                "dataset_id": "train",
                "sampler": {"class_or_func": RandomSampler},
                "kwargs": {"batch_size": self.config.batch_size, "num_workers": 0, "drop_last": True},
            },
            "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
            "student": {"forward_proc": "forward_batch_only"},
            "optimizer": {
                "key": "SGD",
                "kwargs": {"lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True},
            },
            "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": terms}},
        }
        data = {"train": Pictures(self.data)}
        box = get_distillation_box(teacher, student, data, config, self.device, None, False, 1.0)
        box.pre_epoch_process(epoch=0)

        def batches() -> Iterator[Any]:
            while True:
                yield from box.train_data_loader

        endless = batches()

        def step() -> None:
            images, labels, supplement = next(endless)
            images, labels = images.to(self.device), labels.to(self.device)
            box.post_forward_process(box.forward_process(images, labels, supplement))

        return self.repeat(step)

    def repeat(self, step: Callable[[], None]) -> Callable[[], None]:
        """``steps`` times that step."""

        def run() -> None:
            for _ in range(self.config.steps):
                step()

        return run


class Pictures(Dataset[Any]):
    """The images as torchvision's CIFAR100 gives them: one after the other, through PIL."""

    def __init__(self, data: ImageSet) -> None:
        from torchvision import transforms

        self.pixels, self.labels = data.images.cpu().numpy(), data.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(PIXELS.mean, PIXELS.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Any:
        from PIL import Image

        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def measure(config: BenchConfig, device: torch.device, precision: str) -> Iterator[tuple[str, dict[str, list[float]]]]:
    """Each network, with the images per second of every contender, once per round."""
    for name in config.networks:
        contenders = Contenders(name, config, device, precision).all()
        for run in contenders.values():  # a warm-up: work that is done only once is not measured
            run()
        rates: dict[str, list[float]] = {contender: [] for contender in contenders}
        for _ in range(config.rounds):
            for contender, run in contenders.items():
                synchronize(device)
                started = time.perf_counter()
                run()
                synchronize(device)
                images = config.steps * config.batch_size
                rates[contender].append(round(images / (time.perf_counter() - started), 1))
        yield name, rates


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure_peak(device: torch.device) -> float:
    """Operations per second of a large bfloat16 matrix product: what a GPU reaches at best."""
    side = 8192
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(10):
        synchronize(device)
        started = time.perf_counter()
        product: Tensor = left @ right
        synchronize(device)
        best = max(best, 2 * side**3 / (time.perf_counter() - started))
    del product
    return best


def format_result(network: str, rates: dict[str, list[float]], peak: float | None) -> str:
    """The medians as a table, and the ratios that matter, each the median of the rounds' ratios."""
    names = {
        "trainer": "the trainer, loader included",
        "unaugmented": "the trainer without augmentation",
        "modules": "ModuleDomain, batches in memory",
        "bare": "the bare step, one batch in memory",
        "float32": "plain float32, one batch in memory",
        "timm": "timm's LogitDistillationTask, one batch in memory",
        "torchdistill": "torchdistill, its loader included",
    }
    work = (1 + BACKWARD + 1) * count_cost(network, CLASSES).operations  # the student's passes, and its teacher's
    rows: list[list[Any]] = []
    for contender, values in rates.items():
        median = statistics.median(values)
        ratio = statistics.median(ours / theirs for ours, theirs in zip(rates["trainer"], values, strict=True))
        rows.append(
            [
                network,
                names[contender],
                median,
                f"{min(values):,.0f} to {max(values):,.0f}",
                f"{ratio:.2f}",
                f"{EPOCH / median:.1f}",
                None if peak is None else f"{100 * work * median / peak:.1f} %",
            ]
        )
    headers = ["network", "what", "images/s", "range", "trainer / this", "seconds for 50,000", "of peak"]
    return format_table(headers, rows)


@run_script
def main(argv: list[str] | None = None) -> None:
    config = parse(
        BenchConfig, argv, program="python scripts/bench_cifar.py", description=__doc__, default_name=None
    ).config
    kind = resolve_device(config.device)
    precision, threads = resolve_precision(config.precision, kind), resolve_threads(config.threads)
    device = prepare(kind, threads)
    peak = measure_peak(device) if kind == "cuda" else None
    raw: dict[str, Any] = {
        "config": {**to_mapping(config), "device": kind, "precision": precision, "threads": threads},
        "images_per_second": {},
        "bfloat16_peak_operations_per_second": peak,
        "hardware": hardware(),
        "versions": versions("timm", "torchdistill"),
        "git": git_state(),
    }
    print(f"{kind}, {threads} threads, {precision}, batches of {config.batch_size}\n")
    for network, rates in measure(config, device, precision):
        raw["images_per_second"][network] = rates
        print(format_result(network, rates, peak), flush=True)
        if config.json:  # after each network: an interrupted run keeps what it has measured
            atomic_write(Path(config.json), (json.dumps(raw, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
