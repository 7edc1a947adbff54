"""Replay of a teacher's play: every frame stored once, the teacher's scores beside it.

A stack of four frames shares three with the stack before it, so a replay of stacks stores each frame four
times. Here a ring holds single frames, and each sample names the four that form its stack. Whether an observation is
the one before moved on by a frame is looked at in each step; where it is not (the first of a game, colours, the newest
frame first) the sample brings all its frames. So what is drawn is what was observed, whatever was observed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from polydistill_agents.distillation.replay import PlainReplay, Replay

MIN_KEPT = 7 / 8  # of the capacity; where frames of their own crowd out more samples, the ring of frames grows
GROWTH = 1 / 4  # of the ring, each time
COPIED_AT_ONCE = 4096  # frames


class FrameReplay(Replay):
    """The last ``capacity`` samples (stack of frames, teacher's scores), gathered on ``device``.

    540,000 samples of 84 x 84 with 18 scores take 3.9 GB where stacks slide, and up to ``stack`` times as much where
    they do not.

    Args:
        capacity: samples kept (where many games start, 7/8 of them); a multiple of ``n_envs`` (whole steps leave
            together).
        n_envs: games played at once.
        stack: frames per observation.
        frame_shape: ``(height, width)`` in pixels.
        n_scores: scores per sample (actions).
        device: where the frames lie and batches are gathered.

    Raises:
        ValueError: a capacity of no whole step, or one below ``n_envs``.
    """

    def __init__(
        self,
        capacity: int,
        n_envs: int,
        stack: int,
        frame_shape: tuple[int, int],
        n_scores: int,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(capacity, n_envs, n_scores, device)
        self.stack, self.frame_shape = stack, frame_shape
        # room for the extra frames of game starts, and for the stacks that reach behind the oldest sample: those of
        # ``stack`` steps, even if all games but one start again in each of them
        self.n_frames = capacity + capacity // 64 + stack * stack * n_envs
        self.frames = torch.empty((self.n_frames, *frame_shape), dtype=torch.uint8, device=device)
        # frame numbers count from the beginning of time; modulo n_frames they are places in the ring
        self.stacks = torch.empty((self.n_rows, n_envs, stack), dtype=torch.int64, device=device)
        self._row_oldest = np.zeros(self.n_rows, dtype=np.int64)
        self._newest_stacks: NDArray[np.int64] = np.zeros((n_envs, stack), dtype=np.int64)
        self._newest: NDArray[np.uint8] | None = None  # the observations of the newest row
        self._frames_added = 0

    @property
    def n_bytes(self) -> int:
        """Memory that the replay takes when full, in bytes, if the ring of frames need not grow."""
        return sum(t.numel() * t.element_size() for t in (self.frames, self.scores, self.stacks))

    def position(self) -> dict[str, int]:
        """See :meth:`Replay.position`."""
        return {"rows_added": self._rows_added, "frames_added": self._frames_added, "first_row": self._first_row}

    def add(self, observations: Any, scores: Tensor, starts: NDArray[np.bool_]) -> None:
        """See :meth:`Replay.add`; where a game starts, the observation shares no frame with the one before.

        Args:
            observations: ``(n_envs, stack, height, width)`` uint8.
            scores: of them.
            starts: where.
        """
        going = self._slides(observations) & ~starts
        ids = np.empty_like(self._newest_stacks)
        next_frame = self._frames_added
        n_going, n_whole = int(going.sum()), int((~going).sum())
        ids[going, :-1] = self._newest_stacks[going, 1:]
        ids[going, -1] = next_frame + np.arange(n_going)
        fresh = next_frame + n_going + np.arange(n_whole * self.stack)
        ids[~going] = fresh.reshape(n_whole, self.stack)
        new_frames = observations[going, -1]
        if n_whole:
            new_frames = np.concatenate([new_frames, observations[~going].reshape(-1, *self.frame_shape)])
        row = self._rows_added % self.n_rows
        self._row_oldest[row] = ids.min()
        self._rows_added += 1
        self._frames_added += len(new_frames)
        while self._crowded():
            self._grow(next_frame)
        self._first_row = self._first_kept()
        places = torch.arange(next_frame, self._frames_added) % self.n_frames
        device = self.frames.device
        self.frames[places.to(device)] = torch.from_numpy(np.ascontiguousarray(new_frames)).to(device)
        self.scores[row] = scores
        self.stacks[row] = torch.from_numpy(ids).to(device)
        self._newest_stacks, self._newest = ids, observations.copy()

    def _slides(self, observations: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Of which games all frames but the newest are those that were seen last; ``(n_envs,)``."""
        if self._newest is None:
            return np.zeros(self.n_envs, dtype=bool)
        same = observations[:, :-1] == self._newest[:, 1:]
        return same.reshape(self.n_envs, -1).all(axis=1)  # type: ignore[no-any-return]

    def _crowded(self) -> bool:
        """Whether too few rows are left because frames that are still named would be overwritten."""
        first = self._first_kept()
        return first > self._first_by_rows() and self._rows_added - first < MIN_KEPT * self.n_rows

    def _first_by_rows(self) -> int:
        """The oldest row that is there, and not overwritten."""
        return max(self._first_row, self._rows_added - self.n_rows)

    def _first_kept(self) -> int:
        """The oldest row that is neither overwritten nor names an overwritten frame.

        A game's stacks only move forward, so the oldest frame of a row never precedes that of the row before.
        """
        first, oldest_frame = self._first_by_rows(), self._frames_added - self.n_frames
        while self._row_oldest[first % self.n_rows] < oldest_frame:
            first += 1
        return first

    def _grow(self, n_written: int) -> None:
        """Make room for a quarter more frames; the ``n_written`` of all times so far keep their numbers."""
        old, n_old = self.frames, self.n_frames
        self.n_frames += max(int(GROWTH * n_old), 1)
        self.frames = torch.empty((self.n_frames, *self.frame_shape), dtype=old.dtype, device=old.device)
        for begin in range(max(n_written - n_old, 0), n_written, COPIED_AT_ONCE):
            numbers = torch.arange(begin, min(begin + COPIED_AT_ONCE, n_written), device=old.device)
            self.frames[numbers % self.n_frames] = old[numbers % n_old]

    def gather(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Replay.gather`: ``(samples, stack, height, width)`` uint8."""
        rows = (samples // self.n_envs + self._first_row) % self.n_rows
        envs = samples % self.n_envs
        places = self.stacks[rows, envs].flatten() % self.n_frames
        observations = self.frames.index_select(0, places).view(-1, self.stack, *self.frame_shape)
        return observations, self.scores[rows, envs]


def open_replay(
    space: spaces.Space[Any], capacity: int, n_envs: int, n_scores: int, device: torch.device | str = "cpu"
) -> Replay:
    """A replay of observations of ``space``: frames are stored once where they slide, all else whole."""
    if isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3:
        planes, height, width = space.shape
        return FrameReplay(capacity, n_envs, planes, (height, width), n_scores, device)
    return PlainReplay(space, capacity, n_envs, n_scores, device)
