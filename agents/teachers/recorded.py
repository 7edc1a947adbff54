"""The teacher of a data set of play: it says again what was said of each step, and tells what was done there.

It knows no other states. Whose scores these are may be asked beside it, where the file of that teacher is there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polydistill.errors import UserError
from polydistill_agents.environments.atari import AtariVecEnv
from polydistill_agents.environments.checksums import KnownChecksums
from polydistill_agents.environments.evaluation import Evaluation
from polydistill_agents.environments.seeded import SeededVecEnv
from polydistill_agents.files.play_file import read_play
from polydistill_agents.networks.architecture import Architecture
from polydistill_agents.networks.observations import Tensors
from polydistill_agents.teachers.teacher import Rows, Teacher


class RecordedTeacher(Teacher):
    """The scores of a data set, step by step: each :meth:`label` gives those of the next one.

    Args:
        path: of the file.
        original: whose scores they are; None: its file is not there.

    Attributes:
        data: the data set.
        content_sha256: of the data set.
        original: as given.

    Raises:
        UserError: there is no such file, or it is damaged; ``original`` is another teacher.
    """

    recorded = True

    def __init__(self, path: Path, original: Teacher | None = None) -> None:
        self.path = path
        self.data, self.content_sha256 = read_play(path)
        header = self.data.header
        super().__init__(self._refuse, kind=header.kind)
        self.original, self.has_memory, self.n_rows = original, header.has_memory, len(self.data.scores)
        self.input_statistics = self.data.statistics
        self._row = 0

    def _refuse(self, observations: Tensors) -> Tensor:
        raise UserError(f"{self.path} knows the states of its own play alone: give its teacher as --teacher.path FILE")

    @property
    def architecture(self) -> Architecture | None:
        """Of the teacher's network, as the file tells it."""
        return self.data.header.architecture

    def to(self, device: torch.device | str) -> Teacher:
        """Give scores on ``device``; the teacher behind them moves too."""
        if self.original is not None:
            self.original.to(device)
        return super().to(device)

    def probe(self, space: Any) -> Tensor:
        """Scores of two states, whatever is asked: they have the shape of all."""
        first = torch.from_numpy(self.data.scores[0, :1])
        return first.expand(2, -1).to(self._device)

    # ---- its memory is the step that comes next

    def begin(self, n_games: int) -> None:
        """Go back to the first step.

        Raises:
            ValueError: the data set is of another number of games.
        """
        if n_games != self.data.actions.shape[1]:
            raise ValueError(f"{self.path} is of {self.data.actions.shape[1]} games at once, not of {n_games}")
        self._row = 0

    def label(self, observations: Tensors, starts: Any, rows: Rows = None) -> Tensor:
        """The scores of the next step of all games.

        Raises:
            UserError: there is none.
        """
        if self._row >= self.n_rows:
            raise UserError(f"{self.path} ends after {self.data.steps:,} steps")
        self._row += 1
        return torch.from_numpy(self.data.scores[self._row - 1]).to(self._device)

    def memory(self) -> int:
        """Steps of all games so far."""
        return self._row

    def remember(self, state: Any) -> None:
        """Go on with what :meth:`memory` gave."""
        self._row = state or 0

    def acted(self) -> NDArray[np.int64]:
        """``(n_envs,)``: what was done in the step that was labelled last."""
        return np.asarray(self.data.actions[self._row - 1], dtype=np.int64)

    # ---- its games

    def prepare(self, env: SeededVecEnv) -> None:
        """Let the games of ``env`` begin as those of the data set did.

        Raises:
            UserError: they are of another environment.
        """
        here = env.settings()
        for key, value in self.data.header.environment.items():
            if here.get(key) != value:
                raise UserError(f"{self.path} was played with {key} = {value}, here it is {here.get(key)}")
        env.start_from(self.data.reset_seeds)

    def checksums(self, env: SeededVecEnv) -> KnownChecksums:
        """That refuse what ``env`` shows where it is not what was shown."""
        digests = [row.tobytes() for row in self.data.checksums]
        sliding = isinstance(env, AtariVecEnv)

        def differs(row: int) -> UserError:
            found = {name: version for name, version in env.versions().items() if self._played_by(name) != version}
            others = ", ".join(f"{name} {self._played_by(name)}, here it is {found[name]}" for name in found)
            why = f"it was played by {others}" if found else "the environment does not repeat itself here"
            where = f"step {row * env.num_envs:,}" if row else "the first observations"
            return UserError(f"{self.path}: the games do not show again what they showed ({where}): {why}")

        return KnownChecksums(sliding=sliding, digests=digests, starts=self.data.starts, differs=differs)

    def _played_by(self, name: str) -> Any:
        return self.data.header.versions.get(name)

    def teacher_games(self) -> tuple[Evaluation, Evaluation | None]:
        """The games of the teacher that the file tells of, and their mean without invalid actions, as one game's."""
        header, scores = self.data.header, self.data.teacher_games
        counts = (header.truncated, header.n_actions, header.game_actions, header.invalid_share)
        games = Evaluation(scores, np.zeros(len(scores), np.int64), None, 0.0, *counts)
        if header.masked_mean is None:
            return games, None
        return games, Evaluation(np.array([header.masked_mean]), np.zeros(1, np.int64), None, 0.0)
