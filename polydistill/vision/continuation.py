"""When a lineage of classifiers is saved, by whom, and how it stops and goes on, on one or several processes.

Contract: rank 0 reads and writes the checkpoints and decides; the others follow in the same call.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from polydistill.errors import Interrupted
from polydistill.learning.processes import Processes
from polydistill.runs import Run
from polydistill.runs.checkpoint import CheckpointConfig, Pace
from polydistill.runs.interruption import StopSignals


class Continuation:
    """The checkpoints of a run, as all of its processes see them.

    Args:
        run: of rank 0; None: nothing is saved (the other processes).
        config: how often.
        processes: of the run.
        stop: the signals that this process received; None: it heeds none.
    """

    def __init__(
        self, run: Run | None, config: CheckpointConfig, processes: Processes, stop: StopSignals | None
    ) -> None:
        self.run, self.processes, self.stop = run, processes, stop or StopSignals()
        self._pace = Pace(config)

    def restore(self) -> dict[str, Any] | None:
        """The state that was saved last, in every process; None: begin.

        Raises:
            UserError: see :meth:`Run.resume`.
        """
        state: dict[str, Any] | None = self.processes.first_says(None if self.run is None else self.run.resume())
        return state

    def due(self, steps: int) -> bool:
        """Whether to save after ``steps`` steps of a generation: it is time, or a signal came."""
        return bool(self.processes.first_says(self.stop.received is not None or self._pace.due(steps)))

    def save(self, state: Callable[[], dict[str, Any]], steps: int, where: str | None) -> None:
        """Save what ``state`` gives, and leave if a signal came.

        Args:
            state: is called in rank 0 only.
            steps: of the generation in progress.
            where: the run is, for the one line; None: the end, where there is nothing left to stop.

        Raises:
            Interrupted: a signal came.
            UserError: the disk refused; the checkpoint before is kept.
        """
        before = time.monotonic()
        if self.run is not None:
            self.run.save(state(), steps)
        self._pace.saved(steps, time.monotonic() - before)
        received = self.processes.first_says(self.stop.received)
        if received is not None and where is not None:
            line = f"stopped {where}, and saved: the same command goes on from there"
            raise Interrupted(received, line if self.processes.rank == 0 else "")
