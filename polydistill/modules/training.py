"""The steps of one module of one's own, on batches of one's own: a :class:`~polydistill.learning.training.Training`.

Contract: the device is waited for where a report is made, and in each batch with an optimiser like LBFGS, in float16
(a step whose gradient is not finite is left out), with an objective of one's own and ``ignore_index``, and where a
teacher's scores are looked up by inputs that the loader gives on the device. (Labels are checked where they are on the
CPU.) Where an epoch gives the same batches again, see :mod:`~polydistill.modules.feed`, a training that loads the
state of another goes on bit for bit as the other would.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from polydistill.learning.average import MovingAverage
from polydistill.learning.lesson import Lesson
from polydistill.learning.processes import ALONE, Processes
from polydistill.learning.rewind import NonFiniteError
from polydistill.learning.sharded import optimizer_state_as_pieces, require_dividable
from polydistill.learning.training import Report, Training
from polydistill.learning.update import Update
from polydistill.losses.ignored import find_counted
from polydistill.modules.batches import Batch, device_of, move, no_autocast, read_batch
from polydistill.modules.feed import END, Feed, doubt
from polydistill.modules.labels import check_labels
from polydistill.modules.outputs import AS_GIVEN, Reading
from polydistill.modules.place import Place, describe_batch
from polydistill.modules.schedule import Schedule
from polydistill.modules.seeding import global_streams, seed_globals, set_global_streams
from polydistill.modules.shares import check_alike, take_share
from polydistill.modules.teacher_scores import TeacherScores
from polydistill.modules.trial import needs_closure
from polydistill.streams import derive_seed


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
        precision: see :class:`~polydistill.learning.update.Update`.
        compiled: run the modules through torch.compile.
        clip_norm: see :class:`~polydistill.learning.update.Update`.
        ema: decay of the mean of the weights that is measured and kept; None: those that learn are.
        readings: of the student's scores, and of the teacher's.
        known: the teacher's scores of all samples; None: it is asked.
        processes: that share each batch.
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
        ema: float | None = None,
        readings: tuple[Reading, Reading] = (AS_GIVEN, AS_GIVEN),
        known: TeacherScores | None = None,
        processes: Processes = ALONE,
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
            processes=processes,
        )
        self._home, self._known = device_of(student), known
        self.optimizer, self.place, self.schedule, self.parts = optimizer, Place(feed), schedule, parts
        self.ignore_index, self.n_classes = ignore_index, n_classes
        self._update = Update(
            student,
            lesson,
            optimizer,
            precision=precision,
            processes=processes,
            compiled=compiled,
            clip_norm=clip_norm,
            score=readings[0].score,
            teacher_score=readings[1].score,
        )
        self._mean = None if ema is None else MovingAverage(student, ema)
        self._evaluates = needs_closure(optimizer)
        self._rate: Any = 0.0  # of the latest step: a number, or a tensor

    @property
    def epochs_done(self) -> int:
        """Epochs completed so far."""
        return self.place.epoch

    @property
    def within(self) -> int:
        """Steps done of the epoch in progress."""
        return self.place.within

    @property
    def samples(self) -> int:
        """Samples seen so far."""
        return self.place.samples

    @property
    def total_samples(self) -> int:
        """Samples that will have been seen at the end; those seen so far where that is not known."""
        return self.place.total_samples(self.epochs)

    # ---- a step ------------------------------------------------------------------------------------------------------

    def _stretch(self) -> Iterator[bool]:
        last = False
        while not last:
            last = self.place.peek()[1] is END or (self.within + 1) % self.log_every_steps == 0
            yield last

    def _make_one(self, position: int, *, diagnose: bool) -> None:
        given, ends = self.place.take()
        where = f"batch {position + 1} of epoch {self.epochs_done + 1}"
        try:
            batch = read_batch(given)
            if self.n_classes is not None and batch.labels.device.type == "cpu":  # a GPU would have to be waited for
                check_labels(batch.labels, self.n_classes, where, self.ignore_index)
            skipped = self._update.skipped
            if self.processes.size > 1:
                self._prepare_process(given, where)
            with no_autocast(self.student), self.processes.peers_needed(among_others=True):
                self._step(batch, diagnose, where)
        except Exception as error:  # of the user's code, perhaps, which knows no batches
            error.add_note(f"in {where} of generation {self.generation}")
            raise
        if ends:
            self.place.require_whole(self.generation)
        made = self._update.skipped == skipped
        if self._mean is not None and made:
            self._mean.add()
        if self.schedule is not None and (ends if self.schedule.by == "epoch" else made):
            self.schedule.scheduler.step()
        self.steps += 1
        self.place.move_on(batch.shape[0], ends)

    def _prepare_process(self, given: Any, where: str) -> None:
        """What is drawn in this step is another in each process, and the same whenever it is made again."""
        if not self.within:
            check_alike(describe_batch(given), self.processes, where, self.device)
        step = f"step {self.steps}, process {self.processes.rank}"
        seed_globals(derive_seed(self.lesson.seed, step, self.generation))

    def _step(self, batch: Batch, diagnose: bool, where: str) -> None:
        labels = move(batch.labels, self._home)
        n_counted: int | Tensor = max(1, len(labels))
        counted = find_counted(labels, self.ignore_index)
        if counted is not None:
            n_counted = counted.sum().clamp(min=1)
        rows = torch.arange(len(labels), device=labels.device)  # a permutation of its own for each sample
        permutation = self.lesson.draw_permutation(rows, self.steps)
        batch, mine = take_share(batch, self.processes, self.parts, where)
        labels, permutation = labels[mine], None if permutation is None else permutation[mine]
        taught = None if self._known is None else self._known.look_up(batch, self.device)
        self._rate = self.optimizer.param_groups[0]["lr"]
        if self.parts > 1:
            parts = [part.to(self._home) for part in batch.split(self.parts)]
            scores, teacher, loss = self._update.in_parts(parts, labels, n_counted, permutation, taught)
        else:
            update = self._update.with_closure if self._evaluates else self._update
            scores, teacher, loss = update(batch.to(self._home), labels, n_counted, permutation, taught)
        self._note(loss, self.lesson.tally(scores, teacher, labels, diagnose=diagnose))

    def _where(self) -> str:
        rate = float(self.optimizer.param_groups[0]["lr"])
        return f"batch {self.within + 1} of epoch {self.epochs_done + 1}, learning rate {rate:g}"

    def _rate_before(self) -> float:
        return float(self._rate)

    def _report(self, losses: list[float]) -> Report:
        report = super()._report(losses)
        if self._mean is not None:
            self.processes.average_(self._mean.buffers())
        if self._update.precision == "float16":
            report.values["train/skipped_steps"] = float(self._update.skipped)
        return report

    # ---- the weights that are kept ---------------------------------------------------------------------------------

    def as_kept(self) -> AbstractContextManager[None]:
        """See :class:`~polydistill.learning.training.Training`: the mean of the weights, where there is one."""
        return super().as_kept() if self._mean is None else self._mean.shown()

    def keep(self) -> None:
        """The student has the mean of its weights, where there is one."""
        if self._mean is not None:
            self._mean.keep()

    # ---- what a failure leaves ---------------------------------------------------------------------------------------

    def _back_to_the_bad_step(self, good: dict[str, Any], losses: list[float]) -> NonFiniteError:
        if doubt(self.place.feed.source) is None:
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
        batch = read_batch(self.place.peek()[0])
        inputs = [value for value in batch.inputs if isinstance(value, Tensor)]
        keywords = {name: value for name, value in batch.keywords.items() if isinstance(value, Tensor)}
        return {
            "inputs": inputs,
            "keywords": keywords,
            "labels": batch.labels.view(*batch.shape, *batch.labels.shape[1:]),
        }

    # ---- the state ---------------------------------------------------------------------------------------------------

    def _own_state(self) -> dict[str, Any]:
        require_dividable(self.optimizer)
        return {
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "update": self._update.state(),
            "mean": None if self._mean is None else self._mean.state(),
            "scheduler": None if self.schedule is None else self.schedule.state(),
            **self.place.state(),
            "streams": global_streams(self.device),
        }

    def _load_own_state(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(copy.deepcopy(optimizer_state_as_pieces(state["optimizer"], self.optimizer)))
        self._update.load_state(state.get("update", {}))
        if self._mean is not None:
            self._mean.load_state(state["mean"])
        if self.schedule is not None:
            self.schedule.load_state(state["scheduler"])
        self.place.load_state(state, tells=self.processes.rank == 0)
        set_global_streams(state["streams"], self.device)
