"""An executor of a study's runs that starts no processes."""

from __future__ import annotations

import runpy
import sys

import pytest

from polydistill.study.executors.interface import Job, Outcome


class InThisProcess:
    """An executor that runs a script's main here, so that nothing heavy is imported again for each run."""

    workers, found = 1, ()
    short_of_memory = elsewhere = False

    def __init__(self, workers: int) -> None:
        self.ended: list[Outcome] = []

    @property
    def running(self) -> int:
        return len(self.ended)

    def start(self, job: Job) -> None:
        interpreter, script, *words = job.command
        assert interpreter == sys.executable
        with pytest.MonkeyPatch.context() as patch:
            for name, value in job.environment:
                patch.setenv(name, value)
            runpy.run_path(script)["main"](words)
        self.ended.append(Outcome(job.name, 0, 1.0))

    def wait(self, seconds: float) -> list[Outcome]:
        ended, self.ended = self.ended, []
        return ended

    def __enter__(self) -> InThisProcess:
        return self

    def __exit__(self, *error: object) -> None:
        pass
