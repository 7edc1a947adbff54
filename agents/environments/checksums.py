"""Checksums of what games show, at intervals, and where games start: by them play is known again on another machine.

Contract: they are the same whenever the play is, however often its run was stopped and its games were played again.
Each is a SHA-256 of everything from the first observation on: the observations before the first step, and of each step
the new observations, then the rewards, then which games have ended. Every part is an array of all games as its bytes, a
table of arrays in the order of their names. Of Atari's stacks of frames, which move on by one, the newest frame of
each game is taken, and then the whole stacks of the games that have just begun.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polydistill.errors import UserError
from polydistill_agents.environments.steps import Step
from polydistill_agents.networks.observations import leaves

EVERY = 64  # steps of all games


class Checksums:
    """Those of one play, from its first step on.

    Args:
        sliding: whether observations are stacks of frames, the newest last, that move on by one.

    Attributes:
        n_rows: steps of all games so far.
    """

    def __init__(self, *, sliding: bool) -> None:
        self.sliding, self.n_rows = sliding, 0
        self._seen = hashlib.sha256()
        self._found: list[bytes] = []
        self._starts: list[NDArray[np.bool_]] = []

    def add(self, step: Step) -> None:
        """Look at the next step.

        Raises:
            UserError: see :class:`KnownChecksums`.
        """
        if self.n_rows == 0:
            self.begin(step.observations)
        self._note(step)

    def begin(self, observations: Any) -> None:
        """Look at what the games show before the first step; :meth:`add` does it where nobody has."""
        for values in leaves(observations):
            self._see(values)
        self._found.append(self._seen.digest())

    def _note(self, step: Step) -> None:
        self._starts.append(np.array(step.starts, dtype=bool))
        for values in leaves(step.new_obs):
            if self.sliding:
                self._see(values[:, -1])
                values = values[step.dones]
            self._see(values)
        self._see(step.rewards)
        self._see(step.dones)
        self.n_rows += 1
        if self.n_rows % EVERY == 0:
            self._found.append(self._seen.digest())

    def _see(self, values: NDArray[Any]) -> None:
        self._seen.update(np.ascontiguousarray(values).data)

    def digests(self) -> list[bytes]:
        """Of 32 bytes each: before the first step, after every ``EVERY`` steps of all games, and at the end."""
        return self._found if self.n_rows % EVERY == 0 else [*self._found, self._seen.digest()]

    def starts(self) -> NDArray[np.bool_]:
        """``(n_rows, n_envs)``: True where the observations before a step are the first of a game."""
        return np.stack(self._starts)


class KnownChecksums(Checksums):
    """Those of play that is played again: each is compared with that of the first time.

    Args:
        sliding: as for :class:`Checksums`.
        digests: of the first time.
        starts: likewise.
        differs: the error to raise, of the steps of all games so far.
    """

    def __init__(
        self,
        *,
        sliding: bool,
        digests: Sequence[bytes],
        starts: NDArray[np.bool_],
        differs: Callable[[int], UserError],
    ) -> None:
        super().__init__(sliding=sliding)
        self._known, self._known_starts, self._differs = digests, starts, differs

    def begin(self, observations: Any) -> None:
        """See :meth:`Checksums.begin`.

        Raises:
            UserError: they are others.
        """
        super().begin(observations)
        self._compare()

    def _note(self, step: Step) -> None:
        if not np.array_equal(step.starts, self._known_starts[self.n_rows]):
            raise self._differs(self.n_rows)
        super()._note(step)
        if self.n_rows % EVERY == 0 or self.n_rows == len(self._known_starts):
            self._compare()

    def _compare(self) -> None:
        found = self.digests()
        if found[-1] != self._known[len(found) - 1]:
            raise self._differs(self.n_rows)
