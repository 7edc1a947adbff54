"""One generation's training: epochs of updates on images held on the device.

Contract: everything that a step depends on follows from (seed, generation, step) and the state in
:meth:`Trainer.state`, so a trainer that loads the state of another goes on bit for bit as the other would (on a CPU,
with as many threads). Between two reports nothing waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from polydistill.errors import UserError
from polydistill.vision.augmentation import INDEX, Normalizer, draw_plan, take_batch
from polydistill.vision.data import ImageSet
from polydistill.vision.graph import GraphedStep
from polydistill.vision.lesson import Lesson
from polydistill.vision.parallel import ALONE, Processes
from polydistill.vision.schedules import TrainingConfig, schedule_rate
from polydistill.vision.update import Update, make_optimizer


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
    ) -> None:
        if config.batch_size > len(data):
            raise UserError(
                f"training.batch_size is {config.batch_size:,}, but there are {len(data):,} training images"
            )
        if min(config.batch_size, len(data) % config.batch_size or config.batch_size) < processes.size:
            raise UserError(
                f"training.batch_size {config.batch_size} leaves a process without an image in the last batch of "
                f"{len(data):,}, with {processes.size} processes; say another one"
            )
        self.student, self.lesson, self.data, self.normalizer, self.config = student, lesson, data, normalizer, config
        self.seed, self.generation, self.processes = seed, generation, processes
        self.device = data.labels.device
        self.steps_per_epoch = math.ceil(len(data) / config.batch_size)
        self.total_steps = self.steps_per_epoch * config.epochs
        self.steps = 0
        on_gpu = self.device.type == "cuda"
        # on a GPU the rate is a tensor, which a recorded step reads anew each time
        self._rate = torch.tensor(config.learning_rate, device=self.device) if on_gpu else config.learning_rate
        self.optimizer = make_optimizer(student, config, self._rate)
        self._update = Update(
            student, lesson, self.optimizer, precision=precision, processes=processes, compiled=config.compile
        )
        self._losses = torch.zeros(config.log_every_steps, device=self.device)
        self._cursor = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._tally = torch.zeros(len(Lesson.TALLIED), dtype=torch.float64, device=self.device)
        self._plan: tuple[int, Tensor] | None = None
        capture = on_gpu and (config.capture == "on" or (config.capture == "auto" and processes.size == 1))
        self._step = GraphedStep(self._make_step, self._tensors) if capture else self._make_step

    def run(self) -> Iterator[Report]:
        """Train to the end, with a report every ``log_every_steps`` steps and at the end of each epoch.

        Between two reports the student may be evaluated and the state be saved.

        Raises:
            FloatingPointError: the loss is not finite; all is back in the state of the last report, and the message
                says at which step it happened.
        """
        while self.steps < self.total_steps:
            good, first = [tensor.clone() for tensor in self._tensors()], self.steps
            self.student.train()
            epoch, within = divmod(first, self.steps_per_epoch)
            last = min(within + self.config.log_every_steps, self.steps_per_epoch)
            for position in range(within, last):
                self._make_one(epoch, position, diagnose=position == last - 1)
            losses = self.processes.sum_(self._losses[: last - within].clone()).tolist()
            wrong = [index for index, loss in enumerate(losses) if not math.isfinite(loss)]
            if wrong:
                self.steps = first
                for tensor, old in zip(self._tensors(), good, strict=True):
                    tensor.copy_(old)
                raise FloatingPointError(
                    f"the loss {self.lesson.objective} of generation {self.generation} is {losses[wrong[0]]} at step "
                    f"{first + wrong[0] + 1:,} of {self.total_steps:,} (epoch {epoch + 1}, learning rate "
                    f"{schedule_rate(self.config, (first + wrong[0]) / self.total_steps):g})"
                )
            yield self._report(losses, last == self.steps_per_epoch)

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on: tensors and plain values. Copies."""
        return {
            "steps": self.steps,
            "student": {name: tensor.clone() for name, tensor in self.student.state_dict().items()},
            "momentum": [tensor.clone() for tensor in self._momentum()],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state`, of a trainer with the same arguments."""
        self.steps = int(state["steps"])
        self.student.load_state_dict(state["student"])
        for tensor, saved in zip(self._momentum(), state["momentum"], strict=True):
            tensor.copy_(saved)

    def _make_one(self, epoch: int, position: int, *, diagnose: bool) -> None:
        if self._plan is None or self._plan[0] != epoch:
            plan = draw_plan(len(self.data), self.seed, self.generation, epoch, augment=self.config.augment)
            self._plan = (epoch, plan.to(self.device))
        batch = self._plan[1][position * self.config.batch_size : (position + 1) * self.config.batch_size]
        rate = schedule_rate(self.config, self.steps / self.total_steps)
        if isinstance(self._rate, Tensor):
            self._rate.fill_(rate)
        else:
            self.optimizer.param_groups[0]["lr"] = rate
        permutation = self.lesson.draw_permutation(batch[:, INDEX], self.steps)
        parts = [batch] if permutation is None else [batch, permutation]
        self._step(diagnose, *parts)
        self.steps += 1

    def _make_step(self, diagnose: bool, batch: Tensor, permutation: Tensor | None = None) -> None:
        """The whole step, from the rows of the plan on; this is what a CUDA graph records."""
        images, labels = take_batch(self.data, self.processes.share(batch))
        permutation = None if permutation is None else self.processes.share(permutation)
        scores, teacher, loss = self._update(self.normalizer(images), labels, len(batch), permutation)
        self._losses.index_copy_(0, self._cursor, loss.reshape(1).float())
        self._cursor += 1
        self._tally += self.lesson.tally(scores, teacher, labels, diagnose=diagnose)

    def _report(self, losses: list[float], epoch_ends: bool) -> Report:
        tally = self.processes.sum_(self._tally.clone())
        values = {"train/loss": sum(losses) / len(losses), **self.lesson.summarize(tally.tolist())}
        values["train/learning_rate"] = schedule_rate(self.config, (self.steps - 1) / self.total_steps)
        self._tally.zero_()
        self._cursor.zero_()
        epochs, rest = divmod(self.steps, self.steps_per_epoch)
        samples = epochs * len(self.data) + rest * self.config.batch_size
        self.processes.average_buffers_(self.student)  # so that all processes are in the same state at a report
        return Report(self.steps, samples, epochs, epoch_ends, values)

    def _momentum(self) -> list[Tensor]:
        states = (self.optimizer.state[parameter] for parameter in self.student.parameters())
        return [state["momentum_buffer"] for state in states if "momentum_buffer" in state]

    def _tensors(self) -> list[Tensor]:
        """Every tensor that a step changes."""
        own = [self._losses, self._cursor, self._tally]
        with torch.no_grad():
            return [*(p.detach() for p in self.student.parameters()), *self.student.buffers(), *self._momentum(), *own]
