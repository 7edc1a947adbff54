"""What courses of one task and of several have in common: the clock, curves in turn, games that are played again."""

from __future__ import annotations

import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from polydistill.disk import disk_errors
from polydistill.runs import Progress, Run
from polydistill_agents.environments.recording import Recording
from polydistill_agents.environments.steps import Step
from polydistill_agents.lineage.students import role_of
from polydistill_agents.networks.observations import Arrays

RECORDINGS = "recordings"  # folder of the play, within that of the run


def remove_recordings(out: Path) -> None:
    """Remove the recordings of all courses of the run folder ``out``."""
    with disk_errors(out / RECORDINGS, "remove"):
        if (out / RECORDINGS).is_dir():
            shutil.rmtree(out / RECORDINGS)


class Player(Protocol):
    """Whoever plays recorded games."""

    def continue_play(self, first: Arrays, steps: Iterator[Step]) -> None:
        """Go on from the end of games that begin with ``first``; see :meth:`PolicyDistillation.continue_play`."""


class CourseBase(ABC):
    """What learning one task and several have in common: the clock, when a curve is due, games that are played again.

    Args:
        steps: of play, at the end.
        curve_every_steps: between two points of a curve; 0: there is none.
        generation: of the student.
        run: gets the metrics; its folder gets the recordings of the play.

    Attributes:
        role: the name under which the student's numbers are logged.
        seconds: of learning and of the curves so far, in all processes.
        curve_seconds: those of the curves alone.
    """

    def __init__(self, steps: int, curve_every_steps: int, generation: int, run: Run) -> None:
        self.last_step, self.curve_every_steps, self.generation, self.run = steps, curve_every_steps, generation, run
        self.role = role_of(generation)
        self.folder = run.out / RECORDINGS / self.role
        self.began = run.position()
        self.next_curve = 0
        self.curve_seconds, self._seconds_before = 0.0, 0.0
        self._started: float | None = None
        self.loaded = False

    @property
    @abstractmethod
    def steps(self) -> int:
        """Of play of each task, so far."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What :meth:`load` needs; the play since the last time is written beside. Between two rounds only."""

    @abstractmethod
    def score(self) -> None:
        """A point of each curve."""

    @abstractmethod
    def recorded(self, state: Mapping[str, Any]) -> Sequence[tuple[Recording, Any, Player]]:
        """The recordings, what the state of another course says of each, and who plays it."""

    @abstractmethod
    def load_learned(self, state: Mapping[str, Any], *, new_games: bool) -> None:
        """Take what was learned, and the curves, from a state."""

    @property
    def seconds(self) -> float:
        """Since it began to learn, without the time between two processes."""
        return self._seconds_before + (0.0 if self._started is None else time.perf_counter() - self._started)

    def progress(self, what: str, total: int, done: int = 0) -> Progress:
        """A bar over ``total`` steps."""
        return self.run.progress(f"generation {self.generation} {what}", total, "steps", done)

    def begin(self) -> Progress:
        """Start the clock; a bar over the steps of play."""
        self._started = time.perf_counter()
        return self.progress("learns", self.last_step, self.steps)

    def rates_of(self, samples: int, steps: int) -> dict[str, float]:
        """Samples learned from, and steps of play, per second without the curves."""
        seconds = self.seconds - self.curve_seconds
        return {"train_samples_per_second": samples / seconds, "steps_per_second": steps / seconds}

    def shared_state(self) -> dict[str, Any]:
        """What is here of :meth:`state`."""
        return {
            "generation": self.generation,
            "began": self.began,
            "next_curve": self.next_curve,
            "seconds": self.seconds,
            "curve_seconds": self.curve_seconds,
        }

    def load(self, state: Mapping[str, Any], on_step: Callable[[], None]) -> None:
        """Go on from :meth:`state`, in a new course.

        Args:
            state: of a course with the same arguments.
            on_step: called after each step that is played again; it may raise to leave.

        Raises:
            UserError: the emulator is another one.
            DamagedSegment, DoesNotRepeat: a recording is damaged, or an environment does not repeat itself. Then this
                course must not be used.
        """
        recorded = self.recorded(state)
        played = sum(recording.count(kept) for recording, kept, _ in recorded)
        with self.progress("plays its games again", played) as bar:
            for recording, kept, player in recorded:
                first, steps = recording.play_again(kept)
                player.continue_play(first, _counted(steps, bar, on_step))
        self._go_on(state, new_games=False)

    def load_into_new_games(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state` with what was learned, in new games and from empty replays."""
        self._go_on(state, new_games=True)

    def _go_on(self, state: Mapping[str, Any], *, new_games: bool) -> None:
        self.began, self.next_curve = state["began"], state["next_curve"]
        self.load_learned(state, new_games=new_games)
        self.curve_seconds = state["curve_seconds"]
        self._seconds_before, self.loaded = state["seconds"], True

    def between_rounds(self, bar: Progress, plays: str, due: Callable[[int], bool], save: Callable[[], None]) -> None:
        """Score the student if its curve is due, and save if that is.

        Args:
            bar: of the learning.
            plays: what it says meanwhile.
            due: see :meth:`Course.learn`, as ``save``.
        """
        if self.curve_every_steps and self.steps >= self.next_curve:
            bar.say(plays)
            started = time.perf_counter()
            self.score()
            self.curve_seconds += time.perf_counter() - started
            self.next_curve += self.curve_every_steps
        if due(self.steps):
            save()


def _counted(steps: Iterator[Step], bar: Progress, on_step: Callable[[], None]) -> Iterator[Step]:
    for step in steps:
        yield step
        bar.advance(len(step.actions))
        on_step()
