"""SIGTERM and Ctrl-C as a request: the loop ends its step, saves and stops; a second one ends the process at once.

A signal handler runs between any two instructions, in the middle of a write too. So it only sets a flag, and the loop
reads it at a point where everything is in order. A handler does not run before a long call into C returns, such as one
that waits for another process; so a thread watches for the second signal.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from types import FrameType
from typing import Any

from polydistill.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Whether this process was asked to stop; a context manager, during which the signals have this meaning.

    Outside the main thread, where Python allows no handlers, it has received what the main thread tells, see
    :meth:`tell_threads`. A signal that is ignored stays ignored, as Ctrl-C under ``nohup`` or in the background of a
    shell.

    Example:
        >>> with StopSignals() as stop:
        ...     os.kill(os.getpid(), signal.SIGTERM)
        ...     stop.received
        <Signals.SIGTERM: 15>
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._open = contextlib.ExitStack()

    @property
    def received(self) -> signal.Signals | None:
        """The signal; None: none so far."""
        if self._received is None and threading.current_thread() is not threading.main_thread():
            return _told[-1] if _told else None
        return self._received

    def tell_threads(self) -> None:
        """Let those of other threads receive, from now on, what this one has: all of them at a moment of its choice."""
        if self._received is not None:
            _told.append(self._received)

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            numbers = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._watch(frozenset(numbers))
            for number in numbers:
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        if self in _watching:
            _told.clear()
        while self._before:
            signal.signal(*self._before.popitem())
        self._open.close()

    def _watch(self, numbers: frozenset[int]) -> None:
        """Start a thread that receives each signal at once, and ends the process at the second of ``numbers``."""
        told, tells = socket.socketpair()
        for end in (told, tells):
            self._open.callback(end.close)
        tells.setblocking(False)
        before = signal.set_wakeup_fd(tells.fileno(), warn_on_full_buffer=False)
        thread = threading.Thread(target=_leave_at_second, args=(told, numbers), daemon=True)
        thread.start()
        self._open.callback(thread.join)
        self._open.callback(tells.shutdown, socket.SHUT_WR)  # ends the thread
        self._open.callback(signal.set_wakeup_fd, before)
        _watching.add(self)
        self._open.callback(_watching.discard, self)

    def raise_if_received(self, how_to_go_on: str) -> None:
        """To be called when all is saved.

        Raises:
            Interrupted: there was a signal; :func:`polydistill.errors.run_script` makes it code 130 or 143.
        """
        if self.received is not None:
            raise Interrupted(self.received, how_to_go_on)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            return  # the thread ends the process
        self._received = signal.Signals(number)
        # not print: the signal may have come in the middle of one
        os.write(2, f"{self._received.name}: ending this step and saving; a second one stops at once\n".encode())


_watching: set[StopSignals] = set()
_told: list[signal.Signals] = []  # to other threads


def _forget_in_child() -> None:
    if _watching:  # a forked child would tell its parent's thread of its own signals
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):  # Windows has no forks
    os.register_at_fork(after_in_child=_forget_in_child)


def _leave_at_second(told: socket.socket, numbers: frozenset[int]) -> None:
    """Read the numbers of the signals as they come, until the other end is closed."""
    seen = 0
    while numbers_told := told.recv(64):
        for number in numbers_told:
            seen += number in numbers
            if seen > 1:
                os._exit(128 + number)  # not sys.exit: nothing that could wait or fail
