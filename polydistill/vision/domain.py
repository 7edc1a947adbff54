"""The world of CIFAR for a lineage: generation 0 learns from labels, every other one from the one before."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polydistill.device import prepare
from polydistill.errors import UserError
from polydistill.lineage import Generation
from polydistill.provenance import weights_sha256
from polydistill.streams import derive_seed
from polydistill.tracking import Run
from polydistill.vision.augmentation import Normalizer
from polydistill.vision.classifier import load_classifier, save_classifier
from polydistill.vision.config import CifarConfig
from polydistill.vision.data import Images, ImageSet
from polydistill.vision.evaluation import compare, ensemble_logits, measure, predict
from polydistill.vision.lesson import Lesson
from polydistill.vision.memory import explain_out_of_memory
from polydistill.vision.networks import build_network
from polydistill.vision.parallel import ALONE, Processes
from polydistill.vision.schedules import TrainingConfig
from polydistill.vision.training import Report, Trainer


class CifarDomain:
    """Generation 0 is trained on labels, or read from a file; students are trained by :class:`Trainer`.

    Args:
        config: resolved, see :meth:`CifarConfig.resolve`.
        images: on the device of ``config``.
        run: where metrics and ``generation_<k>.safetensors`` go; None: nowhere (the other processes of torchrun).
        processes: that share each batch.

    Attributes:
        seconds: wall clock of each generation so far, training and evaluation.
        throughput: rates by name, for summary.json.
    """

    def __init__(self, config: CifarConfig, images: Images, run: Run | None, processes: Processes = ALONE) -> None:
        self.config, self.images, self.run, self.processes = config, images, run, processes
        self.device = prepare(config.device, config.threads)
        self.normalizer = Normalizer.of(images.normalization, self.device)
        self.seconds: list[float] = []
        self.throughput: dict[str, float] = {}
        self._test_logits: list[Tensor] = []
        self._val_logits: list[Tensor] = []

    @property
    def objective(self) -> str:
        """Name of the students' objective."""
        return self.config.student.objective

    def network(self, member: nn.Module) -> nn.Module:
        """The member itself."""
        return member

    def first(self) -> nn.Module:
        """Generation 0."""
        teacher = self.config.teacher
        if teacher.path:
            self.seconds.append(0.0)
            return self._open(Path(teacher.path))
        options = {"label_smoothing": teacher.label_smoothing}
        lesson = Lesson("cross_entropy", None, seed=self.config.seed, generation=0, options=options)
        return self._train(teacher.network, lesson, 0)

    def teach(self, teacher: nn.Module, generation: int) -> nn.Module:
        """The student of ``generation``, taught by ``teacher``."""
        lesson = Lesson(
            self.config.student.objective,
            teacher,
            seed=self.config.seed,
            generation=generation,
            options=self.config.student.options(),
            classes=self.images.classes,
            group=self.processes.group,
        )
        return self._train(self.config.student_network, lesson, generation)

    def evaluate(self, member: nn.Module, teacher: nn.Module | None, generation: int) -> dict[str, Any]:
        """The metrics of summary.json; this is the one time that the generation sees the test set."""
        started = time.perf_counter()
        test = predict(member, self.images.test, self.normalizer)
        self._test_logits.append(test)
        measured = measure(test, self.images.test.labels)
        metrics: dict[str, Any] = {f"test_{name}": value for name, value in measured.items()}
        metrics["val_accuracy"] = None
        if len(self.images.validation):
            self._val_logits.append(predict(member, self.images.validation, self.normalizer))
            metrics["val_accuracy"] = measure(self._val_logits[-1], self.images.validation.labels)["accuracy"]
        followed = {"agreement": None, "kl": None}
        metrics |= compare(test, self._test_logits[-2]) if teacher is not None else followed
        metrics["selection"] = self.config.evaluation.selection
        samples = self.config.training.epochs * len(self.images.train)
        self._log(generation, samples, {f"test/{name}": value for name, value in measured.items()})
        self.seconds[-1] += time.perf_counter() - started
        return metrics

    def ensembles(self) -> list[dict[str, Any]]:
        """The configured ensembles of the generations evaluated so far: mean of their probabilities."""
        result = []
        for members in self.config.evaluation.chosen_ensembles(self.config.lineage.generations):
            test = ensemble_logits([self._test_logits[member] for member in members])
            metrics: dict[str, Any] = {
                f"test_{name}": value for name, value in measure(test, self.images.test.labels).items()
            }
            metrics["val_accuracy"] = None
            if self._val_logits:
                val = ensemble_logits([self._val_logits[member] for member in members])
                metrics["val_accuracy"] = measure(val, self.images.validation.labels)["accuracy"]
            result.append({"members": list(members), "metrics": metrics})
        return result

    def summary(self, generations: list[Generation[nn.Module]]) -> dict[str, Any]:
        """What summary.json says of the finished lineage."""
        parts = {"train": self.images.train, "validation": self.images.validation, "test": self.images.test}
        return {
            "generations": [generation.summary() for generation in generations],
            "ensembles": self.ensembles(),
            "throughput": self.throughput,
            "seconds": [round(seconds, 1) for seconds in self.seconds],
            "processes": self.processes.size,
            "data": {name: _describe(part) for name, part in parts.items()},
        }

    def _open(self, path: Path) -> nn.Module:
        classifier = load_classifier(path, self.device)
        found, wanted = classifier.card["architecture"], self.config.teacher.network
        if found != wanted:
            raise UserError(f"{path} holds a {found}, but teacher.network is {wanted}; say --teacher.network {found}")
        if classifier.card["classes"] != self.images.classes:
            raise UserError(
                f"{path} tells {classifier.card['classes']} classes apart, "
                f"{self.config.data.name} has {self.images.classes}"
            )
        if classifier.normalization != self.images.normalization:
            raise UserError(
                f"{path} was trained on pixels normalised by {classifier.normalization}, those here are normalised by "
                f"{self.images.normalization}: teacher and student would see different images"
            )
        self._save(classifier.network, found, 0, None)
        return self._place(classifier.network)

    def _train(self, architecture: str, lesson: Lesson, generation: int) -> nn.Module:
        config, started = self.config, time.perf_counter()
        student = self.make_student(architecture, generation)
        trainer = self.make_trainer(student, lesson, generation)
        best: tuple[float, dict[str, Tensor]] | None = None
        evaluating, out_of_memory = 0.0, False
        try:
            with self._progress(generation, config.training.epochs * len(self.images.train)) as advance:
                for report in trainer.run():
                    advance(report)
                    self._log(generation, report.samples, report.values)
                    if report.epoch_ends:
                        before = time.perf_counter()
                        self._log_rate(generation, report.samples, before - started - evaluating)
                        best = self._validate(student, report, generation, best)
                        evaluating += time.perf_counter() - before
        except FloatingPointError as error:
            path = self._save(student, architecture, generation, lesson, suffix="_before_failure")
            raise FloatingPointError(f"{error}; the weights before that are in {path or 'the run folder'}") from error
        except torch.OutOfMemoryError:
            out_of_memory = True
        if out_of_memory:  # not inside `except`: the error's traceback keeps the activations of the failed step
            del student, trainer
            raise explain_out_of_memory(self, architecture, lesson, generation)
        if best is not None and config.evaluation.selection == "best_val":
            student.load_state_dict(best[1])
        self.seconds.append(time.perf_counter() - started)
        self._note_speed(generation, self.seconds[-1], evaluating)
        self._save(student, architecture, generation, lesson)
        return student

    def make_student(self, architecture: str, generation: int) -> nn.Module:
        """An untrained network on the device, with initial weights of its own."""
        seed = derive_seed(self.config.seed, "initial weights", generation)
        student = build_network(architecture, self.images.classes, seed=seed)
        if self.config.training.sync_batchnorm and self.processes.size > 1:
            student = nn.SyncBatchNorm.convert_sync_batchnorm(student)  # type: ignore[no-untyped-call]
        return self._place(student)

    def make_trainer(
        self, student: nn.Module, lesson: Lesson, generation: int, training: TrainingConfig | None = None
    ) -> Trainer:
        """The trainer of ``student`` on this domain's training images, as configured or as ``training`` says."""
        return Trainer(
            student,
            lesson,
            self.images.train,
            self.normalizer,
            training or self.config.training,
            seed=self.config.seed,
            generation=generation,
            precision=self.config.precision,
            processes=self.processes,
        )

    def try_batch(self, architecture: str, lesson: Lesson, generation: int, batch_size: int) -> None:
        """Two steps with that batch on a student that is thrown away.

        Raises:
            torch.OutOfMemoryError: it does not fit.
        """
        config = dataclasses.replace(self.config.training, batch_size=batch_size, capture="off", log_every_steps=2)
        next(self.make_trainer(self.make_student(architecture, generation), lesson, generation, config).run())

    def _place(self, network: nn.Module) -> nn.Module:
        memory_format = torch.channels_last if self.config.training.channels_last else torch.contiguous_format
        return network.to(self.device).to(memory_format=memory_format)  # type: ignore[call-overload,no-any-return]

    def _validate(
        self, student: nn.Module, report: Report, generation: int, best: tuple[float, dict[str, Tensor]] | None
    ) -> tuple[float, dict[str, Tensor]] | None:
        """A point of the validation curve, and the better one of ``best`` and the weights of now."""
        every = self.config.evaluation.every_epochs
        last = report.epochs == self.config.training.epochs
        if not len(self.images.validation) or not every or (report.epochs % every and not last):
            return best
        measured = measure(predict(student, self.images.validation, self.normalizer), self.images.validation.labels)
        self._log(generation, report.samples, {f"val/{name}": value for name, value in measured.items()})
        if self.config.evaluation.selection == "last" or (best is not None and measured["accuracy"] <= best[0]):
            return best
        return measured["accuracy"], {name: tensor.clone() for name, tensor in student.state_dict().items()}

    def _note_speed(self, generation: int, seconds: float, evaluating: float) -> None:
        """Both rates, since a timer that leaves something out flatters: of learning, and of learning and validation."""
        images = self.config.training.epochs * len(self.images.train)
        role = f"generation_{generation}"
        self.throughput[f"{role}_train_samples_per_second"] = round(images / (seconds - evaluating), 1)
        self.throughput[f"{role}_train_and_validation_samples_per_second"] = round(images / seconds, 1)

    def _save(
        self, network: nn.Module, architecture: str, generation: int, lesson: Lesson | None, suffix: str = ""
    ) -> Path | None:
        if self.run is None:
            return None
        path = self.run.out / f"generation_{generation}{suffix}.safetensors"
        save_classifier(
            path,
            network,
            architecture,
            self.images.classes,
            self.images.normalization,
            dataset=self.config.data.name,
            generation=generation,
            objective=None if lesson is None else lesson.objective,
            seed=self.config.seed,
        )
        return path

    def _log(self, generation: int, samples: int, values: dict[str, float]) -> None:
        if self.run is not None:
            self.run.log(f"generation_{generation}", samples, values)

    def _log_rate(self, generation: int, samples: int, seconds: float) -> None:
        if self.run is not None:
            rate = {"time/train_samples_per_second": samples / seconds}
            self.run.log_timing(f"generation_{generation}", samples, rate)

    @contextlib.contextmanager
    def _progress(self, generation: int, samples: int) -> Iterator[Any]:
        """A function that shows a report on the progress bar."""
        if self.run is None:
            yield lambda report: None
            return
        with self.run.progress(f"generation {generation} learns", samples, "images") as bar:
            yield lambda report: bar.advance(report.samples - bar.done, loss=report.values["train/loss"])


def _describe(part: ImageSet) -> dict[str, Any]:
    """How many images, and a hash of them and their labels: what a result can be compared by."""
    whole = {"images": part.images, "labels": part.labels}
    return {"images": len(part), "sha256": weights_sha256(whole) if len(part) else None}
