"""The recording of a generation's play, from which its games and its replay are made again after a crash.

The inner state of ale-py's vector environment cannot be saved, nor that of most simulators. But where equal seeds and
equal actions give equal observations, over resets and with sticky actions, a game is continued by playing it again: the
recording holds the seeds of the last full reset and every action since. That same play shows again every observation
that the replay held (also those that have been overwritten, which decide where in the ring the others lie), so they are
not stored, only the teacher's scores beside the actions: 1 + 4 * actions bytes per step of play (4 + 4 * actions where
there are more than 256 of them) where frames take 7 KiB.

What comes back is checked: each segment carries a digest of all that the games had shown, so that games that play
differently are found at the first segment where they do. ale-py's ``final_obs`` is not part of it: where a game has not
ended it is uninitialised memory. :func:`first_difference` finds an environment that does not repeat itself beforehand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polydistill.errors import UserError
from polydistill_agents.environments.atari import AtariVecEnv
from polydistill_agents.environments.checksums import Checksums
from polydistill_agents.environments.seeded import SeededVecEnv
from polydistill_agents.environments.segments import Segment, read_segment, remove_segments, write_segment
from polydistill_agents.environments.steps import Step
from polydistill_agents.environments.task import Task
from polydistill_agents.networks.observations import leaves


class DoesNotRepeat(UserError):
    """An environment shows something else from the same seeds and actions."""


class Recording:
    """What has been played in ``env`` since its last full reset.

    Args:
        folder: for the segments; they belong to this recording alone.
        env: the games; reset by whoever plays them, before the first step is added.
        n_scores: scores of the teacher per observation.
        checksums: see each step too, also those that are played again.
    """

    def __init__(self, folder: Path, env: SeededVecEnv, n_scores: int, checksums: Checksums | None = None) -> None:
        self.folder, self.env, self.n_scores, self.checksums = folder, env, n_scores, checksums
        self.segments: list[Segment] = []
        self._clear_pending()

    def _clear_pending(self) -> None:
        self._actions: list[NDArray[np.integer[Any]]] = []
        self._scores: list[Tensor] = []
        self._seen = hashlib.sha256()
        self._observations: Any = None

    def __len__(self) -> int:
        """Steps of all games recorded so far."""
        return sum(segment.n_rows for segment in self.segments) + len(self._actions)

    def add(self, step: Step) -> None:
        """Record one step of all games; its actions and scores are kept, not copied."""
        self._actions.append(step.actions)
        self._scores.append(step.scores)
        self._see(step)

    def _see(self, step: Step) -> None:
        """Three of the four frames of Atari's stack have been seen before; the last whole stacks join in
        :meth:`_digest`."""
        shown = leaves(step.new_obs)
        if isinstance(self.env, AtariVecEnv):
            shown = [frames[:, -1] for frames in shown]
        for values in (*shown, step.rewards, step.dones):
            self._seen.update(np.ascontiguousarray(values).data)
        self._observations = step.new_obs
        if self.checksums is not None:
            self.checksums.add(step)

    def _digest(self) -> str:
        seen = self._seen.copy()  # a full disk may make it necessary to ask twice
        if self._observations is not None:
            for values in leaves(self._observations):
                seen.update(np.ascontiguousarray(values).data)
        return seen.hexdigest()

    @property
    def _action_type(self) -> np.dtype[Any]:
        return _action_type(int(self.env.action_space.n))  # type: ignore[attr-defined]

    def state(self) -> dict[str, Any]:
        """Write what is new as a segment; what :meth:`play_again` needs, in plain values.

        Raises:
            UserError: the disk refused; nothing is lost, and it can be asked again.
        """
        if self._actions:
            actions = np.stack(self._actions).astype(self._action_type)
            scores = torch.stack(self._scores).to("cpu", torch.float32).numpy().astype("<f4")
            content = actions.tobytes() + scores.tobytes()
            self.segments.append(write_segment(self.folder, content, len(actions), self._digest()))
            self._clear_pending()
        return {
            "environment": self.env.recipe(),
            "reset_seeds": self.env.reset_seeds.tolist(),
            "segments": [segment._asdict() for segment in self.segments],
        }

    def whole(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """All that was recorded: actions ``(rows, n_envs)`` and scores ``(rows, n_envs, n_scores)``.

        Raises:
            DamagedSegment: a segment is missing or damaged.
        """
        written = [row for segment in self.segments for row in self._rows(segment)]
        actions = [*(actions for actions, _ in written), *self._actions]
        scores = [*(scores for _, scores in written), *(scores.cpu() for scores in self._scores)]
        return np.stack(actions).astype(np.int64), torch.stack(scores).numpy()

    def count(self, state: Mapping[str, Any]) -> int:
        """Steps of play that :meth:`play_again` would play."""
        return self.env.num_envs * int(sum(segment["n_rows"] for segment in state["segments"]))

    def play_again(self, state: Mapping[str, Any]) -> tuple[Any, Iterator[Step]]:
        """Reset the environment and play again what was recorded; segments that ``state`` does not name are removed.

        Args:
            state: from :meth:`state`.

        Returns:
            What the games show first, and the steps, each played when it is asked for. The recording goes on behind
            the last.

        Raises:
            UserError: the games are of another version.
            DoesNotRepeat: while the steps are played: they show something else.
            DamagedSegment: while the steps are played: a segment is missing or damaged.
        """
        self._check_recipe(state["environment"])
        self.segments = [Segment(**segment) for segment in state["segments"]]
        self._clear_pending()
        first = self.env.reset()
        if self.env.reset_seeds.tolist() != list(state["reset_seeds"]):
            raise UserError(f"{self.folder}: the games of this run start from other seeds than those recorded")
        return first, self._play_segments(first)

    def _play_segments(self, observations: Any) -> Iterator[Step]:
        starts = np.ones(self.env.num_envs, dtype=bool)
        for segment in self.segments:
            for actions, scores in self._rows(segment):
                step = Step(observations, starts, scores, actions, *self.env.step(actions))
                self._see(step)
                yield step
                observations, starts = step.new_obs, step.dones
            if self._digest() != segment.seen:
                raise self._different()
            self._clear_pending()
        remove_segments(self.folder, [segment.file for segment in self.segments])

    def _different(self) -> UserError:
        if isinstance(self.env, AtariVecEnv):
            shown = "the games do not show again what they showed: this is another emulator"
            return UserError(f"{self.folder}: {shown}")
        name = self.env.settings().get("environment", "the environment")
        shown = f"{name} does not show again what it showed from the same seeds and actions"
        return DoesNotRepeat(shown) if self.checksums is None else UserError(f"{shown}: its play is no data set")

    def _check_recipe(self, recorded: Mapping[str, Any]) -> None:
        here = self.env.recipe()
        for key, value in recorded.items():
            if here.get(key) != value:
                raise UserError(
                    f"{self.folder}: the games were played with {key} {value}, here it is {here.get(key)}: "
                    "they cannot be continued exactly"
                )

    def _rows(self, segment: Segment) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        content = read_segment(self.folder, segment)
        shape = (segment.n_rows, self.env.num_envs)
        count, kind = segment.n_rows * self.env.num_envs, self._action_type
        actions = np.frombuffer(content, kind, count).reshape(shape).astype(np.int64)
        scores = np.frombuffer(content, "<f4", offset=count * kind.itemsize)
        scores = scores.reshape(*shape, self.n_scores).astype(np.float32)
        yield from zip(actions, torch.from_numpy(scores), strict=True)


def _action_type(n_actions: int) -> np.dtype[Any]:
    return np.dtype(np.uint8 if n_actions <= 256 else "<u4")


def recorded_bytes(n_steps: int, n_scores: int) -> int:
    """Bytes on the disk of a recording of ``n_steps`` steps of play."""
    return n_steps * (_action_type(n_scores).itemsize + 4 * n_scores)


def first_difference(task: Task, *, seed: int, steps: int = 200, n_envs: int = 2) -> int | None:
    """The first step in which two plays from equal seeds, with equal random actions, are not the same.

    Args:
        task: what is played, ``n_envs`` games at once, the second play after the first has ended.
        seed: of the games and of the actions.
        steps: of all games, those of several games one after the other where they are short.
        n_envs: games at once.

    Returns:
        0: what they show first; None: they are the same, as far as they were played.
    """
    plays = []
    for _ in range(2):
        env = task.make_env(n_envs, seed=seed, n_threads=1)
        plays.append(list(_digests(env, np.random.default_rng(seed), steps)))
        env.close()
    return next((step for step, (one, other) in enumerate(zip(*plays, strict=True)) if one != other), None)


def _digests(env: SeededVecEnv, generator: np.random.Generator, steps: int) -> Iterator[bytes]:
    shown: tuple[Any, ...] = tuple(leaves(env.reset()))
    for step in range(steps + 1):
        if step:
            n_actions = int(env.action_space.n)  # type: ignore[attr-defined]
            observations, rewards, dones, _ = env.step(generator.integers(n_actions, size=env.num_envs))
            shown = (*leaves(observations), rewards, dones)
        seen = hashlib.sha256()
        for values in shown:
            seen.update(np.ascontiguousarray(values).data)
        yield seen.digest()
