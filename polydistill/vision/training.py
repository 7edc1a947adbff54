"""One generation's training: epochs of updates on images held on the device.

Contract: that of :class:`~polydistill.learning.training.Training`; the batch of a step follows from (seed, generation,
step).
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn

from polydistill.errors import UserError
from polydistill.learning.graphs import StepGraphs
from polydistill.learning.lesson import Lesson
from polydistill.learning.networks import start_learning
from polydistill.learning.processes import ALONE, Processes
from polydistill.learning.rewind import NonFiniteError
from polydistill.learning.schedules import TrainingConfig, schedule_rate
from polydistill.learning.stacked import structure_of
from polydistill.learning.together import table_here
from polydistill.learning.training import Training
from polydistill.learning.update import Update, make_optimizer
from polydistill.runs.shared_store import SharedStore
from polydistill.vision.epoch_scores import EpochScores
from polydistill.vision.images.augmentation import INDEX, Normalizer, draw_plan, take_batch
from polydistill.vision.images.data import ImageSet


class Trainer(Training):
    """Trains one generation on images held on the device.

    Args:
        student: on the device, in its memory format; learns in place.
        lesson: what it learns from.
        data: training images.
        normalizer: of the pixels.
        config: schedule.
        seed: root of the random streams.
        generation: whose streams.
        precision: float32 or bfloat16.
        processes: that share each batch.
        store: where runs with the same batches share the scores of their teacher; a GPU, and processes that share
            batches, do without it.

    Attributes:
        is_trial: the student is thrown away; at a table the others wait for it.

    Raises:
        UserError: the batch is larger than the data.
    """

    is_trial = False

    def __init__(
        self,
        student: nn.Module,
        lesson: Lesson,
        data: ImageSet,
        normalizer: Normalizer,
        config: TrainingConfig,
        *,
        seed: int,
        generation: int,
        precision: str = "float32",
        processes: Processes = ALONE,
        store: SharedStore | None = None,
    ) -> None:
        if config.batch_size > len(data):
            raise UserError(
                f"training.batch_size is {config.batch_size:,}, but there are {len(data):,} training images"
            )
        if min(config.batch_size, len(data) % config.batch_size or config.batch_size) < processes.size:
            raise UserError(
                f"training.batch_size {config.batch_size} leaves a process without an image in the last batch of "
                f"{len(data):,}, with {processes.size} processes; choose another batch size"
            )
        super().__init__(
            student,
            lesson,
            generation=generation,
            epochs=config.epochs,
            log_every_steps=config.log_every_steps,
            device=data.labels.device,
            processes=processes,
        )
        self.data, self.normalizer, self.config, self.seed = data, normalizer, config, seed
        self.steps_per_epoch = math.ceil(len(data) / config.batch_size)
        self.total_steps = self.steps_per_epoch * config.epochs
        on_gpu = self.device.type == "cuda"
        # on a GPU the rate is a tensor, which a recorded step reads each time
        self._rate = torch.tensor(config.learning_rate, device=self.device) if on_gpu else config.learning_rate
        self.optimizer = make_optimizer(student, config, self._rate)
        self.update = Update(
            student, lesson, self.optimizer, precision=precision, processes=processes, compiled=config.compile
        )
        self._plan: tuple[int, Tensor] | None = None
        self._structure: Hashable | None = None
        self._shared = None if store is None else self._share(store, precision)
        self.captures = on_gpu and (config.capture == "on" or (config.capture == "auto" and processes.size == 1))
        self._graphs = StepGraphs() if self.captures else None
        self._table = table_here()

    @property
    def epochs_done(self) -> int:
        """Epochs completed so far."""
        return self.steps // self.steps_per_epoch

    @property
    def within(self) -> int:
        """Steps done of the epoch in progress."""
        return self.steps % self.steps_per_epoch

    @property
    def samples(self) -> int:
        """Images seen so far, by all processes."""
        epochs, rest = divmod(self.steps, self.steps_per_epoch)
        return epochs * len(self.data) + rest * self.config.batch_size

    @property
    def total_samples(self) -> int:
        """Images that will have been seen at the end."""
        return self.epochs * len(self.data)

    def _begin(self) -> None:
        start_learning(self.student)

    def _stretch(self) -> list[bool]:
        within, every = self.within, self.log_every_steps
        last = min(within - within % every + every, self.steps_per_epoch)
        return [False] * (last - within - 1) + [True]

    def _where(self) -> str:
        rate = schedule_rate(self.config, self.steps / self.total_steps)
        epoch = self.epochs_done + 1
        return f"step {self.steps + 1:,} of {self.total_steps:,} (epoch {epoch}, learning rate {rate:g})"

    def _given(self) -> dict[str, Any]:
        """``rows`` of the plan, ``images`` as the network sees them, ``labels``, ``permutation`` (or None)."""
        rows, permutation = self._prepare(self.within)
        images, labels = take_batch(self.data, rows)
        return {"rows": rows, "images": self.normalizer(images), "labels": labels, "permutation": permutation}

    def _rate_before(self) -> float:
        return schedule_rate(self.config, (self.steps - 1) / self.total_steps)

    def _own_state(self) -> dict[str, Any]:
        return {"momentum": [tensor.clone() for tensor in self._momentum()]}

    def _load_own_state(self, state: dict[str, Any]) -> None:
        for tensor, value in zip(self._momentum(), state["momentum"], strict=True):
            tensor.copy_(value)

    def _make_one(self, position: int, *, diagnose: bool) -> None:
        """The next step, which is the one at ``position`` of its epoch."""
        batch, permutation = self._prepare(position)
        rate = schedule_rate(self.config, self.steps / self.total_steps)
        if isinstance(self._rate, Tensor):
            self._rate.fill_(rate)
        else:
            self.optimizer.param_groups[0]["lr"] = rate
        inputs = [batch] if permutation is None else [batch, permutation]
        if self._table is None:
            self.make_alone(diagnose, *inputs)
        else:
            self._table.meet(self, diagnose, *inputs)
        self.steps += 1

    def _prepare(self, position: int) -> tuple[Tensor, Tensor | None]:
        """The rows of the epoch's plan that the next step takes, and their permutation where there is one."""
        epoch = self.steps // self.steps_per_epoch
        if self._plan is None or self._plan[0] != epoch:
            plan = draw_plan(len(self.data), self.seed, self.generation, epoch, augment=self.config.augment)
            self._plan = (epoch, plan.to(self.device))
            if self._shared is not None:
                self._shared.begin(plan)
        rows = self._plan[1][position * self.config.batch_size : (position + 1) * self.config.batch_size]
        return rows, self.lesson.draw_permutation(rows[:, INDEX], self.steps)

    @property
    def progress(self) -> tuple[int, int]:
        """Generation and steps done; a trial comes before all."""
        return -1 if self.is_trial else self.generation, self.steps

    def make_alone(self, diagnose: bool, *inputs: Tensor) -> None:
        """The student's next step, by itself.

        Args:
            diagnose: see :meth:`~polydistill.learning.lesson.Lesson.tally`.
            inputs: the batch's rows of the plan and, for an objective that wants one, its permutation.
        """
        if self._graphs is None:
            self._make_step(diagnose, *inputs)
        else:
            self._graphs.run(self._make_step, self.tensors, diagnose, *inputs)

    def kind_of_step(self, diagnose: bool, *inputs: Tensor) -> Hashable | None:
        """Steps of one kind are made together by :class:`~polydistill.vision.joint.JointStep`; None: this one is made
        alone, since networks are compiled, hidden states matched, the teacher's scores taken from a store, or batches
        shared by processes."""
        if self.config.compile or self._shared is not None or self.processes.size > 1 or self.lesson.activation_weight:
            return None
        if self._structure is None:
            self._structure = structure_of(self.student)
        shapes = tuple(given.shape for given in inputs)
        images = id(self.data.images), id(self.data.labels), self.captures
        return self._structure, self.lesson.kind, self.update.precision, images, diagnose, shapes

    def settle(self) -> None:
        """The student's weights lie elsewhere than before: records of steps are void, and what goes with each weight
        gets its layout."""
        if self.captures:
            self._graphs = StepGraphs()
        for parameter in self.student.parameters():
            state = self.optimizer.state.get(parameter, {})
            if "momentum_buffer" in state:
                state["momentum_buffer"] = torch.empty_like(parameter).copy_(state["momentum_buffer"]).detach()

    def keep(self) -> None:
        """At the end: the student has these weights, as its own."""
        self._leave_table()

    def _leave_table(self) -> None:
        if self._table is not None:
            self._table.leave()
            self._table = None

    def _back_to_the_bad_step(self, good: dict[str, Any], losses: list[float]) -> NonFiniteError:
        self._leave_table()  # the others do not make these steps again
        return super()._back_to_the_bad_step(good, losses)

    def _make_step(self, diagnose: bool, batch: Tensor, permutation: Tensor | None = None) -> None:
        """The whole step, from the rows of the plan on; this is what a CUDA graph records."""
        images, labels = take_batch(self.data, self.processes.share(batch))
        permutation = None if permutation is None else self.processes.share(permutation)
        with self.processes.peers_needed(among_others=True):
            inputs = self.normalizer(images)
            known = None if self._shared is None else self._teacher_scores(self._shared, inputs)
            scores, teacher, loss = self.update(inputs, labels, len(batch), permutation, known)
            self.note(loss, scores, teacher, labels, diagnose=diagnose)

    def note(self, loss: Tensor, scores: Tensor, teacher: Tensor | None, labels: Tensor, *, diagnose: bool) -> None:
        """What the next report has of a step; see :class:`~polydistill.learning.update.Update` for the tensors."""
        self._note(loss, self.lesson.tally(scores, teacher, labels, diagnose=diagnose))

    def _share(self, store: SharedStore, precision: str) -> EpochScores | None:
        """The scores of the teacher that other runs know too; None: there is no such teacher, or it is not worth it."""
        teacher = self.lesson.teacher
        if not isinstance(teacher, nn.Module) or self.device.type != "cpu" or self.processes.size > 1:
            return None
        if self.lesson.activation_weight:  # the store has no hidden states
            return None
        how = {"precision": precision, "compile": self.config.compile}
        return EpochScores(store, teacher, self.data, self.normalizer, self.config.batch_size, how)

    def _teacher_scores(self, shared: EpochScores, inputs: Tensor) -> Tensor:
        """Of this step's images: from the store, or computed now."""

        def compute() -> Tensor:
            scores = self.update.teacher_scores(inputs)
            assert scores is not None
            return scores

        return shared(self.steps % self.steps_per_epoch, compute)

    def _momentum(self) -> list[Tensor]:
        states = (self.optimizer.state[parameter] for parameter in self.student.parameters())
        return [state["momentum_buffer"] for state in states if "momentum_buffer" in state]

    def tensors(self) -> list[Tensor]:
        """Every tensor that a step changes."""
        return [*self._weights(), *self._momentum(), *self._since_report()]
