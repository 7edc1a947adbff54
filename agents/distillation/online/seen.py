"""What a learning teacher has seen lately, and batches of it that one teacher labels for all students.

Contract: a teacher's own buffers are only read, with generators that are not its own, so that its learning stays what
it is. Students whose generators are in the same state draw the same batches: these are gathered and labelled once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer, RolloutBuffer
from torch import Tensor

from polydistill_agents.distillation.frame_replay import open_replay
from polydistill_agents.distillation.replay import GATHERED_AT_ONCE
from polydistill_agents.networks.observations import Tensors, each, example, leaves, take
from polydistill_agents.teachers import Teacher

HELD_AT_ONCE = 2**26  # bytes of observations in the batches that students share


class Seen(Protocol):
    """Observations, as the environment showed them."""

    space: spaces.Space[Any]

    def __len__(self) -> int:
        """How many there are."""

    @property
    def full(self) -> bool:
        """Whether there will never be more."""

    def gather(self, samples: Tensor) -> Tensors:
        """Those of the given numbers, ``(samples,)`` int64 on the CPU."""


class InReplay:
    """The observations in a replay of Stable-Baselines3, which holds them already.

    Args:
        buffer: of the teacher.
        device: where students learn.
    """

    def __init__(self, buffer: ReplayBuffer, device: torch.device) -> None:
        self.buffer, self.device, self.space = buffer, device, buffer.observation_space

    def __len__(self) -> int:
        """See :class:`Seen`."""
        return int(self.buffer.size()) * self.buffer.n_envs

    @property
    def full(self) -> bool:
        """See :class:`Seen`."""
        return bool(self.buffer.full)

    def gather(self, samples: Tensor) -> Tensors:
        """See :class:`Seen`."""
        rows, games = np.divmod(samples.numpy(), self.buffer.n_envs)
        kept: Any = self.buffer.observations
        picked = each(lambda values: values[rows, games], kept)
        return each(lambda values: torch.from_numpy(values).to(self.device), _of_space(picked, self.space))


class InRollouts:
    """The observations of the last rollouts, which Stable-Baselines3 forgets one after another.

    Args:
        buffer: of the teacher.
        capacity: observations that are kept, at least those of one rollout.
        device: where students learn.
    """

    def __init__(self, buffer: RolloutBuffer, capacity: int, device: torch.device) -> None:
        n_envs = buffer.n_envs
        self.space, self._device = buffer.observation_space, device
        rows = max(capacity // n_envs, buffer.buffer_size)
        self._kept = open_replay(self.space, rows * n_envs, n_envs, 0, device)
        self._nobody = torch.empty(n_envs, 0, device=device)

    def __len__(self) -> int:
        """See :class:`Seen`."""
        return len(self._kept)

    @property
    def full(self) -> bool:
        """See :class:`Seen`."""
        return bool(self._kept.full)

    def add(self, buffer: RolloutBuffer) -> None:
        """Take in a rollout that has just ended."""
        kept: Any = buffer.observations
        for row in range(buffer.buffer_size):
            observations = _of_space(take(kept, row), self.space)
            self._kept.add(observations, self._nobody, buffer.episode_starts[row].astype(bool))

    def gather(self, samples: Tensor) -> Tensors:
        """See :class:`Seen`."""
        return self._kept.gather(samples.to(self._device))[0]


def _of_space(observations: Any, space: spaces.Space[Any]) -> Any:
    """Rows of a buffer as they came: Stable-Baselines3 gives a number an axis, and older versions made all floats."""
    if isinstance(space, spaces.Dict):
        return {name: _of_space(observations[name], part) for name, part in space.items()}
    return observations.reshape(len(observations), *(space.shape or ())).astype(space.dtype, copy=False)


class SharedBatches:
    """Batches of what was seen, labelled by ``teacher``: a :class:`~polydistill_agents.distillation.learner.Source`.

    Args:
        seen: it must not change meanwhile.
        teacher: who labels.
    """

    def __init__(self, seen: Seen, teacher: Teacher) -> None:
        self.seen, self.teacher = seen, teacher
        self._drawn: Tensor | None = None
        self._made: list[tuple[Tensors, Tensor]] = []
        self._bytes: int = sum(one.nbytes for one in leaves(example(seen.space, 1)))

    def most(self, batch_size: int) -> int:
        """How many batches may be drawn at once: they are held until the last student has learned from them."""
        return max(HELD_AT_ONCE // (batch_size * self._bytes), 1)

    def batches(self, n_batches: int, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Any, Tensor]]:
        """Draw uniformly, with replacement; the batches that were drawn last are not made again."""
        drawn = torch.randint(len(self.seen), (n_batches, batch_size), generator=generator)
        if self._drawn is None or not torch.equal(drawn, self._drawn):
            self._drawn, self._made = drawn, []
        at_once = max(GATHERED_AT_ONCE // (batch_size * self._bytes), 1)
        for number in range(n_batches):
            if number == len(self._made):
                self._made += self._label(drawn[number : number + at_once])
            yield self._made[number]

    def _label(self, drawn: Tensor) -> list[tuple[Tensors, Tensor]]:
        """The batches of some rows of ``drawn``."""
        observations = self.seen.gather(drawn.flatten())
        scores = torch.split(self.teacher(observations), drawn.shape[1])
        batches = each(lambda seen: torch.split(seen, drawn.shape[1]), observations)
        return [(take(batches, number), targets) for number, targets in enumerate(scores)]
