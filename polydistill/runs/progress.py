"""How far a loop is: a bar on a terminal, a line about every ten seconds elsewhere. rich is imported when first needed;
where it is not installed, or the terminal is a dumb one, a terminal gets lines too."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

REDRAW_SECONDS = 0.2
LINE_SECONDS = 10.0
BAR_COLUMNS = (8, 40)  # of the bar itself, at least and at most
SHORTEST = 12  # columns of a description; before it becomes shorter, parts of the state are left out


class Progress:
    """How far a loop is; a context manager. :meth:`advance` costs about a microsecond between two redraws.

    A loop that does more than its total raises the total: there is never more than 100%. The rate is that of this
    process: what an earlier one did does not count. A bar takes one line of the terminal, whatever its width: on a
    narrow one the bar becomes shorter, then the description; then the count, the rate, the bar and the time left are
    left out. The numbers that :meth:`advance` was given stay.

    Args:
        description: of the loop.
        total: how many ``unit`` it will do.
        unit: a plural.
        done: how many of them an earlier process did.
    """

    def __init__(self, description: str, total: int, unit: str, done: int = 0) -> None:
        self.description, self.total, self.unit = description, max(total, done), unit
        self.done = self._done_before = done
        self._numbers: dict[str, float | str] = {}
        self._word = ""
        self._live: Live | None = None
        self._start = self._shown_at = time.monotonic()
        self._interval = LINE_SECONDS

    def __enter__(self) -> Progress:
        self._start = self._shown_at = time.monotonic()
        if sys.stderr.isatty():
            self._live = self._open_bar()
        if self._live is not None:
            self._interval = REDRAW_SECONDS
            self._live.start(refresh=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._word = ""
        self._show()
        if self._live is not None:
            self._live.stop()

    def advance(self, n: int = 1, **numbers: float | str) -> None:
        """``n`` more are done; of each of the ``numbers`` the newest value is shown, text as it is."""
        self.done += n
        if self.done > self.total:
            self.total = self.done
        self._numbers |= numbers
        if self._word:
            self._word = ""
            self._shown_at -= REDRAW_SECONDS if self._live is not None else 0.0
        if time.monotonic() - self._shown_at >= self._interval:
            self._show()

    def say(self, text: str) -> None:
        """Show ``text`` in place of the numbers until the next :meth:`advance`: what the loop does meanwhile.

        On a terminal at once; elsewhere only if the last line is ten seconds old.
        """
        self._word = text
        if self._live is not None or time.monotonic() - self._shown_at >= self._interval:
            self._show()

    def state(self) -> str:
        """Done, percent, rate, time left and numbers, as text."""
        return self._states()[0]

    def _states(self) -> list[str]:
        """The state, from the longest text to the shortest."""
        percent = f"{100 * self.done // max(self.total, 1)}%"  # rounded down: 100% is all of it
        count = f"{self.done:,}/{self.total:,} {self.unit} ({percent})"
        if self._word:
            return [f"{count}, {self._word}", f"{percent}, {self._word}"]
        seconds = time.monotonic() - self._start
        per_second = (self.done - self._done_before) / seconds if seconds > 0 else 0.0
        rate, left = [], []
        if per_second:
            seconds_left = int((self.total - self.done) / per_second)
            form = ",.4g" if per_second < 1000 else ",.0f"
            rate = [f"{per_second:{form}} {self.unit}/s"]
            left = [f"eta {seconds_left // 3600}:{seconds_left // 60 % 60:02d}:{seconds_left % 60:02d}"]
        numbers = [
            f"{name} {value if isinstance(value, str) else format(float(value), '.4g')}"
            for name, value in self._numbers.items()
        ]
        start = [[count, *rate, *left], [percent, *rate, *left], [percent, *left], [percent]]
        return [", ".join([*words, *numbers]) for words in start]

    def _show(self) -> None:
        self._shown_at = time.monotonic()
        if self._live is None:
            print(f"{self.description}: {self.state()}", file=sys.stderr, flush=True)
        else:
            self._live.refresh()

    def _open_bar(self) -> Live | None:
        try:
            from rich.console import Console
            from rich.live import Live
        except ImportError:
            return None
        console = Console(stderr=True)
        if not console.is_terminal or console.is_dumb_terminal:
            return None
        return Live(get_renderable=lambda: self._line(console.width), console=console, auto_refresh=False)

    def _line(self, columns: int) -> Table:
        """Description, bar and state, in as many columns as there are."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        description, states = Text(self.description), self._states()
        shortest = min(description.cell_len, SHORTEST)
        for state, bar in [*((state, BAR_COLUMNS[0]) for state in states[:-1]), (states[-2], 0), (states[-1], 0)]:
            room = columns - len(state) - 2
            if room - bar >= shortest:
                break
        description.truncate(max(room - bar, 1), overflow="ellipsis")
        bar = min(BAR_COLUMNS[1], max(bar, room - description.cell_len))
        drawn = [ProgressBar(max(self.total, 1), self.done, width=bar)] if bar else []
        line = Table.grid(padding=(0, 1, 0, 0))
        line.add_column(width=description.cell_len, no_wrap=True)
        for _ in drawn:
            line.add_column(width=bar)
        line.add_column(no_wrap=True, overflow="crop")
        line.add_row(description, *drawn, Text(state))
        return line
