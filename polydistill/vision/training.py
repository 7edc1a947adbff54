"""One generation's training: epochs of updates on images held on the device.

Contract: everything that a step depends on follows from (seed, generation, step) and the state in
:meth:`Trainer.state`, so a trainer that loads the state of another goes on bit for bit as the other would (on a CPU,
with as many threads), between two reports too. Between two reports nothing waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from polydistill.errors import UserError
from polydistill.learning.graphs import StepGraphs
from polydistill.learning.lesson import Lesson, Tally
from polydistill.learning.processes import ALONE, Processes
from polydistill.learning.rewind import NonFiniteError, rewind
from polydistill.learning.schedules import TrainingConfig, schedule_rate
from polydistill.learning.update import Update, make_optimizer
from polydistill.runs.shared_store import SharedStore
from polydistill.vision.epoch_scores import EpochScores
from polydistill.vision.images.augmentation import INDEX, Normalizer, draw_plan, take_batch
from polydistill.vision.images.data import ImageSet


class Report(NamedTuple):
    """Where a trainer is, with the means since the report before.

    Attributes:
        steps: updates done.
        samples: images seen by all processes.
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


class Trainer:
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

    Raises:
        UserError: the batch is larger than the data.
    """

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
        self.student, self.lesson, self.data, self.normalizer, self.config = student, lesson, data, normalizer, config
        self.seed, self.generation, self.processes = seed, generation, processes
        self.device = data.labels.device
        self.steps_per_epoch = math.ceil(len(data) / config.batch_size)
        self.total_steps = self.steps_per_epoch * config.epochs
        self.steps = 0
        on_gpu = self.device.type == "cuda"
        # on a GPU the rate is a tensor, which a recorded step reads each time
        self._rate = torch.tensor(config.learning_rate, device=self.device) if on_gpu else config.learning_rate
        self.optimizer = make_optimizer(student, config, self._rate)
        self._update = Update(
            student, lesson, self.optimizer, precision=precision, processes=processes, compiled=config.compile
        )
        self._losses = torch.zeros(config.log_every_steps, device=self.device)
        self._cursor = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._tally = torch.zeros(len(Tally._fields), dtype=torch.float64, device=self.device)
        self._plan: tuple[int, Tensor] | None = None
        self._shared = None if store is None else self._share(store, precision)
        capture = on_gpu and (config.capture == "on" or (config.capture == "auto" and processes.size == 1))
        self._graphs = StepGraphs() if capture else None

    @property
    def samples(self) -> int:
        """Images seen so far, by all processes."""
        epochs, rest = divmod(self.steps, self.steps_per_epoch)
        return epochs * len(self.data) + rest * self.config.batch_size

    def run(self, pause: Callable[[int], bool] = never) -> Iterator[Report]:
        """Train to the end, with a report every ``log_every_steps`` steps and at the end of each epoch.

        Between two reports the student may be evaluated and the state be saved.

        Args:
            pause: is asked after each step (of several processes: at each report, and by all), with the steps done so
                far, whether to leave; another call of this method goes on.

        Raises:
            NonFiniteError: at the latest before the next report or pause; the trainer is in the state before the first
                bad step. Its batch is what that step was given: ``rows`` of the plan, ``images`` as the network sees
                them, ``labels``, ``permutation`` (or None), ``loss``, and ``step``, counted from 1.
        """
        while self.steps < self.total_steps:
            good, within = self.state(), self.steps % self.steps_per_epoch
            self.student.train()
            start = within - within % self.config.log_every_steps  # where the report before was
            last = min(start + self.config.log_every_steps, self.steps_per_epoch)
            paused = False
            for position in range(within, last):
                self._make_one(position, diagnose=position == last - 1)
                paused = position < last - 1 and self.processes.size == 1 and pause(self.steps)
                if paused:
                    break
            losses = self.processes.sum_(self._losses[: position + 1 - start].clone()).tolist()
            if not (all(map(math.isfinite, losses)) and self._student_is_finite()):
                raise self._back_to_the_bad_step(good, losses[within - start :])
            if paused:
                return
            yield self._report(losses, last == self.steps_per_epoch)
            if pause(self.steps):
                return

    def _student_is_finite(self) -> bool:
        """Whether all weights and running statistics are, in all processes."""
        floats = [tensor for tensor in self._weights() if tensor.is_floating_point()]
        wrong = torch.stack([tensor.isfinite().all() for tensor in floats]).logical_not().sum()
        return not self.processes.sum_(wrong).item()

    def _back_to_the_bad_step(self, good: dict[str, Any], losses: list[float]) -> NonFiniteError:
        """Go back to just before the first step that went wrong, see :func:`~polydistill.learning.rewind.rewind`.

        Args:
            good: the state before these steps.
            losses: of them.
        """

        def make_again(index: int) -> None:
            self._make_one(self.steps % self.steps_per_epoch, diagnose=False)

        loss = losses[rewind(self, good, losses, make_again, self._student_is_finite)]
        epoch, position = divmod(self.steps, self.steps_per_epoch)
        rows, permutation = self._prepare(position)
        images, labels = take_batch(self.data, rows)
        rate = schedule_rate(self.config, self.steps / self.total_steps)
        what = f"is {loss}" if not math.isfinite(loss) else "leads to weights that are not finite"
        return NonFiniteError(
            f"the loss {self.lesson.objective} of generation {self.generation} {what} at step "
            f"{self.steps + 1:,} of {self.total_steps:,} (epoch {epoch + 1}, learning rate {rate:g})",
            {
                "step": self.steps + 1,
                "loss": loss,
                "rows": rows,
                "images": self.normalizer(images),
                "labels": labels,
                "permutation": permutation,
            },
        )

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on: tensors and plain values. Copies."""
        return {
            "steps": self.steps,
            "student": {name: tensor.clone() for name, tensor in self.student.state_dict().items()},
            "momentum": [tensor.clone() for tensor in self._momentum()],
            "since_report": [tensor.clone() for tensor in self._since_report()],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state`, of a trainer with the same arguments."""
        self.steps = int(state["steps"])
        self.student.load_state_dict(state["student"])
        tensors, saved = [*self._momentum(), *self._since_report()], [*state["momentum"], *state["since_report"]]
        for tensor, value in zip(tensors, saved, strict=True):
            tensor.copy_(value)

    def _make_one(self, position: int, *, diagnose: bool) -> None:
        """The next step, which is the one at ``position`` of its epoch."""
        batch, permutation = self._prepare(position)
        rate = schedule_rate(self.config, self.steps / self.total_steps)
        if isinstance(self._rate, Tensor):
            self._rate.fill_(rate)
        else:
            self.optimizer.param_groups[0]["lr"] = rate
        self._step(diagnose, *([batch] if permutation is None else [batch, permutation]))
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

    def _step(self, diagnose: bool, *inputs: Tensor) -> None:
        if self._graphs is None:
            self._make_step(diagnose, *inputs)
        else:
            self._graphs.run(self._make_step, self._tensors, diagnose, *inputs)

    def _make_step(self, diagnose: bool, batch: Tensor, permutation: Tensor | None = None) -> None:
        """The whole step, from the rows of the plan on; this is what a CUDA graph records."""
        images, labels = take_batch(self.data, self.processes.share(batch))
        permutation = None if permutation is None else self.processes.share(permutation)
        with self.processes.peers_needed(among_others=True):
            inputs = self.normalizer(images)
            known = None if self._shared is None else self._teacher_scores(self._shared, inputs)
            scores, teacher, loss = self._update(inputs, labels, len(batch), permutation, known)
            self._tally += self.lesson.tally(scores, teacher, labels, diagnose=diagnose)
        self._losses.index_copy_(0, self._cursor, loss.reshape(1).float())
        self._cursor += 1

    def _share(self, store: SharedStore, precision: str) -> EpochScores | None:
        """The scores of the teacher that other runs know too; None: there is no such teacher, or it is not worth it."""
        teacher = self.lesson.teacher
        if not isinstance(teacher, nn.Module) or self.device.type != "cpu" or self.processes.size > 1:
            return None
        how = {"precision": precision, "compile": self.config.compile}
        return EpochScores(store, teacher, self.data, self.normalizer, self.config.batch_size, how)

    def _teacher_scores(self, shared: EpochScores, inputs: Tensor) -> Tensor:
        """Of this step's images: from the store, or computed now."""

        def compute() -> Tensor:
            scores = self._update.teacher_scores(inputs)
            assert scores is not None
            return scores

        return shared(self.steps % self.steps_per_epoch, compute)

    def _report(self, losses: list[float], epoch_ends: bool) -> Report:
        tally = self.processes.sum_(self._tally.clone())
        values = {"train/loss": sum(losses) / len(losses), **self.lesson.summarize(tally.tolist())}
        values["train/learning_rate"] = schedule_rate(self.config, (self.steps - 1) / self.total_steps)
        self._tally.zero_()
        self._cursor.zero_()
        self.processes.average_buffers_(self.student)  # so that all processes are in the same state at a report
        return Report(self.steps, self.samples, self.steps // self.steps_per_epoch, epoch_ends, values)

    def _momentum(self) -> list[Tensor]:
        states = (self.optimizer.state[parameter] for parameter in self.student.parameters())
        return [state["momentum_buffer"] for state in states if "momentum_buffer" in state]

    def _since_report(self) -> list[Tensor]:
        """What the next report is made from; with several processes it is this one's part, and zero at a report."""
        return [self._losses, self._cursor, self._tally]

    def _tensors(self) -> list[Tensor]:
        """Every tensor that a step changes."""
        return [*self._weights(), *self._momentum(), *self._since_report()]

    def _weights(self) -> list[Tensor]:
        """The student's, and its running statistics."""
        return [*(parameter.detach() for parameter in self.student.parameters()), *self.student.buffers()]
