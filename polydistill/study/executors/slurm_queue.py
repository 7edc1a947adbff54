"""Slurm's queue as an executor, through submitit: a job of the queue for each run.

A job that meets its limit of time saves, puts itself into the queue again, and goes on by itself; so does one that is
preempted. Jobs outlive the study that submitted them: ``slurm/jobs.json`` in its folder has their numbers, and the next
start finds them. A study that is stopped leaves the file ``slurm/stop``, at which every job saves and ends.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from pathlib import Path
from typing import Any

from polydistill.disk import atomic_write, disk_errors
from polydistill.errors import UserError
from polydistill.study.executors.errand import make_resumable_errand, outcome_of, words_of
from polydistill.study.executors.interface import Job, Outcome, stop_and_wait
from polydistill.study.executors.settings import SlurmConfig

FOLDER, JOBS, STOP = "slurm", "jobs.json", "stop"
LOOK_SECONDS = 0.5  # between two looks for results
RESULT_SECONDS = 15.0  # after a job has ended, until its result is not expected any more: folders may lag behind
PATIENCE_SECONDS = 120.0  # for runs that were asked to stop when an error ends the study


class SlurmExecutor:
    """An executor of a queue; a context manager.

    Args:
        settings: the queue, and what a job takes of it.
        out: the study's folder, which every computer of the queue sees.
        witness: a file in it, by which they know that they do.
        workers: jobs in the queue or running at once; 0: as many as ``settings`` says.
    """

    short_of_memory = False  # Slurm counts it
    elsewhere = True

    def __init__(self, settings: SlurmConfig, out: Path, witness: Path, workers: int) -> None:
        self.settings, self.witness = settings, witness
        self.workers = workers or settings.jobs
        self.folder = out / FOLDER
        self.found: tuple[str, ...] = ()
        self._jobs: dict[str, Any] = {}
        self._started: dict[str, float] = {}
        self._ended: dict[str, float] = {}  # without a result so far
        self._over: list[Any] = []  # jobs whose numbers are still written down
        self._queue: Any = None

    def __enter__(self) -> SlurmExecutor:
        import submitit

        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / STOP).unlink(missing_ok=True)
        settings, timeouts = self.settings, self.settings.timeouts
        needs: dict[str, Any] = {"cpus_per_task": settings.cpus, "gpus_per_node": settings.gpus}
        try:
            if settings.cluster == "local":
                self._queue = submitit.LocalExecutor(self.folder, max_num_timeout=timeouts)
                needs |= {"timeout_min": settings.minutes}
            else:
                self._queue = submitit.SlurmExecutor(self.folder, max_num_timeout=timeouts)
                needs |= {"time": math.ceil(settings.minutes), "job_name": "polydistill", **settings.options}
                needs |= {"partition": settings.partition} if settings.partition else {}
                needs |= {"mem": f"{settings.memory_gib:g}GB"} if settings.memory_gib else {}
            self._queue.update_parameters(signal_delay_s=settings.warning_seconds, **needs)
        except (RuntimeError, ValueError) as error:  # no Slurm here, or an option that submitit does not know
            raise UserError(f"no queue {settings.cluster}: {str(error).splitlines()[0]}") from error
        self._find()
        return self

    def _find(self) -> None:
        """Take over the jobs that an earlier start has left."""
        try:
            known = json.loads((self.folder / JOBS).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise UserError(
                f"cannot read {self.folder / JOBS}: {error}; remove it if no job is in the queue"
            ) from error
        for name, (cluster, number) in known.items():
            if cluster == self.settings.cluster:
                self._jobs[name] = self._queue.job_class(self.folder, number)
                self._started[name] = time.monotonic()
        self.found = tuple(self._jobs)

    @property
    def running(self) -> int:
        """How many are in the queue or running, and not yet told to have ended."""
        return len(self._jobs)

    def start(self, job: Job) -> None:
        """See :class:`~polydistill.study.executors.interface.Executor`."""
        words = words_of(job, self.witness, self.folder / STOP)
        try:
            self._jobs[job.name] = self._queue.submit(make_resumable_errand(), words)
        except Exception as error:  # of many kinds: sbatch refuses, the disk is full
            raise UserError(f"cannot submit {job.name}: {_in_a_line(error)}") from error
        self._started[job.name] = time.monotonic()
        self._keep()

    def _keep(self) -> None:
        """Write down the numbers of the jobs."""
        known = {name: [self.settings.cluster, job.job_id] for name, job in self._jobs.items()}
        atomic_write(self.folder / JOBS, json.dumps(known, indent=1).encode())

    def wait(self, seconds: float) -> list[Outcome]:
        """See :class:`~polydistill.study.executors.interface.Executor`."""
        end = time.monotonic() + seconds
        while True:
            outcomes = [outcome for name in list(self._jobs) if (outcome := self._look(name)) is not None]
            left = end - time.monotonic()
            if outcomes or left <= 0:
                break
            time.sleep(min(LOOK_SECONDS, left))
        if outcomes:
            self._keep()
            self._tidy()
        return outcomes

    def _tidy(self) -> None:
        """Remove what submitit kept of the jobs that are over: two files for each run would fill the folder."""
        for job in self._over:
            for pickle in (job.paths.submitted_pickle, job.paths.result_pickle):
                with contextlib.suppress(OSError):
                    pickle.unlink(missing_ok=True)
        self._over.clear()

    def _look(self, name: str) -> Outcome | None:
        """Whether a job has ended, and how."""
        job = self._jobs[name]
        if not job.paths.result_pickle.exists():
            if not self._has_ended(name):
                self._ended.pop(name, None)
                return None
            if time.monotonic() - self._ended.setdefault(name, time.monotonic()) < RESULT_SECONDS:
                return None
            return self._end(name, {"refused": f"its job {job.job_id} ended without a word"})
        try:
            return self._end(name, job.result())
        except Exception as error:  # whatever the job raised
            return self._end(name, {"refused": _in_a_line(error)})

    def _has_ended(self, name: str) -> bool:
        """What the queue says of a job that has left no result."""
        job = self._jobs[name]
        if name in self.found and self.settings.cluster == "local":  # not this process's child
            try:
                os.kill(int(job.job_id), 0)
            except (OSError, ValueError):
                return True
            return False
        return bool(job.done())

    def _end(self, name: str, answer: dict[str, Any]) -> Outcome:
        self._over.append(self._jobs.pop(name))
        self._ended.pop(name, None)
        return outcome_of(name, answer, time.monotonic() - self._started[name])

    def stop(self) -> None:
        """See :class:`~polydistill.study.executors.interface.Executor`; those that wait in the queue leave it."""
        with disk_errors(self.folder / STOP):
            (self.folder / STOP).touch()
        for job in self._jobs.values():
            if job.state == "PENDING":
                job.cancel(check=False)

    def __exit__(self, *error: object) -> None:
        stop_and_wait(self, PATIENCE_SECONDS)
        for job in self._jobs.values():
            job.cancel(check=False)


def _in_a_line(error: BaseException) -> str:
    """The last line of an error that is a word of its own: submitit's end with a traceback between lines of dashes."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(("---", "You can check", "- "))]
    return told[-1] if told else type(error).__name__
