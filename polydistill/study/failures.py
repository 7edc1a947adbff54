"""Why runs of a study failed, and what every further run would fail of, too."""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

from polydistill.errors import UserError

NO_ROOM = (os.strerror(errno.ENOSPC), os.strerror(getattr(errno, "EDQUOT", errno.ENOSPC)), "make room")
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


def explain(code: int, log: Path) -> str:
    """Why a command failed, in one line: its own ``error:``, or the last line that it printed."""
    if code < 0 or code > 128:
        number = -code if code < 0 else code - 128
        name = next((known.name for known in signal.Signals if known == number), f"signal {number}")
        return f"ended by {name}" + ("; perhaps memory ran out" if name == "SIGKILL" else "")
    lines = list(_last_lines(log))
    error = next((line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")), "")
    return error or (f"{lines[-1]} (code {code})" if lines else f"it ended with code {code} and said nothing")


def _last_lines(log: Path, n_bytes: int = 20_000) -> Iterator[str]:
    try:
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - n_bytes))
            text = file.read().decode(errors="replace")
    except OSError:
        return
    yield from (line.strip() for line in text.splitlines() if line.strip())
