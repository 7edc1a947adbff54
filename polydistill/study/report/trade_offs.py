"""What something costs against what it is worth, as a picture: for a page, or as files of their own.

Contract: as in pictures.py. A file is light, whatever the page is, and has its own letters.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polydistill.statistics import Interval
from polydistill.study.report.pictures import (
    BOTTOM,
    INK,
    QUIET,
    RIGHT,
    RULE,
    STYLE,
    TOP,
    WIDTH,
    add_axes,
    colour,
    draw_element,
    shorten,
    wrap_label,
)

TALL = 250.0  # height of a picture
PRINTED = {INK: "#1b1b1b", QUIET: "#5d5d5d", RULE: "#d4d4d4", colour(0): "#0067a3"}  # of html.py, in light


@dataclass(frozen=True)
class Mark:
    """What something costs, and what it is worth: a point of a trade-off, with the interval of its worth."""

    name: str
    cost: float
    worth: float
    interval: Interval | None = None


@dataclass(frozen=True)
class TradeOff:
    """The marks of one picture.

    Args:
        marks: costs are positive.
        reference: what they are compared with, a mark of its own.
        enough: worth at which a line is drawn.
        across: label of the axis of costs, which is logarithmic.
        up: label of the axis of worth.
    """

    marks: Sequence[Mark]
    reference: Mark
    enough: float
    across: str
    up: str


def draw_trade_off(shown: TradeOff) -> str:
    """A trade-off for a page."""

    def paint(figure: Any, height: float) -> None:
        _paint_trade_off(figure, height, shown, {})

    return draw_element("trade-off" + shown.across, TALL, paint)


def print_trade_offs(shown: Sequence[TradeOff]) -> dict[str, bytes]:
    """Trade-offs side by side, as the content of files of their own: ending -> content, of "png" and "svg"."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style = {key: PRINTED.get(value, value) if isinstance(value, str) else value for key, value in STYLE.items()}
    files = {}
    with rc_context({**style, "svg.hashsalt": "trade-offs"}):
        figure = Figure(figsize=(WIDTH * len(shown) / 72, TALL / 72))
        for one, part in zip(shown, figure.subfigures(1, len(shown), squeeze=False)[0], strict=True):
            _paint_trade_off(part, TALL, one, PRINTED)
        for ending, canvas in (("png", FigureCanvasAgg), ("svg", FigureCanvasSVG)):
            canvas(figure)
            stream = io.BytesIO()
            nothing = {"Software": None} if ending == "png" else dict.fromkeys(("Creator", "Date", "Format", "Type"))
            figure.savefig(stream, format=ending, dpi=200, facecolor="white", metadata=nothing)
            files[ending] = stream.getvalue()
    return files


def _paint_trade_off(figure: Any, height: float, shown: TradeOff, colours: Mapping[str, str]) -> None:
    """Paint in the page's own colours, or in those that ``colours`` has in their place."""
    ink, quiet, own = (colours.get(name, name) for name in (INK, QUIET, colour(0)))
    tall = height - TOP - BOTTOM
    text, left = wrap_label(shown.up, tall)
    axes = add_axes(figure, height, left, BOTTOM, WIDTH - RIGHT - left, tall)
    for level, dashes in ((shown.reference.worth, (3, 3)), (shown.enough, (1, 3))):
        axes.axhline(level, color=quiet, linewidth=1, linestyle=(0, dashes))
    for mark in shown.marks:
        if mark.interval is not None:
            axes.plot([mark.cost, mark.cost], list(mark.interval), "-", color=own, linewidth=2, alpha=0.6)
        axes.plot(mark.cost, mark.worth, "o", color=own, markersize=6, markeredgewidth=0)
    at = shown.reference
    axes.plot(at.cost, at.worth, "D", color=ink, markersize=6, markeredgewidth=0)
    costs = [mark.cost for mark in (*shown.marks, at)]
    first, last = min(costs) / 1.8, max(costs) * 1.8
    ends = [end for mark in shown.marks for end in (mark.interval or (mark.worth,))]
    low, high = min(0.8, shown.enough, *ends), max(1.0, at.worth, *ends)
    pad = 0.12 * (high - low)
    axes.set(
        xlabel=shown.across, ylabel=text, xscale="log", xlim=(first, last), ylim=(low - 3.5 * pad, high + 1.5 * pad)
    )
    axes.minorticks_off()
    places = _round_places(first, last)
    axes.set_xticks(places, [_brief(place) for place in places])

    def name(mark: Mark, level: float, side: str) -> None:
        end = mark.worth if mark.interval is None or side == "bottom" else mark.interval.low
        up = {"textcoords": "offset points", "ha": "center", "va": side, "color": ink, "fontsize": 10}
        axes.annotate(shorten(mark.name, 18), (mark.cost, end), (0, level), **up)

    wide = (WIDTH - RIGHT - left) / math.log(last / first)
    for mark, level in zip(shown.marks, _levels(shown.marks, wide), strict=True):
        name(mark, -7 - 12 * level, "top")
    name(at, 7, "bottom")


def _levels(marks: Sequence[Mark], points: float) -> list[int]:
    """The line below its mark on which each name stands, so that none covers another.

    Args:
        marks: in any order.
        points: of the axis for a factor of e.
    """
    levels: dict[int, int] = {}
    taken: list[float] = []  # where the last name of each line ends
    for index in sorted(range(len(marks)), key=lambda index: marks[index].cost):
        middle, half = points * math.log(marks[index].cost), 3.2 * len(shorten(marks[index].name, 18)) + 2
        level = next((line for line, end in enumerate(taken) if end <= middle - half), len(taken))
        taken[level : level + 1] = [middle + half]
        levels[index] = level
    return [levels[index] for index in range(len(marks))]


def _round_places(first: float, last: float, most: int = 5) -> list[float]:
    """Places for ticks between two costs: 1, 2 and 5 times the powers of ten, or the powers alone."""
    powers = range(math.floor(math.log10(first)), math.ceil(math.log10(last)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        places = [step * 10.0**power for power in powers for step in steps]
        inside = [place for place in places if first <= place <= last]
        if len(inside) <= most:
            break
    return inside


def _brief(cost: float) -> str:
    """``500``, ``2k``, ``1M``."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if cost >= limit:
            return f"{cost / limit:g}{letter}"
    return f"{cost:g}"
