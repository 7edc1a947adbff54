"""A student that learns a lesson from batches of labelled play; it knows nothing of who plays, or of the games.

Symbols and contract are those of :mod:`~polydistill_agents.distillation.rounds`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.dqn.policies import QNetwork
from torch import Tensor

from polydistill.learning.lesson import Lesson
from polydistill.learning.rewind import NonFiniteError
from polydistill.learning.update import Update
from polydistill.streams import torch_stream
from polydistill_agents.distillation.rounds import Batch, Round, Rounds
from polydistill_agents.networks.beginning import begin
from polydistill_agents.networks.observations import Tensors
from polydistill_agents.networks.q_scale import find_q_scale
from polydistill_agents.networks.scoring import scoring_of

ONLY = ""  # the name of the task where there is one
INITIAL_STATES = 1024  # states of play from which the scales of inputs, initial weights and Q-values are taken


class Source(Protocol):
    """Labelled play, like a :class:`~polydistill_agents.distillation.replay.Replay`."""

    def batches(self, n_batches: int, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Any, Tensor]]:
        """Observations and teacher scores of batches that ``generator`` draws."""


def label(lesson: Lesson, observations: Tensors, starts: NDArray[np.bool_]) -> Tensor:
    """The ``(n_envs, n_actions)`` scores of a lesson's teacher of the next step of all games; its memory moves on.

    Args:
        lesson: with a teacher.
        observations: as the teacher sees them.
        starts: ``(n_envs,)`` where a new game begins.

    Raises:
        NonFiniteError: the best of a row is not finite. (-inf masks an action, but not all of them.)
    """
    assert lesson.teacher is not None
    teacher: Any = lesson.teacher
    scores: Tensor = teacher.label(observations, starts)
    if not bool(scores.amax(dim=1).isfinite().all()):
        batch = {"observations": observations, "targets": scores}
        raise NonFiniteError("the teacher's scores are not finite", batch)
    return scores


class Learner(Rounds):
    """Student, optimiser, lesson, order of the data, precision: of one task.

    Args:
        student: a Q-network of Stable-Baselines3's extractors, on its device. As long as nobody has set its weights, it
            begins with others, of the scale that the first states of play ask for.
        optimizer: of its parameters.
        lesson: what it learns; its teacher scores observations.
        seed: root of the random streams: the order of the data, and the initial weights.
        generation: of the student.
        precision: of a Nature-CNN's convolutions and hidden layer, "float32" or "bfloat16".
        scaled: whether the scale of its inputs is there already.
        averaging: see :class:`Rounds`.
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
        self.student, self.lesson, self.generation = student, lesson, generation
        self._update = Update(student, lesson, optimizer, score=scoring_of(student, precision))
        self._scaled, self._q_scale, self._on_scale = scaled, find_q_scale(student), False
        super().__init__(student, optimizer, averaging)
        self.start_streams(seed)

    def start_streams(self, seed: int) -> None:
        """Start the random streams from ``seed``."""
        self.seed, self.order = seed, torch_stream(seed, "data order", self.generation)

    def label(self, observations: Tensors, starts: NDArray[np.bool_]) -> Tensor:
        """See :func:`label`."""
        return label(self.lesson, observations, starts)

    def update(self, observations: Tensors, targets: Tensor) -> tuple[Tensor, Tensor]:
        """One update from observations and the teacher's ``(batch, n_actions)`` scores of them.

        Returns:
            The mean loss and the student's scores, both before the update and without a graph.
        """
        scores, _, loss = self._update(observations, None, len(targets), teacher_scores=targets)
        return loss, scores

    def round(self, source: Source, n_updates: int, batch_size: int) -> Round:
        """See :meth:`Rounds.make_round`."""
        return self.make_round(source, n_updates, batch_size)[ONLY]

    def lesson_of(self, task: str) -> Lesson:
        """The one that there is."""
        return self.lesson

    def update_from(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """See :meth:`update`."""
        return self.update(batch.observations, batch.targets)

    def _begin(self, source: Source) -> None:
        generator = torch_stream(self.seed, "initial weights", self.generation)
        seen, targets = next(source.batches(1, INITIAL_STATES, generator))
        begin(self.student, seen, generator, scaled=self._scaled)
        if self._q_scale is not None:
            self._q_scale.fit(targets)
            self._on_scale = True
        self._built_versions = []

    def _stand_ready(self, source: Source) -> None:
        super()._stand_ready(source)
        if self._q_scale is not None and not self._on_scale:  # its weights are those of a file, or were set
            generator = torch_stream(self.seed, "scale of the Q-values", self.generation)
            _, targets = next(source.batches(1, INITIAL_STATES, generator))
            function = self._q_scale.folded()
            self._q_scale.fit(targets)
            self._q_scale.load(function)
            self._on_scale = True

    def load_state(self, state: Mapping[str, Any]) -> None:
        """See :meth:`Rounds.load_state`; the scale of the Q-values is part of it."""
        super().load_state(state)
        self._on_scale = self._q_scale is not None and bool(self._q_scale.is_fitted)

    def _draw(self, source: Source, n_updates: int, batch_size: int, order: torch.Generator) -> Iterator[Batch]:
        for observations, targets in source.batches(n_updates, batch_size, order):
            yield Batch(ONLY, observations, targets)
