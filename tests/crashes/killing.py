"""Run a command again and again, killing it at random moments, until it ends by itself; then compare.

Everything here is about processes and a folder: which command is run, and what must be equal in the end, is the
caller's, so that both scripts are put through the same. Runs are killed with SIGKILL, which nothing can catch: a third
of them when a file is just being written.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Command = Callable[[Path], Sequence[str]]
Comparison = Callable[[Path, Path], None]

ROOT = Path(__file__).resolve().parent.parent.parent
POLL_SECONDS = 0.0005
WRITTEN = (".*.tmp", "checkpoints/.*.tmp", "recordings/*/.*.tmp", "scores/*/.*.tmp")  # a file on its way
MANY = 1000  # kills: a run that needs more makes no progress


@dataclass
class Tally:
    """What a run went through."""

    kills: int = 0
    while_writing: int = 0
    damaged: int = 0
    seconds: float = 0.0
    outputs: list[str] = field(default_factory=list)


class _Started:
    """The processes of :func:`start`, for :func:`end_all`: no Ctrl-C arrives in their own sessions."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.processes: list[subprocess.Popen[str]] = []
        self.over = False


_started = _Started()


def start(words: Sequence[str], environment: Mapping[str, str], *, errors_apart: bool = False) -> subprocess.Popen[str]:
    """The command in a session of its own, so that what it starts dies with it; its output is one text, or two."""
    with _started.lock:
        if _started.over:
            raise RuntimeError("nothing more is started")
        process = subprocess.Popen(
            list(words),
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if errors_apart else subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        _started.processes = [one for one in _started.processes if one.returncode is None] + [process]
    return process


def end_all() -> None:
    """Kill whatever :func:`start` has started, and let it start nothing more: the last act of a process."""
    with _started.lock:
        _started.over = True
        for process in _started.processes:
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                os.killpg(process.pid, signal.SIGKILL)


def is_writing(out: Path) -> bool:
    """Whether a file is just being written, or was when the process died."""
    return any(any(out.glob(pattern)) for pattern in WRITTEN)


def kill_after(process: subprocess.Popen[str], out: Path, seconds: float, *, at_a_write: bool) -> bool:
    """SIGKILL after ``seconds``, or at the first write after that; False if it ended before."""
    deadline = time.monotonic() + seconds
    while process.poll() is None:
        left = deadline - time.monotonic()
        if left <= 0 and (not at_a_write or is_writing(out)):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return process.returncode == -signal.SIGKILL
        time.sleep(POLL_SECONDS if left <= 0 else min(left, 0.05))
    return False


def run_killed(
    command: Command,
    out: Path,
    rng: random.Random,
    *,
    kills: int,
    longest_seconds: float,
    environment: Mapping[str, str] | None = None,
) -> Tally:
    """Run ``command(out)`` until it ends by itself, killing it the first ``kills`` times.

    Args:
        command: the words of the command that runs in the folder ``out``.
        out: the folder.
        rng: draws the moments.
        kills: how many times.
        longest_seconds: between the start of a process and its death, drawn evenly; its start-up counts.
        environment: what is added to this process's.

    Raises:
        AssertionError: it ended with an error.
    """
    tally, began = Tally(), time.monotonic()
    while True:
        process = start(command(out), environment or {})
        try:
            if tally.kills < min(kills, MANY):
                delay, at_a_write = rng.uniform(0.0, longest_seconds), rng.random() < 1 / 3
                if kill_after(process, out, delay, at_a_write=at_a_write):
                    tally.kills += 1
                    tally.while_writing += is_writing(out)
                    tally.outputs.append(process.communicate()[0])
                    continue
            output, _ = process.communicate(timeout=1800)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        tally.outputs.append(output)
        tally.damaged = sum(text.count("a checkpoint is damaged") for text in tally.outputs)
        tally.seconds = time.monotonic() - began
        assert process.returncode == 0, output
        assert "Traceback" not in "".join(tally.outputs), "".join(tally.outputs)
        return tally
