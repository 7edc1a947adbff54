"""Small pictures for a page, as SVG elements written down here: a curve with its band, and bars beside each other.

They are 360 units wide with letters of 12, so that they can be read on a phone of 360 pixels. Their colours are the
page's variables (html.py). Contract: the same numbers give the same bytes; every text is escaped.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

WIDTH = 360
LEFT, RIGHT, TOP, BOTTOM, TALL = 52, 12, 10, 42, 150  # of a curve
ROW, BAR, NAME = 18, 62, 118  # height of a row of bars, length of the longest, width of its name
TICKS = 4


@dataclass(frozen=True)
class Point:
    """Of a curve: the value at ``at``, and the ends of its interval, if it has one."""

    at: float
    value: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Bar:
    """Its length as a share of the longest possible, in [0, 1]; the text at its end; whether it stands out."""

    share: float
    text: str
    strong: bool = False


@dataclass(frozen=True)
class Bars:
    """A column of bars under a title; ``colour`` is a number of the page's, see html.py."""

    title: str
    bars: Sequence[Bar]
    colour: int = 0


@dataclass(frozen=True)
class Image:
    """A PNG file at a place within a picture; its pixels stay squares."""

    png: bytes
    x: float
    y: float
    width: float
    height: float


def draw_curve(runs: Sequence[Point | None], axis: str, top: float | None = None) -> str:
    """Values joined by a line, their intervals as a band behind it; None leaves a gap. The axis up begins at 0.

    Args:
        runs: in the order of ``at``, which is in [0, 1] and shown in per cent.
        axis: what goes right.
        top: of the axis that goes up; None: as the values need.
    """
    points = [point for point in runs if point is not None]
    highest = max((max([point.value, *(point.interval or ())]) for point in points), default=0.0)
    most = top if top is not None else _round_up(highest)

    def place(at: float, value: float) -> str:
        x = LEFT + (WIDTH - LEFT - RIGHT) * at
        return f"{x:.1f},{TOP + TALL * (1 - value / most):.1f}"

    parts = []
    for tick in range(TICKS + 1):
        y = TOP + TALL * (1 - tick / TICKS)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="var(--rule)"/>')
        parts.append(_text(LEFT - 6, y + 4, f"{most * tick / TICKS:.3g}", anchor="end", fill="quiet"))
    for tick in range(5):
        x = LEFT + (WIDTH - LEFT - RIGHT) * tick / 4
        parts.append(_text(x, TOP + TALL + 16, f"{25 * tick}%", anchor="end" if tick == 4 else "middle", fill="quiet"))
    parts.append(_text(LEFT, TOP + TALL + 34, axis))
    for there, run in groupby(runs, key=lambda point: point is not None):
        line = [point for point in run if point is not None]
        if not there:
            continue
        ends = [(point.at, point.interval) for point in line if point.interval is not None]
        if len(ends) > 1:
            around = [place(at, high) for at, (_, high) in ends] + [place(at, low) for at, (low, _) in reversed(ends)]
            parts.append(f'<polygon points="{" ".join(around)}" fill="var(--c0)" fill-opacity="0.25"/>')
        joined = " ".join(place(point.at, point.value) for point in line)
        parts.append(f'<polyline points="{joined}" fill="none" stroke="var(--c0)" stroke-width="2"/>')
        if len(line) == 1:
            across, down = joined.split(",")
            parts.append(f'<circle cx="{across}" cy="{down}" r="3" fill="var(--c0)"/>')
    return _svg(parts, TOP + TALL + BOTTOM)


def draw_bars(names: Sequence[str], columns: tuple[Bars, Bars], images: Sequence[Image] = ()) -> str:
    """Two columns of bars, a row for each name, below images.

    Args:
        names: of the rows.
        columns: each with a bar for each name.
        images: above; the bars begin below the lowest.
    """
    top = max((image.y + image.height + 10 for image in images), default=0.0)
    parts = [
        f'<image x="{image.x:g}" y="{image.y:g}" width="{image.width:g}" height="{image.height:g}" '
        f'style="image-rendering: pixelated" href="data:image/png;base64,{base64.b64encode(image.png).decode()}"/>'
        for image in images
    ]
    wide = (WIDTH - NAME) / 2
    for number, column in enumerate(columns):
        left = NAME + wide * number
        parts.append(_text(left, top + 12, column.title, fill="quiet"))
        for row, bar in enumerate(column.bars):
            y, length = top + 20 + ROW * row, max(BAR * min(max(bar.share, 0.0), 1.0), 1.0)
            look = f'fill="var(--c{column.colour})" fill-opacity="{1 if bar.strong else 0.4:g}"'
            parts.append(f'<rect x="{left:g}" y="{y:g}" width="{length:.1f}" height="{ROW - 5}" {look}/>')
            parts.append(_text(left + length + 4, y + 11, bar.text, strong=bar.strong))
    parts += [_text(0, top + 31 + ROW * row, name) for row, name in enumerate(names)]
    return _svg(parts, top + 24 + ROW * len(names))


def _round_up(value: float) -> float:
    """The next number whose quarters are short, such as 0.8 or 2; 1 where there is nothing to show."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 1.2, 1.6, 2, 2.4, 3, 4, 6, 8, 10, 20) if step * power >= value)


def _text(x: float, y: float, text: str, *, anchor: str = "start", fill: str = "ink", strong: bool = False) -> str:
    weight = ' font-weight="700"' if strong else ""
    look = f'font-size="12" text-anchor="{anchor}" fill="var(--{fill})"{weight}'
    return f'<text x="{x:g}" y="{y:g}" {look}>{escape(text)}</text>'


def _svg(parts: Sequence[str], height: float) -> str:
    inside = "\n".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" role="img">\n{inside}\n</svg>'
