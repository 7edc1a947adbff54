"""A student that learns a lesson from batches of labelled play; it knows nothing of who plays, or of the games.

Symbols: z student scores, t teacher scores. Contract: a round of updates waits for the device once, at its end; where
one of them went wrong, the student is put back to just before that one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.dqn.policies import QNetwork
from torch import Tensor

from polydistill.learning.average import WeightAverage
from polydistill.learning.lesson import Lesson
from polydistill.learning.rewind import NonFiniteError, rewind
from polydistill.learning.update import Update
from polydistill.losses import gradient_shares
from polydistill.streams import torch_stream
from polydistill_agents.distillation.state import copied
from polydistill_agents.networks.beginning import begin
from polydistill_agents.networks.observations import Tensors
from polydistill_agents.networks.regret import regrets, values_of
from polydistill_agents.networks.scoring import scoring_of

INITIAL_STATES = 1024  # states of play from which the scale of the inputs and of the initial weights is taken


class Source(Protocol):
    """Labelled play, like a :class:`~polydistill_agents.distillation.replay.Replay`."""

    def batches(self, n_batches: int, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Any, Tensor]]:
        """Observations and teacher scores of batches that ``generator`` draws."""


class Round(NamedTuple):
    """Means over a round of updates.

    Attributes:
        loss: before each update.
        agreement: share of the samples for which student and teacher choose the same action.
        regret: of the student's actions by its teacher's scores, see :mod:`polydistill_agents.networks.regret`.
        label_share: of the last batch, see :func:`polydistill.losses.gradient_shares`; None after a regression.
    """

    loss: float
    agreement: float
    regret: float
    label_share: float | None


class Learner:
    """Student, optimiser, lesson, order of the data, precision.

    Args:
        student: a Q-network of Stable-Baselines3's extractors, on its device. As long as nobody has set its weights, it
            begins with others, of the scale that the first states of play ask for.
        optimizer: of its parameters.
        lesson: what it learns; its teacher scores observations.
        seed: root of the random streams: the order of the data, and the initial weights.
        generation: of the student.
        precision: of a Nature-CNN's convolutions and hidden layer, "float32" or "bfloat16".
        scaled: whether the scale of its inputs is there already.
        averaging: share of the updates so far over which its weights are averaged, see
            :class:`~polydistill.learning.average.WeightAverage`; 0: they are not. Between two rounds the student has
            the mean, in a round what learns.
    """

    def __init__(
        self,
        student: QNetwork,
        optimizer: torch.optim.Optimizer,
        lesson: Lesson,
        *,
        seed: int,
        generation: int = 1,
        precision: str = "float32",
        scaled: bool = False,
        averaging: float = 0.0,
    ) -> None:
        self.student, self.optimizer, self.lesson, self.generation = student, optimizer, lesson, generation
        self._update = Update(student, lesson, optimizer, score=scoring_of(student, precision))
        self._scaled = scaled
        self._average = WeightAverage(student, averaging) if averaging else None
        self._built_versions = self._weight_versions()
        self.start_streams(seed)

    def start_streams(self, seed: int) -> None:
        """Start the random streams from ``seed``."""
        self.seed, self.order = seed, torch_stream(seed, "data order", self.generation)

    @property
    def untouched(self) -> bool:
        """Whether the weights are those that were built: nobody has set others."""
        return self._weight_versions() == self._built_versions

    def _weight_versions(self) -> list[tuple[int, int]]:
        """Changes whenever a weight of the student is written or replaced."""
        return [(id(weight), weight._version) for weight in self.student.parameters()]

    def label(self, observations: Tensors, starts: NDArray[np.bool_]) -> Tensor:
        """The teacher's ``(n_envs, n_actions)`` scores of the next step of all games; a memory of them moves on.

        Args:
            observations: as the teacher sees them.
            starts: ``(n_envs,)`` where a new game begins.

        Raises:
            NonFiniteError: the best of a row is not finite. (-inf masks an action, but not all of them.)
        """
        assert self.lesson.teacher is not None
        teacher: Any = self.lesson.teacher
        scores: Tensor = teacher.label(observations, starts)
        if not bool(scores.amax(dim=1).isfinite().all()):
            batch = {"observations": observations, "targets": scores}
            raise NonFiniteError("the teacher's scores are not finite", batch)
        return scores

    def update(self, observations: Tensors, targets: Tensor) -> tuple[Tensor, Tensor]:
        """One update from observations and the teacher's ``(batch, n_actions)`` scores of them.

        Returns:
            The mean loss and the student's scores, both before the update and without a graph.
        """
        scores, _, loss = self._update(observations, None, len(targets), teacher_scores=targets)
        return loss, scores

    def round(self, source: Source, n_updates: int, batch_size: int) -> Round:
        """Make ``n_updates`` updates of ``batch_size`` samples each.

        Raises:
            NonFiniteError: a loss or a weight is not; the student is as it was before that update. The batch has its
                ``observations``, ``targets``, ``loss``, and which ``update`` of the round it was, counted from 1.
        """
        if self.untouched:
            self._begin(source)
        if self._average is not None:
            self._average.hide()
        self.student.train()
        good = self.state()
        each_loss, each_scores, each_targets = [], [], []
        for observations, targets in source.batches(n_updates, batch_size, self.order):
            loss_before, scores = self._update_in_round(observations, targets)
            each_loss.append(loss_before)
            each_scores.append(scores)
            each_targets.append(targets)
        losses = torch.stack(each_loss)
        chosen, all_targets = torch.cat(each_scores).argmax(dim=1), torch.cat(each_targets)
        agreement = (chosen == all_targets.argmax(dim=1)).float().mean()
        regret = regrets(values_of(all_targets, self.lesson.teacher_kind), chosen).mean()
        share, learns_logits = losses.new_zeros(()), self.lesson.score_kind == "logits"
        if learns_logits:
            share = gradient_shares(scores, targets, temperature=self.lesson.temperature).label_share.mean()
        numbers = torch.stack([losses.mean(), agreement, regret, share, self._all_finite()])
        loss, agreed, lost, label_share, finite = numbers.tolist()  # the only wait for the device
        if not (math.isfinite(loss) and finite):
            raise self._back_to_the_bad_update(good, losses.tolist(), source, batch_size)
        self._end_round()
        return Round(loss, agreed, lost, label_share if learns_logits else None)

    def _update_in_round(self, observations: Tensors, targets: Tensor) -> tuple[Tensor, Tensor]:
        done = self.update(observations, targets)
        if self._average is not None:
            self._average.add()
        return done

    def _end_round(self) -> None:
        if self._average is not None and self._average.updates:
            self._average.show()
        self.student.eval()

    def _begin(self, source: Source) -> None:
        generator = torch_stream(self.seed, "initial weights", self.generation)
        seen, _ = next(source.batches(1, INITIAL_STATES, generator))
        begin(self.student, seen, generator, scaled=self._scaled)
        self._built_versions = []

    def _all_finite(self) -> Tensor:
        """Whether every weight is: one bool on the device, which is not waited for."""
        ends = [end for weight in self.student.parameters() for end in torch.aminmax(weight.detach())]
        return torch.stack(ends).isfinite().all()  # NaN is an end too; isfinite of each number takes ten times as long

    def _back_to_the_bad_update(
        self, good: Mapping[str, Any], losses: list[float], source: Source, batch_size: int
    ) -> NonFiniteError:
        """Go back to just before the first update that went wrong, see :func:`~polydistill.learning.rewind.rewind`."""

        def draw_again() -> Iterator[tuple[Any, Tensor]]:
            return source.batches(len(losses), batch_size, torch.Generator().set_state(good["order"]))

        batches = draw_again()
        index = rewind(
            self, good, losses, lambda _: self._update_in_round(*next(batches)), lambda: bool(self._all_finite())
        )
        self._end_round()
        observations, targets = next(islice(draw_again(), index, None))
        loss = losses[index]
        what = f"is {loss}" if not math.isfinite(loss) else "leads to infinite weights"
        batch = {"observations": observations, "targets": targets, "loss": loss, "update": index + 1}
        return NonFiniteError(f"the loss {self.lesson.objective} {what}", batch)

    def state(self, device: str | None = None) -> dict[str, Any]:
        """All that updates read and write, as tensors and plain values. A copy, on ``device`` if given."""
        averaged = {} if self._average is None else {"average": copied(self._average.state(), device)}
        return {
            "untouched": self.untouched,
            "weights": copied(self.student.state_dict(), device),
            "optimizer": copied(self.optimizer.state_dict(), device),
            "order": self.order.get_state(),
            **averaged,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put :meth:`state` back, in place: whoever holds the student and the optimiser keeps them."""
        self.student.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(copied(state["optimizer"]))  # torch would keep the tensors it is given
        self.order.set_state(state["order"])
        if self._average is not None:
            self._average.load_state(state.get("average", {"updates": 0, "aside": []}))  # earlier ones have none
        if state["untouched"]:
            self._built_versions = self._weight_versions()  # learning still begins with data-dependent weights
