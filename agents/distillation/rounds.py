"""A round of updates of a student, of one task or of several, and the way back from a bad update.

What is learned in an update is known by the name of its task. Symbols: z student scores, t teacher scores. Contract: a
round waits for the device once, at its end; where one of its updates went wrong, the student is put back to just before
that one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from polydistill.learning.average import WeightAverage
from polydistill.learning.lesson import Lesson
from polydistill.learning.rewind import NonFiniteError, rewind
from polydistill.losses import gradient_shares
from polydistill_agents.distillation.state import copied
from polydistill_agents.networks.regret import q_errors, regrets, values_of

MEASURES = 6  # of a round


class QErrors(NamedTuple):
    """By how much the student's Q-values are too high, in their unit; see :func:`q_errors`.

    Attributes:
        best: its greatest against the teacher's greatest.
        worst: its value of the action that the teacher finds worst.
    """

    best: float
    worst: float


class Round(NamedTuple):
    """Means over a round of updates.

    Attributes:
        loss: before each update.
        agreement: share of the samples for which student and teacher choose the same action.
        regret: of the student's actions by its teacher's scores, see :mod:`polydistill_agents.networks.regret`.
        label_share: of the last batch, see :func:`polydistill.losses.gradient_shares`; None after a regression.
        errors: of Q-values; None where the student's scores are logits.
    """

    loss: float
    agreement: float
    regret: float
    label_share: float | None
    errors: QErrors | None


class Batch(NamedTuple):
    """Of one task: observations, and the teacher's ``(batch, n_actions)`` scores of them."""

    task: str
    observations: Any
    targets: Tensor


class Done(NamedTuple):
    """What an update leaves for the report of its round: loss and scores before it, ``()`` and as ``targets``."""

    task: str
    loss: Tensor
    scores: Tensor
    targets: Tensor


class Rounds(ABC):
    """Rounds of updates of one student, each update of a batch of one task.

    Args:
        student: whose weights learn, in all tasks; on its device.
        optimizer: of its parameters.
        averaging: share of the updates so far over which its weights are averaged, see
            :class:`~polydistill.learning.average.WeightAverage`; 0: they are not. Between two rounds the student has
            the mean, in a round what learns.

    Attributes:
        order: random stream of what is drawn; a subclass begins it.
    """

    order: torch.Generator

    def __init__(self, student: nn.Module, optimizer: torch.optim.Optimizer, averaging: float) -> None:
        self._student, self.optimizer = student, optimizer
        self._average = WeightAverage(student, averaging) if averaging else None
        self._built_versions = self._weight_versions()

    @abstractmethod
    def lesson_of(self, task: str) -> Lesson:
        """What is learned in a task."""

    @abstractmethod
    def update_from(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """One update; mean loss and scores before it, without a graph."""

    @abstractmethod
    def _begin(self, source: Any) -> None:
        """Give the student its first weights, from the first states of ``source``."""

    @abstractmethod
    def _draw(self, source: Any, n_updates: int, batch_size: int, order: torch.Generator) -> Iterator[Batch]:
        """The batches of a round; all random numbers come from ``order``."""

    @property
    def untouched(self) -> bool:
        """Whether the weights are those that were built: nobody has set others."""
        return self._weight_versions() == self._built_versions

    def _weight_versions(self) -> list[tuple[int, int]]:
        """Changes whenever a weight of the student is written or replaced."""
        return [(id(weight), weight._version) for weight in self._student.parameters()]

    def _stand_ready(self, source: Any) -> None:
        """What must be there before the updates of a round."""
        if self.untouched:
            self._begin(source)

    def make_round(self, source: Any, n_updates: int, batch_size: int) -> dict[str, Round]:
        """Make ``n_updates`` updates of ``batch_size`` samples each; the means of each task that was met.

        Raises:
            NonFiniteError: a loss or a weight is not; the student is as it was before that update. The batch has its
                ``observations``, ``targets``, ``loss``, and which ``update`` of the round it was, counted from 1.
        """
        self._stand_ready(source)
        if self._average is not None:
            self._average.hide()
        self._student.train()
        good = self.state()
        done = [
            Done(batch.task, *self._update_in_round(batch), batch.targets)
            for batch in self._draw(source, n_updates, batch_size, self.order)
        ]
        of_tasks = {task: [each for each in done if each.task == task] for task in dict.fromkeys(d.task for d in done)}
        measured = [self._measure(self.lesson_of(task), each) for task, each in of_tasks.items()]
        numbers = torch.cat([*measured, self._all_finite()[None]]).tolist()  # the only wait for the device
        rounds = {
            task: self._round_of(task, *numbers[MEASURES * place : MEASURES * (place + 1)])
            for place, task in enumerate(of_tasks)
        }
        if not (all(math.isfinite(each.loss) for each in rounds.values()) and numbers[-1]):
            losses = torch.stack([each.loss for each in done]).tolist()
            raise self._back_to_the_bad_update(good, losses, source, batch_size)
        self._end_round()
        return rounds

    def _measure(self, lesson: Lesson, done: Sequence[Done]) -> Tensor:
        """The numbers of a :class:`Round`, on the device: ``(MEASURES,)``."""
        losses, of_student = torch.stack([each.loss for each in done]), torch.cat([each.scores for each in done])
        chosen = of_student.argmax(dim=1)
        targets = torch.cat([each.targets for each in done])
        agreement = (chosen == targets.argmax(dim=1)).float().mean()
        regret = regrets(values_of(targets, lesson.teacher_kind), chosen).mean()
        share = best = worst = losses.new_zeros(())
        if lesson.score_kind == "logits":
            scores, last = done[-1].scores, done[-1].targets
            share = gradient_shares(scores, last, temperature=lesson.temperature).label_share.mean()
        else:
            best, worst = (errors.mean() for errors in q_errors(of_student, targets))
        return torch.stack([losses.mean(), agreement, regret, share, best, worst])

    def _round_of(
        self, task: str, loss: float, agreement: float, regret: float, share: float, best: float, worst: float
    ) -> Round:
        learns_logits = self.lesson_of(task).score_kind == "logits"
        errors = None if learns_logits else QErrors(best, worst)
        return Round(loss, agreement, regret, share if learns_logits else None, errors)

    def _update_in_round(self, batch: Batch) -> tuple[Tensor, Tensor]:
        done = self.update_from(batch)
        if self._average is not None:
            self._average.add()
        return done

    def _end_round(self) -> None:
        if self._average is not None and self._average.updates:
            self._average.show()
        self._student.eval()

    def _all_finite(self) -> Tensor:
        """Whether every weight is: one bool on the device, which is not waited for."""
        ends = [end for weight in self._student.parameters() for end in torch.aminmax(weight.detach())]
        return torch.stack(ends).isfinite().all()  # NaN is an end too; isfinite of each number takes ten times as long

    def _back_to_the_bad_update(
        self, good: Mapping[str, Any], losses: list[float], source: Any, batch_size: int
    ) -> NonFiniteError:
        """Go back to just before the first update that went wrong, see :func:`~polydistill.learning.rewind.rewind`."""

        def draw_again() -> Iterator[Batch]:
            return self._draw(source, len(losses), batch_size, torch.Generator().set_state(good["order"]))

        batches = draw_again()
        index = rewind(
            self, good, losses, lambda _: self._update_in_round(next(batches)), lambda: bool(self._all_finite())
        )
        self._end_round()
        task, observations, targets = next(islice(draw_again(), index, None))
        loss = losses[index]
        what = f"is {loss}" if not math.isfinite(loss) else "leads to infinite weights"
        batch = {"observations": observations, "targets": targets, "loss": loss, "update": index + 1}
        where = f"{task}: " if task else ""
        return NonFiniteError(f"{where}the loss {self.lesson_of(task).objective} {what}", batch)

    def state(self, device: str | None = None) -> dict[str, Any]:
        """All that updates read and write, as tensors and plain values. A copy, on ``device`` if given."""
        averaged = {} if self._average is None else {"average": copied(self._average.state(), device)}
        return {
            "untouched": self.untouched,
            "weights": copied(self._student.state_dict(), device),
            "optimizer": copied(self.optimizer.state_dict(), device),
            "order": self.order.get_state(),
            **averaged,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put :meth:`state` back, in place: whoever holds the student and the optimiser keeps them."""
        self._student.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(copied(state["optimizer"]))  # torch would keep the tensors it is given
        self.order.set_state(state["order"])
        if self._average is not None:
            self._average.load_state(state.get("average", {"updates": 0, "aside": []}))  # earlier ones have none
        if state["untouched"]:
            self._built_versions = self._weight_versions()  # learning still begins with data-dependent weights
