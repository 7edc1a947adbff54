"""The cores of this machine as an executor: a process for each job."""

from __future__ import annotations

import contextlib
import queue
import subprocess
import threading
import time

from polydistill.study.executors.interface import Job, Outcome, stop_and_wait
from polydistill.study.executors.process import start_process
from polydistill.study.memory import LEAST, free_bytes, has_room, largest_ended, resident_bytes

PATIENCE_SECONDS = 60.0  # for runs that were asked to stop when an error ends the study


class LocalExecutor:
    """An executor: processes of this machine, one core each; a context manager that leaves none behind.

    A process is its own group, so Ctrl-C reaches the study alone, which then asks each run once. To be used in the main
    thread: a run is asked to stop when the thread that started it ends.

    Args:
        workers: processes at once.
    """

    found: tuple[str, ...] = ()
    elsewhere = False

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
        """Of this machine; what a job needs is taken from the largest that has ended."""
        held = [resident_bytes(process.pid) for process in self._processes.values()]
        return bool(held) and not has_room(held, free_bytes(), max(LEAST, largest_ended(), *held))

    def start(self, job: Job) -> None:
        """See :class:`~polydistill.study.executors.interface.Executor`."""
        if self.running >= self.workers:
            raise RuntimeError(f"all {self.workers} workers are busy")
        started = time.monotonic()
        process = start_process(job.command, job.log, dict(job.environment))
        self._processes[job.name] = process
        threading.Thread(target=self._await_end, args=(job.name, process, started), daemon=True).start()

    def _await_end(self, name: str, process: subprocess.Popen[bytes], started: float) -> None:
        code = process.wait()
        self._ended.put(Outcome(name, code, time.monotonic() - started))

    def wait(self, seconds: float) -> list[Outcome]:
        """See :class:`~polydistill.study.executors.interface.Executor`."""
        outcomes = []
        with contextlib.suppress(queue.Empty):
            outcomes.append(self._ended.get(timeout=seconds))
            while True:
                outcomes.append(self._ended.get_nowait())
        for outcome in outcomes:
            del self._processes[outcome.name]
        return outcomes

    def stop(self) -> None:
        """See :class:`~polydistill.study.executors.interface.Executor`."""
        for process in self._processes.values():
            process.terminate()  # does nothing to one that has ended

    def __enter__(self) -> LocalExecutor:
        return self

    def __exit__(self, *error: object) -> None:
        stop_and_wait(self, PATIENCE_SECONDS)
        for process in self._processes.values():
            process.kill()
