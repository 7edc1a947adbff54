"""How far a loop is: a bar on a terminal, a line now and then elsewhere. rich is imported when first needed."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

REDRAW_SECONDS = 0.2
LINE_SECONDS = 10.0


class Progress:
    """How far a loop is; a context manager. :meth:`advance` costs under a microsecond between two redraws."""

    def __init__(self, description: str, total: int, unit: str, done: int = 0) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.done = self._done_before = done  # what an earlier run did does not count for the rate
        self._numbers: dict[str, float] = {}
        self._bar: RichProgress | None = None
        self._start = self._shown_at = time.monotonic()
        self._interval = LINE_SECONDS

    def __enter__(self) -> Progress:
        self._start = self._shown_at = time.monotonic()
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as RichProgress

            text = TextColumn("{task.description}", markup=False)
            numbers = TextColumn("{task.fields[state]}", markup=False)
            self._bar = RichProgress(text, BarColumn(), numbers, console=Console(stderr=True), auto_refresh=False)
            self._bar.add_task(self.description, total=self.total, state="")
            self._bar.start()
            self._interval = REDRAW_SECONDS
        return self

    def __exit__(self, *error: object) -> None:
        self._show()
        if self._bar is not None:
            self._bar.stop()

    def advance(self, n: int = 1, **numbers: float) -> None:
        """``n`` more are done; ``numbers`` are shown beside, the newest value of each."""
        self.done += n
        self._numbers |= numbers
        if time.monotonic() - self._shown_at >= self._interval:
            self._show()

    def state(self) -> str:
        """Done, percent, rate, time left and numbers, as text."""
        seconds = time.monotonic() - self._start
        rate = (self.done - self._done_before) / seconds if seconds > 0 else 0.0
        parts = [f"{self.done:,}/{self.total:,} {self.unit} ({100 * self.done / max(self.total, 1):.0f}%)"]
        if rate:
            left = max(self.total - self.done, 0) / rate
            parts.append(f"{rate:,.4g} {self.unit}/s" if rate < 1000 else f"{rate:,.0f} {self.unit}/s")
            parts.append(f"eta {int(left) // 3600}:{int(left) // 60 % 60:02d}:{int(left) % 60:02d}")
        return ", ".join([*parts, *(f"{name} {float(value):.4g}" for name, value in self._numbers.items())])

    def _show(self) -> None:
        self._shown_at = time.monotonic()
        if self._bar is None:
            print(f"{self.description}: {self.state()}", file=sys.stderr, flush=True)
        else:
            self._bar.update(self._bar.task_ids[0], completed=self.done, state=self.state(), refresh=True)
