"""A student that learns the lessons of several tasks, each in its own head, one batch from one task at a time.

As the multi-task agents of Rusu et al. (2016): each task has a replay of its own, and a minibatch is from one task that
is drawn at random. Symbols: w_i the weight of task i, d_i its gap: the share of its samples in which the student's
greedy action is not its teacher's, as a running mean over rounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polydistill.errors import require_choice
from polydistill.learning.lesson import Lesson
from polydistill.learning.update import Update
from polydistill.streams import torch_stream
from polydistill_agents.distillation.learner import Source, label
from polydistill_agents.distillation.rounds import Batch, Round, Rounds
from polydistill_agents.distillation.settings import positive_number
from polydistill_agents.networks.beginning import begin_multitask
from polydistill_agents.networks.multitask import MultitaskNetwork
from polydistill_agents.networks.observations import Tensors
from polydistill_agents.networks.scoring import scoring_of

INITIAL_STATES = 512  # of each task, from which the scale of the inputs and of the initial weights is taken
WEIGHTINGS = ("equal", "gap")
MEMORY = 0.1  # of the running mean of a gap, the newest round
LEAST = 0.1  # of the mean gap, that each task keeps: what is learned is forgotten where nothing reminds of it
MOST_SEED = 2**62


class MultitaskLearner(Rounds):
    """Student, optimiser, lessons, order of the data, precision: of several tasks.

    Args:
        student: on its device. As long as nobody has set its weights, it begins with others, of the scale that the
            first states of all tasks ask for.
        optimizer: of its parameters.
        lessons: what is learned in each task of the student; each with its own teacher, kind of scores and temperature.
        weighting: "equal": the tasks are drawn by ``weights``; "gap": by ``weights`` times their gaps.
        weights: of the tasks, positive; None: all are 1.
        seed: root of the random streams: tasks, order of the data, initial weights.
        generation: of the student.
        precision: as of :class:`~polydistill_agents.distillation.learner.Learner`.
        averaging: see :class:`~polydistill_agents.distillation.rounds.Rounds`.

    Attributes:
        gaps: d_i so far, 1 before the first round.
    """

    def __init__(
        self,
        student: MultitaskNetwork,
        optimizer: torch.optim.Optimizer,
        lessons: Mapping[str, Lesson],
        *,
        seed: int,
        weighting: str = "equal",
        weights: Mapping[str, float] | None = None,
        generation: int = 1,
        precision: str = "float32",
        averaging: float = 0.0,
    ) -> None:
        require_choice("weighting", weighting, WEIGHTINGS)
        self.student, self.lessons, self.weighting, self.generation = student, dict(lessons), weighting, generation
        self.weights = {name: 1.0 if weights is None else float(weights[name]) for name in lessons}
        for name, weight in self.weights.items():
            positive_number(f"the weight of {name}", weight)
        self._updates = {
            name: Update(student.of(name), lesson, optimizer, score=scoring_of(student.of(name), precision))
            for name, lesson in lessons.items()
        }
        self.gaps = dict.fromkeys(lessons, 1.0)
        super().__init__(student, optimizer, averaging)
        self.start_streams(seed)

    def start_streams(self, seed: int) -> None:
        """Start the random streams from ``seed``."""
        self.seed, self.order = seed, torch_stream(seed, "data order", self.generation)

    def lesson_of(self, task: str) -> Lesson:
        """Its own."""
        return self.lessons[task]

    def update_from(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """One update of the torso and of the task's head; the other heads, and their moments, stay as they are."""
        update = self._updates[batch.task]
        scores, _, loss = update(batch.observations, None, len(batch.targets), teacher_scores=batch.targets)
        return loss, scores

    def shares(self) -> dict[str, float]:
        r"""The probability of each task to be that of the next batch.

        .. math:: \text{equal: } w_i, \quad \text{gap: } w_i (d_i + \bar d / 10), \quad \text{divided by their sum}
        """
        mean = sum(self.gaps.values()) / len(self.gaps)
        asked = dict(self.weights)
        if self.weighting == "gap" and mean > 0:
            asked = {name: weight * (self.gaps[name] + LEAST * mean) for name, weight in asked.items()}
        whole = sum(asked.values())
        return {name: weight / whole for name, weight in asked.items()}

    def round(self, sources: Mapping[str, Source], n_updates: int, batch_size: int) -> dict[str, Round]:
        """See :meth:`~polydistill_agents.distillation.rounds.Rounds.make_round`; a task may come in no batch."""
        rounds = self.make_round(sources, n_updates, batch_size)
        for name, done in rounds.items():
            self.gaps[name] += MEMORY * (1.0 - done.agreement - self.gaps[name])
        return rounds

    def _begin(self, sources: Mapping[str, Source]) -> None:
        generator = torch_stream(self.seed, "initial weights", self.generation)
        first = {name: next(source.batches(1, INITIAL_STATES, generator)) for name, source in sources.items()}
        begin_multitask(self.student, {name: seen for name, (seen, _) in first.items()}, generator)
        for head, scale in self.student.q_scales().items():
            own = [targets.flatten() for name, (_, targets) in first.items() if head in (name, "all")]
            scale.fit(torch.cat(own))
        self._built_versions = []

    def _draw(
        self, sources: Mapping[str, Source], n_updates: int, batch_size: int, order: torch.Generator
    ) -> Iterator[Batch]:
        names, shares = list(self.lessons), self.shares()
        asked = torch.tensor([shares[name] for name in names], dtype=torch.float64)
        drawn = torch.multinomial(asked, n_updates, replacement=True, generator=order).tolist()
        seeds = torch.randint(MOST_SEED, (len(names),), generator=order).tolist()  # each task draws on its own
        batches = {
            place: sources[names[place]].batches(
                drawn.count(place), batch_size, torch.Generator().manual_seed(seeds[place])
            )
            for place in set(drawn)
        }
        for place in drawn:
            yield Batch(names[place], *next(batches[place]))

    def state(self, device: str | None = None) -> dict[str, Any]:
        """See :meth:`~polydistill_agents.distillation.rounds.Rounds.state`; the gaps too."""
        return {**super().state(device), "gaps": dict(self.gaps)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put :meth:`state` back."""
        super().load_state(state)
        self.gaps = dict(state["gaps"])


class Part:
    """A learner of several tasks as whoever plays one of them sees it. Its weights are kept with the others'.

    Args:
        lesson: of the task.

    Attributes:
        whole: the learner, once it is there.
    """

    whole: MultitaskLearner | None = None

    def __init__(self, lesson: Lesson) -> None:
        self.lesson = lesson

    @property
    def untouched(self) -> bool:
        """See :attr:`~polydistill_agents.distillation.rounds.Rounds.untouched`."""
        return self.whole is None or self.whole.untouched

    def start_streams(self, seed: int) -> None:
        """They belong to the whole."""

    def label(self, observations: Tensors, starts: NDArray[np.bool_]) -> Tensor:
        """See :func:`~polydistill_agents.distillation.learner.label`."""
        return label(self.lesson, observations, starts)

    def state(self, device: str | None = None) -> dict[str, Any]:
        """Nothing of its own."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Nothing of its own."""
