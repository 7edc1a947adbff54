"""One generation's training, from its initial weights to its last epoch: curves, validation, the best weights so far.

Contract: :meth:`TrainingCourse.state` is everything that the rest of it depends on, so that a course that loads the
state of another ends bit for bit as the other would (on a CPU, with as many threads).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from polydistill.learning.sharded import weights_as_pieces
from polydistill.learning.training import Report, Training
from polydistill.runs import Run
from polydistill.runs.progress import Progress

Best = tuple[float, dict[str, Tensor]]


def charts_of(inputs: str) -> dict[str, list[str]]:
    """TensorBoard's charts of classifiers, in their order: title -> tags.

    Args:
        inputs: what is classified, a plural, like ``images``.
    """
    return {
        f"accuracy on the validation {inputs}": ["val/accuracy"],
        f"accuracy on the test {inputs}": ["test/accuracy"],
        f"accuracy and agreement with the teacher on the training {inputs}": ["train/accuracy", "train/agreement"],
        "loss": ["train/loss"],
    }


class Recorder:
    """Where a generation's numbers go: to the run, or, in the other processes of torchrun, nowhere.

    Args:
        run: or None.
        generation: whose.
        unit: of what is counted, a plural.
    """

    def __init__(self, run: Run | None, generation: int, unit: str = "samples") -> None:
        self.run, self.generation, self.unit, self.role = run, generation, unit, f"generation_{generation}"

    def log(self, samples: int, values: Mapping[str, float]) -> None:
        """Points at ``samples``, see :meth:`Run.log`."""
        if self.run is not None:
            self.run.log(self.role, samples, values)

    def log_rate(self, samples: int, seconds: float) -> None:
        """Log the samples per second so far."""
        if self.run is not None:
            self.run.log_timing(self.role, samples, {"time/train_samples_per_second": samples / seconds})

    @contextlib.contextmanager
    def progress(self, what: str, total: int, done: int = 0) -> Iterator[Bar]:
        """A bar over ``total`` samples on standard error, where there is a run.

        Args:
            what: what the generation does, like ``learns``.
            total: samples.
            done: how many of them were done earlier.
        """
        if self.run is None:
            yield Bar(None)
            return
        with self.run.progress(f"generation {self.generation} {what}", total, self.unit, done) as progress:
            yield Bar(progress)


class Bar:
    """The progress bar while a generation learns or is tested.

    Args:
        progress: None: nothing is shown.
    """

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress

    def reach(self, samples: int, **numbers: float | str) -> None:
        """``samples`` are done by now."""
        if self._progress is not None:
            self._progress.advance(max(0, samples - self._progress.done), **numbers)

    def add(self, samples: int) -> None:
        """``samples`` more are done."""
        if self._progress is not None:
            self._progress.advance(samples)

    def say(self, text: str) -> None:
        """A word in place of the numbers until the next sample."""
        if self._progress is not None:
            self._progress.say(text)


class Validation(NamedTuple):
    """How a course measures its student on the way.

    Attributes:
        measure: the student's metrics, "accuracy" among them; it is told what is measured, for an error.
        what: is measured, for the bar and for errors, like ``the validation images``.
        every_epochs: between two measurements, >= 1; there is one at the end, too.
        keep_best: the student gets the weights of its most accurate measurement at the end, the earlier of two alike.
        patience: with ``keep_best``: the course ends after so many measurements that were no better; None: it does not.
    """

    measure: Callable[[nn.Module, str], Mapping[str, float]]
    what: str
    every_epochs: int = 1
    keep_best: bool = False
    patience: int | None = None


class Kept(NamedTuple):
    """A measurement on the way.

    Attributes:
        epoch: after which it was made, counted from 1.
        accuracy: what it found.
    """

    epoch: int
    accuracy: float


class TrainingCourse:
    """Runs a training to its end, with curves, validation and checkpoints; the keeper follows it.

    Args:
        training: of the generation.
        recorder: of the generation.
        validation: None: there is none.

    Attributes:
        validating_seconds: wall clock of validation, in this process and those before it.
        best: validation accuracy and weights of the best measurement so far, where those are to be kept.
        waited: measurements since then.
        kept: the measurement of the weights that are kept, or would be if the course ended now; None: there is none.
    """

    def __init__(self, training: Training, recorder: Recorder, validation: Validation | None) -> None:
        self.training, self.recorder, self.validation = training, recorder, validation
        self.validating_seconds = 0.0
        self.best: Best | None = None
        self.waited = 0
        self.kept: Kept | None = None
        self._started = time.perf_counter()

    @property
    def learner(self) -> Training:
        """The training."""
        return self.training

    @property
    def steps(self) -> int:
        """Of the training, done so far."""
        return self.training.steps

    @property
    def seconds(self) -> float:
        """Wall clock of learning and validation, in this process and those before it."""
        return time.perf_counter() - self._started

    def rates(self) -> dict[str, float]:
        """Both rates, since a timer that leaves something out flatters: of learning, and of learning and validation."""
        samples, seconds = self.training.samples, self.seconds
        return {
            "train_samples_per_second": samples / (seconds - self.validating_seconds),
            "train_and_validation_samples_per_second": samples / seconds,
        }

    def learn(self, due: Callable[[int], bool], save: Callable[[], None]) -> None:
        """Train to the end; the student then has the weights to keep.

        Args:
            due: whether to save after so many steps, see :meth:`Training.run`.
            save: is called where it was due; an exception from it ends the run.

        Raises:
            FloatingPointError: the loss, or what is measured on the way, is not finite.
            UserError: the memory does not suffice for validation.
            torch.OutOfMemoryError: the memory does not suffice for a step.
        """
        training = self.training
        with self.recorder.progress("learns", training.total_samples, training.samples) as bar:

            def step_made(steps: int) -> bool:
                bar.reach(training.samples)
                return due(steps)

            while not training.finished:
                for report in training.run(step_made):
                    self._show(report, bar)
                    self._record(report, bar)
                if not training.finished:
                    bar.say("saving")
                    save()
        training.keep()
        if self.best is not None:
            training.student.load_state_dict(self.best[1])

    def state(self) -> dict[str, Any]:
        """Everything that the rest depends on: tensors and plain values. Copies."""
        best = None if self.best is None else list(self.best)
        seconds = {"seconds": self.seconds, "validating_seconds": self.validating_seconds}
        kept = None if self.kept is None else list(self.kept)
        return {"trainer": self.training.state(), "best": best, "waited": self.waited, "kept": kept, **seconds}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state`, of a course with the same arguments."""
        device = self.training.device
        self.training.load_state(state["trainer"])
        if state["best"] is not None:
            accuracy, weights = state["best"]
            best = weights_as_pieces(weights, self.training.student)
            self.best = accuracy, {name: tensor.to(device) for name, tensor in best.items()}
        self.waited = state.get("waited", 0)  # an older version did not count them
        self.kept = None if state.get("kept") is None else Kept(*state["kept"])  # nor kept this
        self._stop_if_patience_ends()
        self.validating_seconds = state["validating_seconds"]
        self._started = time.perf_counter() - state["seconds"]

    def _show(self, report: Report, bar: Bar) -> None:
        epoch = report.epochs + (not report.epoch_ends)
        values = report.values
        numbers = {name: values[f"train/{name}"] for name in ("accuracy", "loss") if f"train/{name}" in values}
        bar.reach(report.samples, epoch=f"{epoch:,}/{self.training.epochs:,}", **numbers)

    def _record(self, report: Report, bar: Bar) -> None:
        self.recorder.log(report.samples, report.values)
        if report.epoch_ends:
            self.recorder.log_rate(report.samples, self.seconds - self.validating_seconds)
            before = time.perf_counter()
            if self.validation is not None:
                self._validate(self.validation, report, bar)
            self.validating_seconds += time.perf_counter() - before

    def _validate(self, validation: Validation, report: Report, bar: Bar) -> None:
        """A point of the validation curve, and the best weights so far."""
        training = self.training
        last = report.epochs == training.epochs
        if report.epochs % validation.every_epochs and not last:
            return
        bar.say(f"measuring {validation.what}")
        lesson = f"generation {training.generation} ({training.lesson.objective})"
        whose = f"{lesson} on {validation.what} after epoch {report.epochs}"
        with training.as_kept():
            measured = validation.measure(training.student, whose)
            self.recorder.log(report.samples, {f"val/{name}": value for name, value in measured.items()})
            # rank 0 decides which is best: last bits may differ between GPUs, and all must keep the same weights
            accuracy: float = training.processes.first_says(measured["accuracy"])
            self.waited += 1
            is_best = validation.keep_best and (self.best is None or accuracy > self.best[0])
            if is_best:
                self.best = accuracy, {name: tensor.clone() for name, tensor in training.student.state_dict().items()}
                self.waited = 0
        if is_best or not validation.keep_best:
            self.kept = Kept(report.epochs, accuracy)
        self._stop_if_patience_ends()

    def _stop_if_patience_ends(self) -> None:
        patience = None if self.validation is None else self.validation.patience
        if patience is not None and self.waited >= patience:
            self.training.stop()
