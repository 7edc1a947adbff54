"""One generation's steps, from the first to the last, in every world.

A stretch is the steps from one report to the next; it never goes beyond the end of an epoch. Its losses are looked at
once, at its end: where one is not finite, the training goes back to just before the step that went wrong, see
:mod:`~polydistill.learning.rewind`. A world says what a step is, and which steps make an epoch.

Contract: what a step depends on is in :meth:`Training.state`, or follows from the arguments, so that a training that
loads the state of another goes on bit for bit as the other would (on a CPU, with as many threads), between two reports
too. Between two reports nothing here waits for the device.
"""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from polydistill.learning.lesson import Lesson, Tally
from polydistill.learning.processes import ALONE, Processes
from polydistill.learning.rewind import NonFiniteError, rewind
from polydistill.learning.sharded import piece_of, weights_as_pieces

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Report(NamedTuple):
    """Where a training is, with the means since the report before.

    Attributes:
        steps: updates done.
        samples: samples seen by all processes.
        epochs: epochs completed.
        epoch_ends: whether an epoch was completed just now.
        values: TensorBoard tag -> number.
    """

    steps: int
    samples: int
    epochs: int
    epoch_ends: bool
    values: dict[str, float]


def never(steps: int) -> bool:
    """No pause."""
    return False


class Training(ABC):
    """Trains one student; what a step is, a subclass says.

    Args:
        student: on ``device``; learns in place.
        lesson: what it learns from.
        generation: of the student.
        epochs: to train.
        log_every_steps: steps between two reports.
        device: of the student.
        processes: that share each batch.

    Attributes:
        steps: done so far.
    """

    def __init__(
        self,
        student: nn.Module,
        lesson: Lesson,
        *,
        generation: int,
        epochs: int,
        log_every_steps: int,
        device: torch.device,
        processes: Processes = ALONE,
    ) -> None:
        self.student, self.lesson, self.generation, self.epochs = student, lesson, generation, epochs
        self.device, self.log_every_steps, self.processes, self.steps = device, log_every_steps, processes, 0
        self._stopped = False
        self._losses = torch.zeros(log_every_steps, device=device)
        self._cursor = torch.zeros(1, dtype=torch.int64, device=device)
        self._tally = torch.zeros(len(Tally._fields), dtype=torch.float64, device=device)

    # ---- what a world says -------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def epochs_done(self) -> int:
        """Epochs completed so far."""

    @property
    @abstractmethod
    def within(self) -> int:
        """Steps done of the epoch in progress; 0 where one has just ended."""

    @property
    @abstractmethod
    def samples(self) -> int:
        """Samples seen so far, by all processes."""

    @property
    @abstractmethod
    def total_samples(self) -> int:
        """Samples that will have been seen at the end, as far as that is known."""

    @abstractmethod
    def _stretch(self) -> Iterable[bool]:
        """The steps up to the next report, at least one: for each whether it is the last."""

    @abstractmethod
    def _make_one(self, position: int, *, diagnose: bool) -> None:
        """The next step, which is the one at ``position`` of its epoch; it ends with :meth:`_note`."""

    @abstractmethod
    def _where(self) -> str:
        """The next step, in words."""

    @abstractmethod
    def _given(self) -> dict[str, Any]:
        """What the next step is given, by name: tensors and plain values."""

    @abstractmethod
    def _rate_before(self) -> float:
        """The learning rate of the latest step."""

    @abstractmethod
    def _own_state(self) -> dict[str, Any]:
        """What belongs to :meth:`state` besides weights, steps and what the next report is made from. Copies."""

    @abstractmethod
    def _load_own_state(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`_own_state`."""

    # ---- the steps ---------------------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether all epochs are completed, or :meth:`stop` was called."""
        return self._stopped or self.epochs_done >= self.epochs

    def stop(self) -> None:
        """Be finished now."""
        self._stopped = True

    def run(self, pause: Callable[[int], bool] = never) -> Iterator[Report]:
        """Train to the end, with a report every ``log_every_steps`` steps and at the end of each epoch.

        Between two reports the student may be evaluated and the state be saved.

        Args:
            pause: is asked after each step (of several processes: at each report, and by all), with the steps done so
                far, whether to leave; another call of this method goes on.

        Raises:
            NonFiniteError: at the latest before the next report or pause; the training is in the state before the first
                bad step. Its batch is what that step was given, with its ``loss``, and ``step``, counted from 1.
        """
        while not self.finished:
            good, within = self.state(), self.within
            self._begin()
            paused = False
            for position, last in enumerate(self._stretch(), within):
                self._make_one(position, diagnose=last)
                paused = not last and self.processes.size == 1 and pause(self.steps)
                if paused:
                    break
            since = within % self.log_every_steps  # steps since the report before, when this stretch went on
            losses = self.processes.sum_(self._losses[: since + position + 1 - within].clone()).tolist()
            if not (all(map(math.isfinite, losses)) and self._student_is_finite()):
                raise self._back_to_the_bad_step(good, losses[since:])
            if paused:
                return
            yield self._report(losses)
            if pause(self.steps):
                return

    def _begin(self) -> None:
        """Make the student ready to learn: before each stretch, since it may have been evaluated."""
        self.student.train()

    def as_kept(self) -> AbstractContextManager[None]:
        """The student, while the context lasts, with the weights that are measured and kept: between two reports."""
        return contextlib.nullcontext()

    def keep(self) -> None:  # noqa: B027 (what learns is kept, mostly)
        """At the end: the student has these weights for good."""

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on: tensors and plain values. Copies."""
        return {
            "steps": self.steps,
            "student": {name: tensor.clone() for name, tensor in self.student.state_dict().items()},
            "since_report": [tensor.clone() for tensor in self._since_report()],
            **self._own_state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state`, of a training with the same arguments."""
        self.steps = int(state["steps"])
        self.student.load_state_dict(weights_as_pieces(state["student"], self.student))
        for tensor, value in zip(self._since_report(), state["since_report"], strict=True):
            tensor.copy_(value)
        self._load_own_state(state)

    def _note(self, loss: Tensor, tally: Tensor) -> None:
        """What the next report has of a step: its loss, ``()``, and its :class:`Tally`."""
        self._tally += tally
        self._losses.index_copy_(0, self._cursor, loss.reshape(1).float())
        self._cursor += 1

    def _report(self, losses: list[float]) -> Report:
        tally = self.processes.sum_(self._tally.clone())
        values = {"train/loss": sum(losses) / len(losses), **self.lesson.summarize(tally.tolist())}
        values["train/learning_rate"] = self._rate_before()
        self._tally.zero_()
        self._cursor.zero_()
        self.processes.average_buffers_(self.student)  # so that all processes are in the same state at a report
        return Report(self.steps, self.samples, self.epochs_done, self.within == 0, values)

    def _back_to_the_bad_step(self, good: dict[str, Any], losses: list[float]) -> NonFiniteError:
        """Go back to just before the first step that went wrong, see :func:`~polydistill.learning.rewind.rewind`.

        Args:
            good: the state before these steps.
            losses: of them.
        """

        def make_again(index: int) -> None:
            self._make_one(self.within, diagnose=False)

        loss = losses[rewind(self, good, losses, make_again, self._student_is_finite)]
        what = f"is {loss}" if not math.isfinite(loss) else "leads to weights that are not finite"
        given = self._given()
        flags = torch.tensor([float(not _is_finite(value)) for value in given.values()], device=self.device)
        wrong = [name for name, flag in zip(given, self.processes.sum_(flags).tolist(), strict=True) if flag]
        cause = f", where not all {' and '.join(wrong)} are finite" if wrong else ""
        return NonFiniteError(
            f"the loss {self.lesson.objective} of generation {self.generation} {what} at {self._where()}{cause}",
            {"step": self.steps + 1, "loss": loss, **given},
        )

    def _student_is_finite(self) -> bool:
        """Whether all weights and running statistics are, in all processes."""
        floats = [piece_of(tensor) for tensor in self._weights() if tensor.is_floating_point()]
        wrong = torch.stack([tensor.isfinite().all() for tensor in floats]).logical_not().sum()
        return not self.processes.sum_(wrong).item()

    def _since_report(self) -> list[Tensor]:
        """What the next report is made from; with several processes it is this one's part, and zero at a report."""
        return [self._losses, self._cursor, self._tally]

    def _weights(self) -> list[Tensor]:
        """The student's, and its running statistics."""
        return [*(parameter.detach() for parameter in self.student.parameters()), *self.student.buffers()]


def _is_finite(value: Any) -> bool:
    """Whether a tensor's numbers are, or those of all tensors in a list or mapping; of anything else: yes."""
    if isinstance(value, Tensor):
        return value.dtype not in FLOATS or bool(value.isfinite().all())
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    return all(map(_is_finite, value)) if isinstance(value, list) else True
