"""Why runs of a study failed, and what every further run would fail of, too."""

from __future__ import annotations

import errno
import itertools
import os
import re
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

from polydistill.errors import UserError

NO_ROOM = (os.strerror(errno.ENOSPC), os.strerror(getattr(errno, "EDQUOT", errno.ENOSPC)), "make room")
TRACEBACK = "Traceback (most recent call last):"
MOST_LINES = 3  # of an exception and its notes that are told
ALIKE = 3  # first runs that fail for the same reason: then the others would, too


class FirstRuns:
    """Looks at the runs as they end, until one has succeeded."""

    def __init__(self) -> None:
        self._reasons: list[str] = []  # without what is a run's own
        self._hopeful = False

    def add_success(self) -> None:
        """A run of an arm has succeeded; a teacher that is trained well says nothing of the arms."""
        self._hopeful = True

    def add_failure(self, name: str, why: str) -> None:
        """The run ``name`` has failed.

        Raises:
            UserError: each of the first runs has, and for the same reason, the numbers in it aside.
        """
        self._reasons.append(re.sub(r"\d+", "", why.replace(name, "")))
        if not self._hopeful and len(self._reasons) == ALIKE and len(set(self._reasons)) == 1:
            raise UserError(f"the first {ALIKE} runs failed alike, so no other is tried; the last, {name}: {why}")


def is_of_full_disk(why: str) -> bool:
    """Whether that is why a run failed."""
    return any(words in why for words in NO_ROOM)


def says_why(log: Path) -> bool:
    """Whether a log holds a reason of a failure: a line ``error:``, or a traceback."""
    lines = list(_last_lines(log)) if log.exists() else []
    return any(line.startswith("error: ") for line in lines) or bool(_last_exception(lines))


def explain(code: int, log: Path) -> str:
    """Why a command failed, in one line.

    It is its own ``error:``; else what its last traceback ends with: the exception, then its notes; else the last line
    that it printed.
    """
    if code < 0 or code > 128:
        number = -code if code < 0 else code - 128
        name = next((known.name for known in signal.Signals if known == number), f"signal {number}")
        return f"ended by {name}" + ("; perhaps memory ran out" if name == "SIGKILL" else "")
    lines = list(_last_lines(log))
    error = next((line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")), "")
    if error:
        return error
    told = "; ".join(line.strip() for line in _last_exception(lines) or lines[-1:])
    return f"{told} (code {code})" if told else f"it ended with code {code} and said nothing"


def _last_exception(lines: Sequence[str]) -> Sequence[str]:
    """The first lines behind the calls of the last traceback, which are indented; empty: there is none."""
    start = next((index for index in reversed(range(len(lines))) if lines[index].endswith(TRACEBACK)), None)
    if start is None:
        return ()
    return list(itertools.dropwhile(lambda line: line[0].isspace(), lines[start + 1 :]))[:MOST_LINES]


def _last_lines(log: Path, n_bytes: int = 20_000) -> Iterator[str]:
    try:
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - n_bytes))
            text = file.read().decode(errors="replace")
    except OSError:
        return
    yield from (line.rstrip() for line in text.splitlines() if line.strip())
