"""polydistill.report.sketches: pictures that every browser can read, whatever the names and the numbers."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from polydistill.report.sketches import Bar, Bars, Image, Point, draw_bars, draw_curve

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_a_curve_has_a_gap_where_there_is_no_value() -> None:
    points = [Point(0.1, 1.0, (0.5, 1.5)), Point(0.2, 2.0), None, Point(0.9, 1.0)]
    drawn = ElementTree.fromstring(draw_curve(points, "share"))
    assert [len((line.get("points") or "").split()) for line in drawn.iter(f"{SVG}polyline")] == [2, 1]
    assert len(list(drawn.iter(f"{SVG}circle"))) == 1, "a value alone is a dot"


def test_the_axis_ends_at_a_short_number_above_the_highest() -> None:
    assert {"0.08", "0.06", "0.04", "0.02", "0"} <= set(texts(draw_curve([Point(0.5, 0.0613)], "share")))
    assert "1" in texts(draw_curve([Point(0.5, 0.0)], "share"))
    assert "1" in texts(draw_curve([], "share"))


def test_names_are_escaped_and_bars_stay_within_their_column() -> None:
    bars = [Bar(-1.0, "-inf"), Bar(7.0, "<b>", strong=True)]
    svg = draw_bars(["<i>", "&"], (Bars("one", bars), Bars("two", bars, 1)), [Image(b"png", 0, 0, 10, 10)])
    assert {"<i>", "&", "<b>"} <= set(texts(svg))
    widths = [float(bar.get("width") or 0) for bar in ElementTree.fromstring(svg).iter(f"{SVG}rect")]
    assert widths == [1, 62, 1, 62]
