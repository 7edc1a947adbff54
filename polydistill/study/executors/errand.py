"""What a study's computer sends to another one: a function that needs nothing there but Python.

Contract: cloudpickle sends what :func:`make_errand` returns by its code, since no module has it by name. So a computer
that has no polydistill, or another one, can say so. Only plain values go to and fro.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from polydistill.errors import UserError
from polydistill.provenance import version_of_code
from polydistill.study.executors.interface import Job, Outcome

Words = Mapping[str, Any]
Errand = Callable[[Words], dict[str, Any]]
LOST_BY = {15: "SIGTERM", 9: "SIGKILL"}  # POSIX's; what computers send: a limit, another's turn, memory that ran out


def make_errand() -> Errand:
    """A function of :func:`words_of`'s words, to be called on another computer.

    It gives ``{"code": of the command, "seconds": that it took}``, or ``{"refused": why, in one line}``.
    """

    def errand(words: Words) -> dict[str, Any]:
        import platform

        here = platform.node()
        try:
            from polydistill.study.executors.task import carry_out
        except ImportError as error:
            version = "none"
            try:
                import polydistill

                version = getattr(polydistill, "__version__", "another")
            except ImportError:
                pass
            return {
                "refused": f"{here} has not the polydistill of this study ({error}): it has {version}, the study "
                f"{words['version']}; install that there"
            }
        return carry_out(words)

    return errand


def make_resumable_errand() -> Any:
    """An errand with ``checkpoint``, which submitit calls when its job is to end before it is done.

    What goes into the queue again is the same errand: the run itself knows how far it was.
    """
    run = make_errand()

    class ResumableErrand:
        def __call__(self, words: Words) -> dict[str, Any]:
            return run(words)

        def checkpoint(self, words: Words) -> Any:
            from submitit.helpers import DelayedSubmission

            from polydistill.study.executors.task import save

            save()
            return DelayedSubmission(self, words)

    return ResumableErrand()


def words_of(job: Job | None, witness: Path, stop: Path | None = None) -> dict[str, Any]:
    """What an errand is told.

    Args:
        job: to do; None: only to look whether one could be done.
        witness: a file of the study's folder, by which another computer sees that it has the same folder.
        stop: a file in it that asks the job to end once it is there.

    Raises:
        UserError: the witness cannot be read.
    """
    try:
        seen = hashlib.sha256(witness.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {witness}: {error.strerror}") from error
    return {
        "version": version_of_code(),
        "folder": os.getcwd(),
        "witness": str(witness.absolute()),
        "seen": seen,
        "command": None if job is None else list(job.command[1:]),
        "log": None if job is None else str(job.log.absolute()),
        "stop": None if stop is None else str(stop.absolute()),
        "environment": {} if job is None else dict(job.environment),
    }


def outcome_of(name: str, answer: Words, seconds: float) -> Outcome:
    """What an errand's answer says of its job.

    Args:
        name: of the job.
        answer: of the errand; ``{"refused": why}`` also where none came.
        seconds: since the job was started, for an answer that has none.
    """
    lost, code = answer.get("refused", ""), answer.get("code", 1)
    for number, signal in LOST_BY.items():
        if not lost and code in {-number, 128 + number}:
            lost = f"ended by {signal}"
    return Outcome(name, code, answer.get("seconds", seconds), lost)
