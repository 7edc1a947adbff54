"""Where the runs of a study are executed: a small interface, and this machine's cores behind it.

Contract: an executor knows commands, not studies. What a run leaves is in its own folder, so a command that ended in
whatever way is told by its exit code alone, and the same command goes on with the run.
"""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple, Protocol

from polydistill.disk import disk_errors
from polydistill.study.memory import LEAST, free_bytes, has_room, largest_ended, resident_bytes

TETHER = Path(__file__).with_name("tether.py")
ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
PATIENCE_SECONDS = 60.0  # for runs that were asked to stop when an error ends the study


class Job(NamedTuple):
    """A command to execute.

    Args:
        name: by which its end is told; one at a time has it.
        command: its words.
        log: file for what it prints; an older one is replaced.
        environment: variables that it has beside this process's own, as (name, value).
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
    """

    name: str
    code: int
    seconds: float


class Executor(Protocol):
    """Executes jobs side by side."""

    @property
    def workers(self) -> int:
        """How many at once."""

    @property
    def running(self) -> int:
        """How many are started and not yet told to have ended."""

    @property
    def short_of_memory(self) -> bool:
        """Whether there is too little memory for another job; never while none is running."""

    def start(self, job: Job) -> None:
        """Start it; at most ``workers`` run at once.

        Raises:
            UserError: it cannot be started.
        """

    def wait(self, seconds: float) -> list[Outcome]:
        """Those that have ended since the last call; returns when one has, or after ``seconds``."""

    def stop(self) -> None:
        """Ask those that are running to save and end; :meth:`wait` tells when they have."""


def _tether() -> list[str]:
    """Words before a command that tie it to this process; none where the system cannot."""
    return [sys.executable, "-I", "-S", str(TETHER), str(os.getpid())] if sys.platform == "linux" else []


class LocalExecutor:
    """An :class:`Executor`: processes of this machine, one core each; a context manager that leaves none behind.

    A process is its own group, so Ctrl-C reaches the study alone, which then asks each run once. To be used in the main
    thread: a run is asked to stop when the thread that started it ends.

    Args:
        workers: processes at once.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._ended: queue.SimpleQueue[Outcome] = queue.SimpleQueue()

    @property
    def running(self) -> int:
        """How many are started and not yet told to have ended."""
        return len(self._processes)

    @property
    def short_of_memory(self) -> bool:
        """See :class:`Executor`. What a job needs is taken from the largest that has ended."""
        held = [resident_bytes(process.pid) for process in self._processes.values()]
        return bool(held) and not has_room(held, free_bytes(), max(LEAST, largest_ended(), *held))

    def start(self, job: Job) -> None:
        """See :class:`Executor`."""
        if self.running >= self.workers:
            raise RuntimeError(f"all {self.workers} workers are busy")
        with disk_errors(job.log):
            job.log.parent.mkdir(parents=True, exist_ok=True)
            log = open(job.log, "wb")  # noqa: SIM115
        started = time.monotonic()
        try:
            with disk_errors(job.log, "start the run of"):  # memory or processes may be used up
                process = subprocess.Popen(
                    [*_tether(), *job.command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=os.environ | dict.fromkeys(ONE_THREAD, "1") | dict(job.environment),
                    start_new_session=True,
                )
        finally:
            log.close()
        self._processes[job.name] = process
        threading.Thread(target=self._await_end, args=(job.name, process, started), daemon=True).start()

    def _await_end(self, name: str, process: subprocess.Popen[bytes], started: float) -> None:
        code = process.wait()
        self._ended.put(Outcome(name, code, time.monotonic() - started))

    def wait(self, seconds: float) -> list[Outcome]:
        """See :class:`Executor`."""
        outcomes = []
        with contextlib.suppress(queue.Empty):
            outcomes.append(self._ended.get(timeout=seconds))
            while True:
                outcomes.append(self._ended.get_nowait())
        for outcome in outcomes:
            del self._processes[outcome.name]
        return outcomes

    def stop(self) -> None:
        """See :class:`Executor`."""
        for process in self._processes.values():
            process.terminate()  # does nothing to one that has ended

    def __enter__(self) -> LocalExecutor:
        return self

    def __exit__(self, *error: object) -> None:
        if not self.running:
            return
        self.stop()
        end = time.monotonic() + PATIENCE_SECONDS
        while self.running and time.monotonic() < end:
            self.wait(0.5)
        for process in self._processes.values():
            process.kill()
