"""A signal that arrives at a known moment, for tests of what is stopped and continued."""

from __future__ import annotations

import signal
from typing import Any

from polydistill.runs.interruption import StopSignals


class StopAt(StopSignals):
    """Has received SIGTERM from the ``at``-th time on that it is asked."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = at

    def __getattribute__(self, name: str) -> Any:
        if name != "received":
            return super().__getattribute__(name)
        self.left -= 1
        return signal.SIGTERM if self.left <= 0 else None
