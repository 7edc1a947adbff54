"""A process for a command, tied to the one that starts it: what every executor does at last, on whatever computer."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from polydistill.disk import disk_errors

TETHER = Path(__file__).with_name("tether.py")
ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def start_process(
    command: Sequence[str], log: Path, environment: Mapping[str, str], folder: str | None = None
) -> subprocess.Popen[bytes]:
    """Start a command with one thread, in a group of its own, so that Ctrl-C does not reach it.

    On Linux it gets SIGTERM when the thread that started it ends: start it in one that lives as long as the process.

    Args:
        command: its words.
        log: file for what it prints; an older one is replaced, its folder is made.
        environment: variables that it has beside this process's own.
        folder: where it works; None: where this process does.

    Raises:
        UserError: the log cannot be written, or no process be started.
    """
    with disk_errors(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        file = open(log, "wb")  # noqa: SIM115
    try:
        with disk_errors(log, "start the run of"):  # memory or processes may be used up
            return subprocess.Popen(
                [*_tether(), *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | dict.fromkeys(ONE_THREAD, "1") | dict(environment),
                cwd=folder,
                start_new_session=True,
            )
    finally:
        file.close()


def _tether() -> list[str]:
    """Words before a command that tie it to this process; none where the system cannot."""
    return [sys.executable, "-I", "-S", str(TETHER), str(os.getpid())] if sys.platform == "linux" else []
