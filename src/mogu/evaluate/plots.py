"""Inline SVG for the report, without a plotting library: lines, boxes, bars, and the safety-usefulness plane.

Legends are HTML beside the drawing and cannot cover the data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mogu.evaluate.svg import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    Element,
    drawing,
    element,
    frame,
    line,
    marker,
    number,
    percent,
    text_at,
    ticks,
)


@dataclass(frozen=True)
class Series:
    """One line of a plot; points without a value are left out."""

    name: str
    ink: str
    points: Sequence[tuple[float, float | None]]
    marker: str = "circle"
    dashed: bool = False


@dataclass(frozen=True)
class Boxes:
    """One kind of a box plot: (min, q1, median, q3, max) for each row."""

    name: str
    ink: str
    five: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Spot:
    """One point of the safety-usefulness plane: (rate, low, high) on both axes."""

    name: str
    ink: str
    tag: str
    """A character or two written inside the marker."""
    x: tuple[float, float, float]
    y: tuple[float, float, float]
    marker: str = "circle"


@dataclass(frozen=True)
class Bar:
    """A bar of shares that sum to one: (name, ink, share) from left to right."""

    name: str
    parts: Sequence[tuple[str, str, float]]


def legend(entries: Sequence[Series | Boxes | Spot], *more: Element) -> Element:
    """What colours and marks mean, as a list beside the drawing."""
    return element("ul", *[element("li", _swatch(entry), entry.name) for entry in entries], *more, class_="legend")


def _swatch(entry: Series | Boxes | Spot) -> Element:
    if isinstance(entry, Spot):
        marks = _spot_mark(entry, 13, 9)
    elif isinstance(entry, Boxes):
        marks = [element("rect", x=4, y=4, width=18, height=10, class_="box"), line(13, 4, 13, 14, "median")]
    else:
        marks = [line(1, 9, 25, 9, "curve dashed" if entry.dashed else "curve"), _dot(entry, 13, 9)]
    return element("svg", *marks, viewBox="0 0 26 18", class_=f"swatch {entry.ink}", aria_hidden="true")


def line_plot(
    title: str,
    description: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    y_range: tuple[float, float] = (0.0, 1.0),
    chosen: Sequence[tuple[float, str]] = (),
    chance: float | None = None,
    whole_x: bool = False,
    write: Callable[[float], str] = percent,
) -> Element:
    """Lines over a numeric axis; `write` turns values of y into text.

    `chosen` marks values of x with a labelled upright line, `chance` draws a level one, `whole_x` keeps ticks integers.
    """
    height, top = 250, TOP + 11 * max(0, len(chosen) - 1)
    xs = [x for one in series for x, _ in one.points]
    pad = (max(xs) - min(xs)) * 0.03 or 0.5
    x = Axis(min(xs) - pad, max(xs) + pad, LEFT, WIDTH - RIGHT)
    y = Axis(*y_range, height - BOTTOM, top)
    shapes = frame(
        x,
        y,
        ticks(min(xs), max(xs), least=1.0 if whole_x else 0.0),
        ticks(*y_range, 5),
        x_label,
        y_label,
        write_y=write,
    )
    if chance is not None:
        shapes.append(line(x.start, y.at(chance), x.end, y.at(chance), "chance"))
    for i, (value, label) in enumerate(chosen):
        above = y.end - 6 - 11 * i
        left = x.at(value) > WIDTH / 2
        shapes.append(line(x.at(value), y.start, x.at(value), above - 8, "chosen"))
        shapes.append(text_at(x.at(value) + (-4 if left else 4), above, label, "end" if left else "start", "strong"))
    for one in series:
        points = [(x.at(px), y.at(py), px, py) for px, py in one.points if py is not None]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py, _, _ in points)
        group = element(
            "g", element("polyline", points=path, class_="curve dashed" if one.dashed else "curve"), class_=one.ink
        )
        for px, py, at, value in points:
            group.append(_dot(one, px, py, f"{one.name}: {write(round(value, 3))} at {number(at)}"))
        shapes.append(group)
    return drawing(title, description, height, shapes)


def box_plot(
    title: str, description: str, rows: Sequence[str], kinds: Sequence[Boxes], x_label: str, y_label: str
) -> Element:
    """Lying boxes: rows from top to bottom, in each row one box per kind; x from 0 to 1."""
    thick = 6.0 if len(rows) <= 32 else 4.0
    pitch = thick * len(kinds) + 4
    height = round(TOP + pitch * len(rows) + BOTTOM)
    x = Axis(0.0, 1.0, LEFT, WIDTH - RIGHT)
    y = Axis(0.0, len(rows), TOP, TOP + pitch * len(rows))
    shapes = [
        element("rect", x=x.start, y=y.at(i), width=x.end - x.start, height=pitch, class_="band")
        for i in range(1, len(rows), 2)
    ]
    shapes += frame(x, Axis(0.0, 1.0, y.end, y.start), ticks(0, 1, 5), [], x_label, y_label)
    shapes += [text_at(x.at(t), TOP - 5, number(t), "middle") for t in ticks(0, 1, 5)]
    for i, row in enumerate(rows):
        top = y.at(i)
        shapes.append(text_at(LEFT - 6, top + pitch / 2 + 3.5, row, "end"))
        for j, kind in enumerate(kinds):
            middle = top + 2 + thick * (j + 0.5)
            low, q1, median, q3, high = (x.at(value) for value in kind.five[i])
            says = f"{y_label} {row}, {kind.name}: " + ", ".join(f"{value:.2f}" for value in kind.five[i])
            shapes.append(
                element(
                    "g",
                    element("title", says),
                    line(low, middle, high, middle, "whisker"),
                    element(
                        "rect",
                        x=q1,
                        y=middle - thick / 2 + 0.5,
                        width=max(q3 - q1, 0.8),
                        height=thick - 1,
                        class_="box",
                    ),
                    line(median, middle - thick / 2, median, middle + thick / 2, "median"),
                    class_=kind.ink,
                )
            )
    return drawing(title, description, height, shapes)


def plane_plot(
    title: str, description: str, spots: Sequence[Spot], x_label: str, y_label: str, front: Sequence[str] = ()
) -> Element:
    """Two rates against each other with interval bars; both are better near 0, so that corner is shaded.

    ``front`` names the spots that no other one beats; a staircase joins them.
    """
    height = 320
    x = Axis(-0.04, 1.04, LEFT, WIDTH - RIGHT)
    y = Axis(-0.04, 1.04, height - BOTTOM, TOP)
    quarter = [round(i / 4, 2) for i in range(5)]
    reach_x, reach_y = x.at(0.25), y.at(0.25)
    radii = f"{reach_x - x.start:.1f} {y.start - reach_y:.1f}"
    corner = f"M{x.start} {y.start}H{reach_x:.1f}A{radii} 0 0 0 {x.start} {reach_y:.1f}Z"
    shapes = [
        element("path", d=corner, class_="good"),
        *frame(x, y, quarter, quarter, x_label, y_label, write_x=percent),
    ]
    best = sorted((spot.x[0], spot.y[0]) for spot in spots if spot.name in front)
    if best:
        steps = [f"M{x.at(best[0][0]):.1f} {y.end}V{y.at(best[0][1]):.1f}"]
        steps += [f"H{x.at(px):.1f}V{y.at(py):.1f}" for px, py in best[1:]]
        shapes.append(element("path", d="".join([*steps, f"H{x.end}"]), class_="front"))
    for spot in spots:
        px, py = x.at(spot.x[0]), y.at(spot.y[0])
        says = f"{spot.name}: {percent(spot.x[0])} across, {percent(spot.y[0])} up"
        bars = [
            line(x.at(spot.x[1]), py, x.at(spot.x[2]), py, "bar"),
            line(px, y.at(spot.y[1]), px, y.at(spot.y[2]), "bar"),
        ]
        shapes.append(element("g", element("title", says), *bars, *_spot_mark(spot, px, py), class_=spot.ink))
    return drawing(title, description, height, shapes)


def histogram_plot(title: str, description: str, kinds: Sequence[Series], x_label: str) -> Element:
    """Share of each kind in bins of [0, 1], bars side by side; a series has (middle of the bin, share)."""
    height = 230
    x = Axis(0.0, 1.0, LEFT, WIDTH - RIGHT)
    top = max((share or 0.0 for kind in kinds for _, share in kind.points), default=1.0) or 1.0
    y = Axis(0.0, top, height - BOTTOM, TOP)
    shapes = frame(x, y, ticks(0, 1, 5), ticks(0, top, 4), x_label, "share of prompts")
    for j, kind in enumerate(kinds):
        group = element("g", class_=kind.ink)
        for middle, share in kind.points:
            width = (x.end - x.start) / len(kind.points) * 0.86
            left = x.at(middle) - width / 2 + j * width / len(kinds)
            says = element("title", f"{kind.name}: {percent(share)} at {number(middle)}")
            high = y.start - y.at(share or 0.0)
            size = {"width": width / len(kinds), "height": float(high)}
            group.append(element("rect", says, x=float(left), y=float(y.at(share or 0.0)), class_="part", **size))
        shapes.append(group)
    return drawing(title, description, height, shapes)


def share_plot(title: str, description: str, groups: Sequence[tuple[str, Sequence[Bar]]]) -> Element:
    """Whole bars cut into shares, one for each name, under the heading of their group."""
    shapes, top = [], 4.0
    left, right = 92.0, WIDTH - RIGHT
    for heading, bars in groups:
        shapes.append(text_at(0, top + 10, heading, "start", "strong"))
        top += 16
        for bar in bars:
            short = bar.name if len(bar.name) <= 14 else bar.name[:12] + "…"
            shapes.append(text_at(left - 6, top + 11, short, "end"))
            at = left
            for name, ink, share in bar.parts:
                width = share * (right - left)
                says = element("title", f"{heading}, {bar.name}: {percent(share)} {name}")
                cut = element("rect", says, x=at, y=top, width=width, height=15.0, class_="part")
                inside = text_at(at + width / 2, top + 11, percent(share), "middle", "tag") if width > 26 else None
                shapes.append(element("g", cut, inside, class_=ink))
                at += width
            top += 19
        top += 8
    return drawing(title, description, round(top), shapes)


def _spot_mark(spot: Spot, x: float, y: float) -> list[Element]:
    hollow = spot.marker != "circle"
    return [
        marker(spot.marker, x, y, 7.5, class_="spot hollow" if hollow else "spot"),
        text_at(x, y + 3.5, spot.tag, "middle", "tag hollow" if hollow else "tag"),
    ]


def _dot(line: Series, x: float, y: float, says: str | None = None) -> Element:
    dot = marker(line.marker, x, y, 3.2, class_="dot")
    if says:
        dot.append(element("title", says))
    return dot
