"""What a study asks of the place where its runs are executed.

Contract: an executor knows commands, not studies. What a run leaves is in its own folder, so a command that ended in
whatever way is told by its exit code alone, and the same command goes on with the run.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple, Protocol, Self


class Job(NamedTuple):
    """A command to execute.

    Args:
        name: by which its end is told; one at a time has it.
        command: its words, the first of them this process's interpreter of Python: another computer takes its own.
        log: file for what it prints; an older one is replaced.
        environment: variables that it has beside those of the place, as (name, value).
    """

    name: str
    command: tuple[str, ...]
    log: Path
    environment: tuple[tuple[str, str], ...] = ()


class Outcome(NamedTuple):
    """The end of a job.

    Args:
        name: of the job.
        code: its exit code; -n: signal n killed it.
        seconds: from its start to its end.
        lost: why the place could not bring it to an end of its own, like a computer that was switched off; the same
            job may be started again. Empty: it ended by itself.
    """

    name: str
    code: int
    seconds: float
    lost: str = ""


class Executor(Protocol):
    """Executes jobs side by side; a context manager, which connects, and leaves nothing behind."""

    @property
    def workers(self) -> int:
        """How many at once; of computers that come and go, now."""

    @property
    def running(self) -> int:
        """How many are started and not yet told to have ended."""

    @property
    def found(self) -> tuple[str, ...]:
        """Names of the jobs that an earlier start has left at work; :meth:`wait` tells of their ends, too."""

    @property
    def short_of_memory(self) -> bool:
        """Whether another job would have too little memory; false while no job runs."""

    @property
    def elsewhere(self) -> bool:
        """Whether jobs run on other computers: what they leave may be seen here some seconds later."""

    def start(self, job: Job) -> None:
        """Start it; at most ``workers`` run at once.

        Raises:
            UserError: it cannot be started.
        """

    def wait(self, seconds: float) -> list[Outcome]:
        """Those that have ended since the last call; returns when one has, or after ``seconds``.

        Raises:
            UserError: the place does not answer any more.
        """

    def stop(self) -> None:
        """Ask those that are running to save and end; :meth:`wait` tells when they have."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


def stop_and_wait(executor: Executor, seconds: float) -> None:
    """Ask what still runs to save and end, and wait for that as long as ``seconds``: what is left at an error."""
    if not executor.running:
        return
    executor.stop()
    end = time.monotonic() + seconds
    while executor.running and time.monotonic() < end:
        executor.wait(0.5)
