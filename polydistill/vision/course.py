"""One generation's training, from its initial weights to its last epoch: curves, validation, the best weights so far.

Contract: :meth:`Course.state` is everything that the rest of it depends on, so that a course that loads the state
of another ends bit for bit as the other would (on a CPU, with as many threads).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from polydistill.errors import UserError
from polydistill.learning.measures import measure, require_finite_metrics
from polydistill.runs import Run
from polydistill.runs.progress import Progress
from polydistill.vision.config import EvaluationConfig
from polydistill.vision.evaluation import BATCH, predict, require_finite
from polydistill.vision.images.data import ImageSet
from polydistill.vision.training import Report, Trainer

Best = tuple[float, dict[str, Tensor]]


class Recorder:
    """Where a generation's numbers go: to the run, or, in the other processes of torchrun, nowhere.

    Args:
        run: or None.
        generation: whose.
    """

    def __init__(self, run: Run | None, generation: int) -> None:
        self.run, self.generation, self.role = run, generation, f"generation_{generation}"

    def log(self, samples: int, values: Mapping[str, float]) -> None:
        """Points at ``samples``, see :meth:`Run.log`."""
        if self.run is not None:
            self.run.log(self.role, samples, values)

    def log_rate(self, samples: int, seconds: float) -> None:
        """Log the images per second so far."""
        if self.run is not None:
            self.run.log_timing(self.role, samples, {"time/train_samples_per_second": samples / seconds})

    @contextlib.contextmanager
    def progress(self, what: str, total: int, done: int = 0) -> Iterator[Bar]:
        """A bar over ``total`` images on standard error, where there is a run.

        Args:
            what: what the generation does, like ``learns``.
            total: images.
            done: how many of them were done earlier.
        """
        if self.run is None:
            yield Bar(None)
            return
        with self.run.progress(f"generation {self.generation} {what}", total, "images", done) as progress:
            yield Bar(progress)


class Bar:
    """The progress bar while a generation learns or is tested.

    Args:
        progress: None: nothing is shown.
    """

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress

    def reach(self, samples: int, **numbers: float | str) -> None:
        """``samples`` images are done by now."""
        if self._progress is not None:
            self._progress.advance(max(0, samples - self._progress.done), **numbers)

    def add(self, samples: int) -> None:
        """``samples`` more images are done."""
        if self._progress is not None:
            self._progress.advance(samples)

    def say(self, text: str) -> None:
        """A word in place of the numbers until the next image."""
        if self._progress is not None:
            self._progress.say(text)


class Course:
    """Runs a trainer to the end, with curves, validation and checkpoints.

    Args:
        trainer: of the generation.
        validation: images, perhaps none.
        config: when to validate, and whose weights to keep.
        recorder: of the generation.

    Attributes:
        validating_seconds: wall clock of validation, in this process and those before it.
        best: validation accuracy and weights of the best epoch so far, where those are to be kept.
    """

    def __init__(self, trainer: Trainer, validation: ImageSet, config: EvaluationConfig, recorder: Recorder) -> None:
        self.trainer, self.validation, self.config, self.recorder = trainer, validation, config, recorder
        self.validating_seconds = 0.0
        self.best: Best | None = None
        self._started = time.perf_counter()

    @property
    def learner(self) -> Trainer:
        """The trainer."""
        return self.trainer

    @property
    def steps(self) -> int:
        """Of the trainer, done so far."""
        return self.trainer.steps

    @property
    def seconds(self) -> float:
        """Wall clock of learning and validation, in this process and those before it."""
        return time.perf_counter() - self._started

    def rates(self) -> dict[str, float]:
        """Both rates, since a timer that leaves something out flatters: of learning, and of learning and validation."""
        images, seconds = self.trainer.samples, self.seconds
        return {
            "train_samples_per_second": images / (seconds - self.validating_seconds),
            "train_and_validation_samples_per_second": images / seconds,
        }

    def learn(self, due: Callable[[int], bool], save: Callable[[], None]) -> None:
        """Train to the end; the student then has the weights to keep.

        Args:
            due: whether to save after so many steps, see :meth:`Trainer.run`.
            save: is called where it was due; an exception from it ends the run.

        Raises:
            FloatingPointError: the loss, or a score on the validation images, is not finite.
            UserError: the memory does not suffice for validation.
            torch.OutOfMemoryError: the memory does not suffice for a step.
        """
        trainer = self.trainer
        with self.recorder.progress("learns", trainer.config.epochs * len(trainer.data), trainer.samples) as bar:

            def step_made(steps: int) -> bool:
                bar.reach(trainer.samples)
                return due(steps)

            while trainer.steps < trainer.total_steps:
                for report in trainer.run(step_made):
                    self._show(report, bar)
                    self._record(report, bar)
                if trainer.steps < trainer.total_steps:
                    bar.say("saving")
                    save()
        if self.best is not None:
            trainer.student.load_state_dict(self.best[1])

    def state(self) -> dict[str, Any]:
        """Everything that the rest depends on: tensors and plain values. Copies."""
        best = None if self.best is None else list(self.best)
        seconds = {"seconds": self.seconds, "validating_seconds": self.validating_seconds}
        return {"trainer": self.trainer.state(), "best": best, **seconds}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state`, of a course with the same arguments."""
        device = self.trainer.device
        self.trainer.load_state(state["trainer"])
        if state["best"] is not None:
            accuracy, weights = state["best"]
            self.best = accuracy, {name: tensor.to(device) for name, tensor in weights.items()}
        self.validating_seconds = state["validating_seconds"]
        self._started = time.perf_counter() - state["seconds"]

    def _show(self, report: Report, bar: Bar) -> None:
        epoch = report.epochs + (not report.epoch_ends)
        values = report.values
        numbers = {"accuracy": values["train/accuracy"], "loss": values["train/loss"]}
        bar.reach(report.samples, epoch=f"{epoch:,}/{self.trainer.config.epochs:,}", **numbers)

    def _record(self, report: Report, bar: Bar) -> None:
        self.recorder.log(report.samples, report.values)
        if report.epoch_ends:
            self.recorder.log_rate(report.samples, self.seconds - self.validating_seconds)
            before = time.perf_counter()
            self._validate(report, bar)
            self.validating_seconds += time.perf_counter() - before

    def _validate(self, report: Report, bar: Bar) -> None:
        """A point of the validation curve, and the best weights so far."""
        every, student = self.config.every_epochs, self.trainer.student
        last = report.epochs == self.trainer.config.epochs
        if not len(self.validation) or not every or (report.epochs % every and not last):
            return
        lesson = f"generation {self.trainer.generation} ({self.trainer.lesson.objective})"
        bar.say("measuring the validation images")
        try:
            logits = predict(student, self.validation, self.trainer.normalizer)
        except torch.OutOfMemoryError as error:  # a smaller batch in training would not help
            raise UserError(
                f"out of memory on {self.trainer.device} for {lesson} while predicting the validation images, {BATCH} "
                "at a time"
            ) from error
        require_finite(logits, self.validation, f"{lesson} on the validation images after epoch {report.epochs}")
        measured = measure(logits, self.validation.labels)
        require_finite_metrics(measured, f"{lesson} on the validation images after epoch {report.epochs}")
        self.recorder.log(report.samples, {f"val/{name}": value for name, value in measured.items()})
        if self.config.selection == "best_val":
            # rank 0 decides which is best: last bits may differ between GPUs, and all must keep the same weights
            accuracy: float = self.trainer.processes.first_says(measured["accuracy"])
            if self.best is None or accuracy > self.best[0]:
                self.best = accuracy, {name: tensor.clone() for name, tensor in student.state_dict().items()}
