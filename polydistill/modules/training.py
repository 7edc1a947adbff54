"""The steps of one module of one's own, on batches of one's own: a :class:`~polydistill.learning.training.Training`.

Contract: the device is waited for where a report is made, and in each batch with an optimiser like LBFGS, or with an
objective of one's own and ``ignore_index``. (Labels are checked where they are on the CPU.) Where an epoch gives the
same batches again, see :mod:`~polydistill.modules.feed`, a training that loads the state of another goes on bit for bit
as the other would.
"""

from __future__ import annotations

import copy
import hashlib
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from polydistill.errors import UserError
from polydistill.learning.lesson import Lesson
from polydistill.learning.rewind import NonFiniteError
from polydistill.learning.training import Training
from polydistill.learning.update import Update
from polydistill.losses.ignored import find_counted
from polydistill.modules.batches import Batch, device_of, move, no_autocast, read_batch, score
from polydistill.modules.feed import END, Feed, doubt
from polydistill.modules.schedule import Schedule
from polydistill.modules.seeding import global_streams, set_global_streams
from polydistill.modules.trial import check_labels, needs_closure

LOOKED_AT = 1024  # numbers of each tensor of a batch, by which it is known again


class ModuleTraining(Training):
    """Trains one module on the batches of a feed.

    Args:
        student: on its device; learns in place.
        lesson: objective and teacher; its generation is the student's.
        optimizer: of the student's parameters.
        feed: of the batches.
        schedule: of the optimiser's rate; None: it stays.
        parts: in which each batch is computed, one after another.
        epochs: >= 1.
        log_every_steps: steps between two reports.
        ignore_index: label of positions that do not count; None: all do.
        precision: float32, or bfloat16 for autocast around the modules.
        compiled: run the modules through torch.compile.
        clip_norm: see :class:`~polydistill.learning.update.Update`.
        n_classes: of the scores; None: not known, and labels are not checked.

    Raises:
        ValueError: while training, an epoch without batches or with fewer than there must be, or a label that is no
            class.
    """

    def __init__(
        self,
        student: nn.Module,
        lesson: Lesson,
        optimizer: torch.optim.Optimizer,
        feed: Feed,
        schedule: Schedule | None = None,
        *,
        parts: int = 1,
        precision: str = "float32",
        compiled: bool = False,
        clip_norm: float | None = None,
        epochs: int,
        log_every_steps: int,
        ignore_index: int | None,
        n_classes: int | None,
    ) -> None:
        super().__init__(
            student,
            lesson,
            generation=lesson.generation,
            epochs=epochs,
            log_every_steps=log_every_steps,
            device=device_of(student) or torch.device("cpu"),
        )
        self._place = device_of(student)
        self.optimizer, self.feed, self.schedule, self.parts = optimizer, feed, schedule, parts
        self.ignore_index, self.n_classes = ignore_index, n_classes
        self._update = Update(
            student, lesson, optimizer, precision=precision, compiled=compiled, clip_norm=clip_norm, score=score
        )
        self._evaluates = needs_closure(optimizer)
        self._rate: Any = 0.0  # of the latest step: a number, or a tensor
        self._epoch, self._within, self._samples = 0, 0, 0
        self._batches: Iterator[Any] | None = None  # of the epoch in progress, once it has begun
        self._coming: list[Any] = []  # drawn from it, for the next steps; perhaps the end
        self._latest: Any = None  # of the step before

    @property
    def epochs_done(self) -> int:
        """Epochs completed so far."""
        return self._epoch

    @property
    def within(self) -> int:
        """Steps done of the epoch in progress."""
        return self._within

    @property
    def samples(self) -> int:
        """Samples seen so far."""
        return self._samples

    @property
    def total_samples(self) -> int:
        """Samples that will have been seen at the end; those seen so far where that is not known."""
        source = self.feed.source
        if isinstance(source, Sequence):
            return self.epochs * sum(read_batch(batch).shape[0] for batch in source)
        if isinstance(source, DataLoader) and source.batch_size is not None and doubt(source) is None:
            rest = len(source.sampler) % source.batch_size if source.drop_last else 0  # type: ignore[arg-type]
            return self.epochs * (len(source.sampler) - rest)  # type: ignore[arg-type]
        return self._samples

    # ---- the batches -------------------------------------------------------------------------------------------------

    def _stretch(self) -> Iterator[bool]:
        last = False
        while not last:
            self._draw_two()
            last = self._coming[1] is END or (self._within + 1) % self.log_every_steps == 0
            yield last

    def _draw_two(self) -> None:
        """Have the batch of the next step, and what follows it: another, or the end of the epoch."""
        if self._batches is None:
            self._batches, self._coming = self.feed.epoch(self._epoch), []
        while len(self._coming) < 2:
            self._coming.append(next(self._batches, END))

    def _take(self) -> Any:
        """The batch of the next step; what follows it stays."""
        self._draw_two()
        self._latest = self._coming.pop(0)
        return self._latest

    def _require_whole(self, position: int) -> None:
        """Refuse the end of an epoch after fewer batches than its source says it has."""
        try:
            there = len(self.feed.source)  # type: ignore[arg-type]
        except TypeError:  # an iterable data set has no length
            return
        if position + 1 < there and not (isinstance(self.feed.source, DataLoader) and doubt(self.feed.source)):
            raise ValueError(
                f"epoch {self._epoch + 1} of generation {self.generation} ends after {position + 1} batches, and "
                f"`batches` says that it has {there}"
            )

    # ---- a step ------------------------------------------------------------------------------------------------------

    def _make_one(self, position: int, *, diagnose: bool) -> None:
        given, where = self._take(), f"batch {position + 1} of epoch {self._epoch + 1}"
        if given is END:
            raise ValueError(
                f"no batches in epoch {self._epoch + 1}: `batches` must be iterable once per epoch, like a list"
            )
        ends = self._coming[0] is END
        try:
            batch = read_batch(given)
            if self.n_classes is not None and batch.labels.device.type == "cpu":  # a GPU would have to be waited for
                check_labels(batch.labels, self.n_classes, where, self.ignore_index)
            with no_autocast(self.student):
                self._step(batch, diagnose)
        except Exception as error:  # of the user's code, perhaps, which knows no batches
            error.add_note(f"in {where} of generation {self.generation}")
            raise
        if ends:
            self._require_whole(position)
        if self.schedule is not None and (ends or self.schedule.by == "step"):
            self.schedule.scheduler.step()
        self.steps += 1
        self._samples += batch.shape[0]
        self._epoch, self._within = (self._epoch + 1, 0) if ends else (self._epoch, position + 1)
        self._batches = None if ends else self._batches

    def _step(self, batch: Batch, diagnose: bool) -> None:
        parts = [part.to(self._place) for part in batch.split(self.parts)] if self.parts > 1 else []
        labels = torch.cat([part.labels for part in parts]) if parts else move(batch.labels, self._place)
        n_counted: int | Tensor = max(1, len(labels))
        counted = find_counted(labels, self.ignore_index)
        if counted is not None:
            n_counted = counted.sum().clamp(min=1)
        rows = torch.arange(len(labels), device=labels.device)  # a permutation of its own for each sample
        permutation = self.lesson.draw_permutation(rows, self.steps)
        self._rate = self.optimizer.param_groups[0]["lr"]
        if parts:
            scores, teacher, loss = self._update.in_parts(parts, labels, n_counted, permutation)
        elif self._evaluates:
            scores, teacher, loss = self._update.with_closure(batch.to(self._place), labels, n_counted, permutation)
        else:
            scores, teacher, loss = self._update(batch.to(self._place), labels, n_counted, permutation)
        self._note(loss, self.lesson.tally(scores, teacher, labels, diagnose=diagnose))

    def _where(self) -> str:
        rate = float(self.optimizer.param_groups[0]["lr"])
        return f"batch {self._within + 1} of epoch {self._epoch + 1}, learning rate {rate:g}"

    def _rate_before(self) -> float:
        return float(self._rate)

    # ---- what a failure leaves ---------------------------------------------------------------------------------------

    def _back_to_the_bad_step(self, good: dict[str, Any], losses: list[float]) -> NonFiniteError:
        if doubt(self.feed.source) is None:
            return super()._back_to_the_bad_step(good, losses)
        bad = next((index for index, loss in enumerate(losses) if not math.isfinite(loss)), len(losses) - 1)
        loss, behind = losses[bad], len(losses) - bad
        what = f"is {loss}" if not math.isfinite(loss) else "leads to weights that are not finite"
        step = self.steps - behind + 1
        return NonFiniteError(
            f"the loss {self.lesson.objective} of generation {self.generation} {what} at step {step:,}",
            {"step": step, "loss": loss},
            left="the weights after it",
        )

    def _given(self) -> dict[str, Any]:
        """``inputs``, their ``keywords`` and ``labels``: the tensors among them."""
        self._draw_two()
        batch = read_batch(self._coming[0])
        inputs = [value for value in batch.inputs if isinstance(value, Tensor)]
        keywords = {name: value for name, value in batch.keywords.items() if isinstance(value, Tensor)}
        return {
            "inputs": inputs,
            "keywords": keywords,
            "labels": batch.labels.view(*batch.shape, *batch.labels.shape[1:]),
        }

    # ---- the state ---------------------------------------------------------------------------------------------------

    def _own_state(self) -> dict[str, Any]:
        return {
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "scheduler": None if self.schedule is None else self.schedule.state(),
            "epoch": self._epoch,
            "within": self._within,
            "samples": self._samples,
            "seen": _describe(self._latest) if self._within else None,
            "streams": global_streams(self.device),
        }

    def _load_own_state(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        if self.schedule is not None:
            self.schedule.load_state(state["scheduler"])
        self._epoch, self._within, self._samples = state["epoch"], state["within"], state["samples"]
        self._batches = None
        if self._within:
            self._go_through_again(state["seen"])
        set_global_streams(state["streams"], self.device)

    def _go_through_again(self, seen: str) -> None:
        """The batches of the epoch up to where the state was; the last of them must be what it was."""
        for _ in range(self._within):
            if self._take() is END:
                raise UserError(f"epoch {self._epoch + 1} has fewer batches than when the run was saved")
        if _describe(self._latest) == seen:
            return
        if doubt(self.feed.source) is None:
            raise UserError(
                f"batch {self._within} of epoch {self._epoch + 1} is not what it was when the run was saved: the data "
                "or their order are others, or something draws from a generator of its own"
            )
        print("the run goes on with other batches than it would have had", file=sys.stderr)


def _describe(given: Any) -> str:
    """A hash of the beginning of each tensor of a batch, by which it is known again."""
    batch = read_batch(given)
    digest = hashlib.sha256()
    for value in (*batch.inputs, *batch.keywords.values(), batch.labels):
        if isinstance(value, Tensor):
            few = value.detach().reshape(-1)[:LOOKED_AT].cpu().contiguous()
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            digest.update(few.view(torch.uint8).numpy().tobytes() if few.numel() else b"")
    return digest.hexdigest()
