"""What was observed in play, and the teacher's scores beside it: of it a student's batches are drawn.

Contract: what is drawn is what was observed; equal steps put into an empty replay bring it to the same place again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from polydistill_agents.networks.observations import Arrays, Tensors, each, example, leaves, take, to_tensors

GATHERED_AT_ONCE = 2**18  # bytes: of small samples several batches, since each gathering takes as long as a layer


class Replay(ABC):
    """The last ``capacity`` samples (observation, teacher's scores), gathered on ``device``.

    Args:
        capacity: samples kept; a multiple of ``n_envs`` (whole steps leave together).
        n_envs: games played at once.
        n_scores: scores per sample (actions).
        device: where the samples lie and batches are gathered.

    Raises:
        ValueError: a capacity of no whole step, or one below ``n_envs``.
    """

    def __init__(self, capacity: int, n_envs: int, n_scores: int, device: torch.device | str = "cpu") -> None:
        if capacity < n_envs or capacity % n_envs:
            raise ValueError(f"the capacity must be a positive multiple of {n_envs} games, got {capacity}")
        self.n_envs = n_envs
        self.n_rows = capacity // n_envs  # one row per step of all games
        self.scores = torch.empty((self.n_rows, n_envs, n_scores), dtype=torch.float32, device=device)
        self._rows_added = 0
        self._first_row = 0

    def __len__(self) -> int:
        """Samples that can be drawn."""
        return (self._rows_added - self._first_row) * self.n_envs

    @property
    def full(self) -> bool:
        """Whether the oldest samples have been left out already."""
        return self._first_row > 0

    @property
    @abstractmethod
    def n_bytes(self) -> int:
        """Memory that it takes when full, in bytes."""

    @abstractmethod
    def position(self) -> dict[str, int]:
        """How far it is: the same steps put into an empty replay bring it there again, bit for bit."""

    @abstractmethod
    def add(self, observations: Any, scores: Tensor, starts: NDArray[np.bool_]) -> None:
        """Append one step of all games.

        Args:
            observations: of ``n_envs`` games.
            scores: ``(n_envs, n_scores)`` teacher scores of these observations.
            starts: ``(n_envs,)`` True where the observation is the first of a game.
        """

    def batches(self, n_batches: int, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Any, Tensor]]:
        """Draw batches uniformly, with replacement; all numbers at once, so that a GPU waits for one transfer only.

        Args:
            n_batches: batches to draw.
            batch_size: samples in each.
            generator: random numbers, on the CPU.

        Yields:
            Observations of ``batch_size`` samples, as they were observed, and teacher scores ``(batch, n_scores)``
            float32.

        Raises:
            ValueError: the replay is empty.
        """
        if len(self) == 0:
            raise ValueError("the replay is empty: nothing can be drawn")
        drawn = torch.randint(len(self), (n_batches, batch_size), generator=generator).to(self.scores.device)
        sample = self.n_bytes // (self.n_rows * self.n_envs)
        for several in torch.split(drawn, max(GATHERED_AT_ONCE // (batch_size * sample), 1)):
            observations, scores = self.gather(several.flatten())
            batches = each(lambda seen: torch.split(seen, batch_size), observations)
            for number, targets in enumerate(torch.split(scores, batch_size)):
                yield take(batches, number), targets

    @abstractmethod
    def gather(self, samples: Tensor) -> tuple[Tensors, Tensor]:
        """The samples of the given numbers, 0 the oldest; results as in :meth:`batches`."""


class PlainReplay(Replay):
    """A replay of observations of any kind, each stored whole.

    Args:
        space: of one observation.
        capacity, n_envs, n_scores, device: see :class:`Replay`.
    """

    def __init__(
        self,
        space: spaces.Space[Any],
        capacity: int,
        n_envs: int,
        n_scores: int,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(capacity, n_envs, n_scores, device)

        def room(one: Tensor) -> Tensor:
            return torch.empty((self.n_rows, n_envs, *one.shape[1:]), dtype=one.dtype, device=device)

        self.observations: Tensors = each(room, to_tensors(example(space, 1), "cpu"))

    @property
    def n_bytes(self) -> int:
        """See :attr:`Replay.n_bytes`."""
        return sum(t.numel() * t.element_size() for t in (self.scores, *leaves(self.observations)))

    def position(self) -> dict[str, int]:
        """See :meth:`Replay.position`."""
        return {"rows_added": self._rows_added, "first_row": self._first_row}

    def add(self, observations: Arrays, scores: Tensor, starts: NDArray[np.bool_]) -> None:
        """See :meth:`Replay.add`."""
        row = self._rows_added % self.n_rows
        fresh = leaves(to_tensors(observations, self.scores.device))
        for kept, values in zip(leaves(self.observations), fresh, strict=True):
            kept[row] = values
        self.scores[row] = scores
        self._rows_added += 1
        self._first_row = max(self._rows_added - self.n_rows, 0)

    def gather(self, samples: Tensor) -> tuple[Tensors, Tensor]:
        """See :meth:`Replay.gather`."""
        places = (samples + self._first_row * self.n_envs) % (self.n_rows * self.n_envs)
        observations = each(lambda kept: kept.flatten(0, 1).index_select(0, places), self.observations)
        return observations, self.scores.flatten(0, 1).index_select(0, places)
