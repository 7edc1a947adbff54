"""A run and its keeper as one of several tasks sees them: under its own name.

So that what keeps, draws and scores a single task does it for each of several: its metrics and TensorBoard tags get the
name of the task before them (``pong/eval/mean_reward``), and what it finds in earlier generations is its own part.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polydistill.learning.rewind import NonFiniteError
from polydistill.lineage import Generation
from polydistill.lineage.keeper import Keeper
from polydistill.runs import Progress, Run

TASKS = "tasks"  # in a generation's metrics


class TaskRun:
    """What a task writes into the run.

    Args:
        run: of all tasks.
        task: whose metrics these are.
    """

    def __init__(self, run: Run, task: str) -> None:
        self._run, self.task = run, task

    @property
    def out(self) -> Path:
        """The folder of the run."""
        return self._run.out

    def log(self, role: str, step: int, values: Mapping[str, float], **context: Any) -> None:
        """See :meth:`Run.log`."""
        self._run.log(role, step, {f"{self.task}/{tag}": value for tag, value in values.items()}, **context)

    def log_timing(self, role: str, step: int, values: Mapping[str, float]) -> None:
        """See :meth:`Run.log_timing`."""
        self._run.log_timing(role, step, {f"{self.task}/{tag}": value for tag, value in values.items()})

    def progress(self, description: str, total: int, unit: str = "steps", done: int = 0) -> Progress:
        """See :meth:`Run.progress`."""
        return self._run.progress(f"{self.task}: {description}", total, unit, done)


class TaskKeeper:
    """The keeper of a run of several tasks, as the domain of one task asks it.

    Args:
        keeper: of the run.
        task: whose.
    """

    def __init__(self, keeper: Keeper[Any], task: str) -> None:
        assert keeper.run is not None
        self._keeper, self.task, self.run = keeper, task, TaskRun(keeper.run, task)

    @property
    def generation(self) -> int:
        """The one in progress."""
        return self._keeper.generation

    @property
    def generations(self) -> list[Generation[Any]]:
        """Those that are finished: who plays the task, with the task's own metrics."""
        return [
            each._replace(member=each.member.of[self.task], metrics=each.metrics[TASKS][self.task])
            for each in self._keeper.generations
        ]

    def save(self) -> None:
        """See :meth:`Keeper.save`."""
        self._keeper.save()

    def heed(self, what: str) -> None:
        """See :meth:`Keeper.heed`."""
        self._keeper.heed(what)

    def keep_failure(self, error: NonFiniteError, state: object) -> FloatingPointError:
        """See :meth:`Keeper.keep_failure`; the error names the task."""
        return self._keeper.keep_failure(NonFiniteError(f"{self.task}: {error}", error.batch, error.left), state)
