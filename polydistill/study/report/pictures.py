"""The pictures of a report: SVG elements for an HTML page, drawn by matplotlib.

A picture is 360 units wide with letters of 12, so that it can be read on a phone of 360 pixels, and grows with the
screen. Its colours and its typeface are those of the page (CSS variables, see html.py), light or dark.

Contract: the same numbers give the same bytes: no dates, no random identifiers, no random places of dots. matplotlib is
imported here and in trade_offs.py alone, and only when something is drawn.
"""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polydistill.statistics import Interval

WIDTH = 360.0  # points; a point is a pixel where the picture is shown in its own size
ROW = 48.0  # height of an arm or a contrast
LEFT, RIGHT, TOP, BOTTOM = 12.0, 12.0, 8.0, 44.0
LETTER, LINE = 6.6, 15.0  # a letter's width in the middle, and the height of a line
N_COLOURS = 8
# matplotlib draws with these, which stand for the page's variables
INK, QUIET, RULE = "#0a0001", "#0a0002", "#0a0003"
VARIABLES = {INK: "var(--ink)", QUIET: "var(--quiet)", RULE: "var(--rule)"} | {
    f"#0b000{number}": f"var(--c{number})" for number in range(N_COLOURS)
}
MARKERS = "os^Dv<>P"
Groups = Mapping[str, Sequence[tuple[float, float]]]
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # letters stay letters
    "text.parse_math": False,  # a $ in a name is a $
    "axes.formatter.useoffset": False,
    "font.size": 12,
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.5,
}


@dataclass(frozen=True)
class Row:
    """One line of :func:`draw_rows`: a dot per seed, their mean and its interval."""

    name: str
    values: Sequence[float]
    mean: float | None
    interval: Interval | None


def colour(number: int) -> str:
    """Of the number-th arm or contrast."""
    return f"#0b000{number % N_COLOURS}"


def draw_rows(rows: Sequence[Row], label: str, *, zero: bool = False, margin: float | None = None) -> str:
    """Rows one below the other over one axis: every seed as a dot, the mean as a diamond, the interval as a bar.

    Args:
        rows: in the order from the top.
        label: of the axis.
        zero: draws a line at zero.
        margin: of equivalence, a band around zero.
    """

    def paint(figure: Any, height: float) -> None:
        axes = add_axes(figure, height, LEFT, BOTTOM, WIDTH - LEFT - RIGHT, height - TOP - BOTTOM)
        axes.set(ylim=(len(rows) + 0.15, 0), yticks=[], xlabel=label)
        axes.spines["left"].set_visible(False)
        if margin is not None:
            axes.axvspan(-margin, margin, color=RULE, alpha=0.35, linewidth=0)
        if zero:
            axes.axvline(0, color=QUIET, linewidth=1, linestyle=(0, (3, 3)))
        for number, row in enumerate(rows):
            axes.text(0, number + 0.24, shorten(row.name, 44), transform=axes.get_yaxis_transform(), va="center")
            heights = [number + 0.62 + place for place in spread(len(row.values))]
            axes.plot(row.values, heights, "o", color=colour(number), markersize=4, alpha=0.65, markeredgewidth=0)
            _mean(axes, (row.mean, number + 0.9), row.interval, upright=False)

    return draw_element("rows" + label, TOP + BOTTOM + ROW * len(rows), paint)


def draw_pair(
    names: tuple[str, str], pairs: Sequence[tuple[float, float]], gains: Row, label: str, gain_label: str
) -> str:
    """An estimation plot: on the left each seed's two values joined by a line, on the right the paired gains.

    Args:
        names: of the first arm and of the second; the second stands on the left.
        pairs: ``(first, second)`` of each seed.
        gains: of the same seeds.
        label: of the left axis.
        gain_label: of the right axis.
    """

    def paint(figure: Any, height: float) -> None:
        tall = height - 12 - 30
        text, place = wrap_label(label, tall)
        left = add_axes(figure, height, place, 30, 212 - place, tall)
        for first, second in pairs:
            left.plot([0, 1], [second, first], "o-", color=colour(0), alpha=0.55, linewidth=1, markersize=4)
        left.set(xlim=(-0.35, 1.35), ylabel=text)
        left.set_xticks([0, 1], [shorten(name, 13) for name in reversed(names)])
        right = add_axes(figure, height, 272, 30, WIDTH - 272 - 8, tall)
        right.axhline(0, color=QUIET, linewidth=1, linestyle=(0, (3, 3)))
        places = [2 * place for place in spread(len(gains.values))]
        right.plot(places, gains.values, "o", color=colour(1), markersize=4, alpha=0.65, markeredgewidth=0)
        _mean(right, (gains.mean, 0.7), gains.interval, upright=True)
        right.set(xlim=(-0.5, 1), xticks=[], ylabel=gain_label)

    return draw_element("pair" + " ".join(names), 230.0, paint)


def draw_points(groups: Groups, label: str, up: str) -> str:
    """Points ``(x, y)`` of several groups, each with its own colour and sign, and a line at zero.

    Args:
        groups: name -> points; the names stand below.
        label: of the axis that goes right.
        up: of the axis that goes up.
    """
    return _draw_groups(groups, label, up, joined=False)


def draw_lines(groups: Groups, label: str, up: str) -> str:
    """:func:`draw_points` joined by lines, without a line at zero."""
    return _draw_groups(groups, label, up, joined=True)


def _draw_groups(groups: Groups, label: str, up: str, *, joined: bool) -> str:
    from matplotlib.lines import Line2D

    below = BOTTOM + 18.0 * len(groups)  # the names

    def paint(figure: Any, height: float) -> None:
        tall = height - TOP - below
        text, left = wrap_label(up, tall)
        axes = add_axes(figure, height, left, below, WIDTH - 12 - left, tall)
        if not joined:
            axes.axhline(0, color=QUIET, linewidth=1, linestyle=(0, (3, 3)))
        for number, (name, points) in enumerate(groups.items()):
            look: dict[str, Any] = {"color": colour(number), "alpha": 0.75, "markersize": 5, "markeredgewidth": 0}
            look["marker"] = MARKERS[(number + number // N_COLOURS) % len(MARKERS)]
            axes.plot(
                *zip(*points, strict=True),
                linestyle="-" if joined else "none",
                markevery=0.2 if joined else None,
                **look,
            )
            place = (below - BOTTOM - 18.0 * number - 8) / height
            figure.add_artist(Line2D([58 / WIDTH], [place], transform=figure.transFigure, **look))
            figure.text(68 / WIDTH, place, shorten(name, 40), va="center")
        axes.set(xlabel=label, ylabel=text)

    return draw_element("groups" + label, 176.0 + below, paint)


def draw_curves(curves: Sequence[Sequence[float]], means: Sequence[Row], label: str, axis: str) -> str:
    """One thin line per seed over 0, 1, 2, ..., and the means with their intervals.

    Args:
        curves: one per seed, of equal lengths.
        means: one per place on the axis.
        label: of the axis that goes up.
        axis: of the axis that goes right.
    """

    def paint(figure: Any, height: float) -> None:
        text, left = wrap_label(label, height - TOP - BOTTOM)
        axes = add_axes(figure, height, left, BOTTOM, WIDTH - 12 - left, height - TOP - BOTTOM)
        for curve in curves:
            axes.plot(range(len(curve)), curve, color=colour(0), alpha=0.4, linewidth=1)
        for place, row in enumerate(means):
            _mean(axes, (row.mean, place), row.interval, upright=True)
        axes.set(xlabel=axis, ylabel=text, xlim=(-0.3, len(means) - 0.7))
        axes.set_xticks(range(len(means)), [shorten(row.name, 13) for row in means])

    return draw_element("curves" + label, 240.0, paint)


def wrap_label(label: str, height: float) -> tuple[str, float]:
    """The label of an axis of that height, in as many lines as it needs, and where the axis then stands."""
    lines = textwrap.wrap(label, max(int(height / LETTER), 1)) or [""]
    return "\n".join(lines), 52 + LINE * (len(lines) - 1)


def shorten(name: str, most: int) -> str:
    """The name with at most ``most`` letters."""
    line = " ".join(name.split())
    return line if len(line) <= most else line[: most - 1] + "…"


def spread(n: int) -> list[float]:
    """Places within (-0.16, 0.16) for n dots, so that equal ones do not cover each other: by the golden ratio."""
    return [((0.5 + index * 0.618034) % 1 - 0.5) * 0.32 for index in range(n)]


def _mean(axes: Any, at: tuple[float | None, float], interval: Interval | None, *, upright: bool) -> None:
    value, place = at
    if value is None:
        return
    if interval is not None:
        ends, places = list(interval), [place, place]
        axes.plot(*((places, ends) if upright else (ends, places)), "-", color=INK, linewidth=2.5)
    axes.plot(*((place, value) if upright else (value, place)), "D", color=INK, markersize=6, markeredgewidth=0)


def add_axes(figure: Any, height: float, left: float, bottom: float, wide: float, tall: float) -> Any:
    """Axes at a place in points from the lower left corner."""
    axes = figure.add_axes((left / WIDTH, bottom / height, wide / WIDTH, tall / height))
    axes.locator_params(axis="both", nbins=5)
    return axes


def draw_element(name: str, height: float, paint: Callable[[Any, float], None]) -> str:
    """The picture of that height as an ``<svg>`` element; ``name`` keeps its identifiers apart from other pictures'."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    stream = io.StringIO()
    with rc_context({**STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the page's typeface may have the letter
        figure = Figure(figsize=(WIDTH / 72, height / 72))
        FigureCanvasSVG(figure)
        paint(figure, height)
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    return _fit_into_page(stream.getvalue())


def _fit_into_page(svg: str) -> str:
    """The element alone, without a size, with the page's colours and typeface."""
    element = svg[svg.index("<svg") :].strip()
    element = re.sub(r"\s*<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', element, count=1)
    element = re.sub(r'<g id="[^"]*"', "<g", element)
    element = element.replace("xlink:href", "href")
    element = re.sub(r"(?<=[\" ])font: (?:[a-z0-9]+ )*?([\d.]+px) [^;\"]*", r"font-size: \1", element)
    element = re.sub(r"font-family: [^;\"]*;? ?", "", element)
    return re.sub(r"((?:fill|stroke): )(#0[ab]000\d)", lambda found: found[1] + VARIABLES[found[2]], element)
