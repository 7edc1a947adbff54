"""SIGTERM and Ctrl-C as a wish: the loop ends its step, saves, and leaves; a second one is obeyed at once.

A signal handler runs between any two instructions, in the middle of a write too. So it only leaves word, and the loop
asks at a point where everything is in order.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

from polydistill.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Whether this process was asked to stop; a context manager, during which the signals have this meaning.

    Outside the main thread, where Python allows no handlers, it does nothing. A signal that is ignored stays so, as
    Ctrl-C under ``nohup`` or in the background of a shell.

    Attributes:
        received: the signal; None: none so far.

    Example:
        >>> with StopSignals() as stop:
        ...     os.kill(os.getpid(), signal.SIGTERM)
        ...     stop.received
        <Signals.SIGTERM: 15>
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def raise_if_received(self, how_to_go_on: str) -> None:
        """To be called when all is saved.

        Raises:
            Interrupted: there was a signal; :func:`polydistill.errors.run_script` makes it code 130 or 143.
        """
        if self.received is not None:
            raise Interrupted(self.received, how_to_go_on)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            os._exit(128 + number)  # not sys.exit: nothing that could wait or fail
        self.received = signal.Signals(number)
        # not print: the signal may have come in the middle of one
        os.write(2, f"{self.received.name}: ending this step and saving; once more: leave at once\n".encode())
