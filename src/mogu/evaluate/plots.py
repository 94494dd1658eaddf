"""Inline SVG for the report: line plots, box plots and the safety-usefulness plane, without a plotting library.

Everything is an `xml.etree` element, so every text is escaped on output. Colours are CSS classes (``ink-…``, see
report.css) that set ``color``; shapes use ``currentColor``, so one drawing serves light and dark. The drawing is 360
units wide: its letters keep their size on a phone. Legends are HTML beside the drawing and cannot cover the data.
"""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Element = ET.Element
Child = Element | str | None

WIDTH = 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 10, 20, 40
_NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def element(tag: str, *children: Child, **attributes: object) -> Element:
    """An element with mixed children; ``class_`` means class, ``stroke_width`` stroke-width, None leaves out."""
    made = ET.Element(tag)
    for name, value in attributes.items():
        if value is not None:
            text = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
            made.set(name.rstrip("_").replace("_", "-"), _NOT_TEXT.sub("\ufffd", text))
    for child in children:
        if isinstance(child, str):
            text = _NOT_TEXT.sub("\ufffd", child)
            if len(made):
                made[-1].tail = (made[-1].tail or "") + text
            else:
                made.text = (made.text or "") + text
        elif child is not None:
            made.append(child)
    return made


def percent(share: float | None) -> str:
    """0.953 → "95%"; None → "–"; a share that only rounds to 0 or 1 says so."""
    if share is None:
        return "–"
    if 0 < share < 0.005:
        return "<1%"
    if 0.995 < share < 1:
        return ">99%"
    return f"{100 * share:.0f}%"


def number(value: float) -> str:
    """A short decimal with a real minus sign."""
    return f"{value:g}".replace("-", "−")


def ticks(low: float, high: float, count: int = 6, least: float = 0.0) -> list[float]:
    """About `count` round numbers in [low, high], at least `least` apart."""
    raw = max((high - low) / count, least, 1e-9)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    return [round(i * step, 10) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


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


@dataclass(frozen=True)
class Axis:
    """Values from low to high, drawn from start to end."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Where a value is drawn."""
        return self.start + (value - self.low) / ((self.high - self.low) or 1) * (self.end - self.start)


def marker(shape: str, x: float, y: float, size: float, **attributes: object) -> Element:
    """A circle, square, diamond or triangle of radius `size`."""
    if shape == "circle":
        return element("circle", cx=x, cy=y, r=size, **attributes)
    corners = {
        "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
        "diamond": ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
        "triangle": ((0, -1.2), (1.15, 0.9), (-1.15, 0.9)),
    }[shape]
    points = " ".join(f"{x + size * dx:.1f},{y + size * dy:.1f}" for dx, dy in corners)
    return element("polygon", points=points, **attributes)


def legend(entries: Sequence[Series | Boxes | Spot], *more: Element) -> Element:
    """What colours and marks mean, as a list beside the drawing."""
    return element("ul", *[element("li", _swatch(entry), entry.name) for entry in entries], *more, class_="legend")


def _swatch(entry: Series | Boxes | Spot) -> Element:
    if isinstance(entry, Spot):
        marks = _spot_mark(entry, 13, 9)
    elif isinstance(entry, Boxes):
        marks = [element("rect", x=4, y=4, width=18, height=10, class_="box"), _line(13, 4, 13, 14, "median")]
    else:
        marks = [_line(1, 9, 25, 9, "curve dashed" if entry.dashed else "curve"), _dot(entry, 13, 9)]
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
    height, top = 250, _TOP + 11 * max(0, len(chosen) - 1)
    xs = [x for line in series for x, _ in line.points]
    pad = (max(xs) - min(xs)) * 0.03 or 0.5
    x = Axis(min(xs) - pad, max(xs) + pad, _LEFT, WIDTH - _RIGHT)
    y = Axis(*y_range, height - _BOTTOM, top)
    shapes = _frame(
        x,
        y,
        ticks(min(xs), max(xs), least=1.0 if whole_x else 0.0),
        ticks(*y_range, 5),
        x_label,
        y_label,
        write_y=write,
    )
    if chance is not None:
        shapes.append(_line(x.start, y.at(chance), x.end, y.at(chance), "chance"))
    for i, (value, label) in enumerate(chosen):
        above = y.end - 6 - 11 * i
        left = x.at(value) > WIDTH / 2
        shapes.append(_line(x.at(value), y.start, x.at(value), above - 8, "chosen"))
        shapes.append(_text(x.at(value) + (-4 if left else 4), above, label, "end" if left else "start", "strong"))
    for line in series:
        points = [(x.at(px), y.at(py), px, py) for px, py in line.points if py is not None]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py, _, _ in points)
        group = element(
            "g", element("polyline", points=path, class_="curve dashed" if line.dashed else "curve"), class_=line.ink
        )
        for px, py, at, value in points:
            group.append(_dot(line, px, py, f"{line.name}: {write(round(value, 3))} at {number(at)}"))
        shapes.append(group)
    return _svg(title, description, height, shapes)


def box_plot(
    title: str, description: str, rows: Sequence[str], kinds: Sequence[Boxes], x_label: str, y_label: str
) -> Element:
    """Lying boxes: rows from top to bottom, in each row one box per kind; x from 0 to 1."""
    thick = 6.0 if len(rows) <= 32 else 4.0
    pitch = thick * len(kinds) + 4
    height = round(_TOP + pitch * len(rows) + _BOTTOM)
    x = Axis(0.0, 1.0, _LEFT, WIDTH - _RIGHT)
    y = Axis(0.0, len(rows), _TOP, _TOP + pitch * len(rows))
    shapes = [
        element("rect", x=x.start, y=y.at(i), width=x.end - x.start, height=pitch, class_="band")
        for i in range(1, len(rows), 2)
    ]
    shapes += _frame(x, Axis(0.0, 1.0, y.end, y.start), ticks(0, 1, 5), [], x_label, y_label)
    shapes += [_text(x.at(t), _TOP - 5, number(t), "middle") for t in ticks(0, 1, 5)]
    for i, row in enumerate(rows):
        top = y.at(i)
        shapes.append(_text(_LEFT - 6, top + pitch / 2 + 3.5, row, "end"))
        for j, kind in enumerate(kinds):
            middle = top + 2 + thick * (j + 0.5)
            low, q1, median, q3, high = (x.at(value) for value in kind.five[i])
            says = f"{y_label} {row}, {kind.name}: " + ", ".join(f"{value:.2f}" for value in kind.five[i])
            shapes.append(
                element(
                    "g",
                    element("title", says),
                    _line(low, middle, high, middle, "whisker"),
                    element(
                        "rect",
                        x=q1,
                        y=middle - thick / 2 + 0.5,
                        width=max(q3 - q1, 0.8),
                        height=thick - 1,
                        class_="box",
                    ),
                    _line(median, middle - thick / 2, median, middle + thick / 2, "median"),
                    class_=kind.ink,
                )
            )
    return _svg(title, description, height, shapes)


def plane_plot(title: str, description: str, spots: Sequence[Spot], x_label: str, y_label: str) -> Element:
    """Two rates against each other with interval bars; both are better near 0, so that corner is shaded."""
    height = 320
    x = Axis(-0.04, 1.04, _LEFT, WIDTH - _RIGHT)
    y = Axis(-0.04, 1.04, height - _BOTTOM, _TOP)
    quarter = [round(i / 4, 2) for i in range(5)]
    reach_x, reach_y = x.at(0.25), y.at(0.25)
    radii = f"{reach_x - x.start:.1f} {y.start - reach_y:.1f}"
    corner = f"M{x.start} {y.start}H{reach_x:.1f}A{radii} 0 0 0 {x.start} {reach_y:.1f}Z"
    shapes = [
        element("path", d=corner, class_="good"),
        *_frame(x, y, quarter, quarter, x_label, y_label, write_x=percent),
    ]
    for spot in sorted(spots, key=lambda spot: spot.marker == "circle"):
        px, py = x.at(spot.x[0]), y.at(spot.y[0])
        says = f"{spot.name}: {percent(spot.x[0])} across, {percent(spot.y[0])} up"
        bars = [
            _line(x.at(spot.x[1]), py, x.at(spot.x[2]), py, "bar"),
            _line(px, y.at(spot.y[1]), px, y.at(spot.y[2]), "bar"),
        ]
        shapes.append(element("g", element("title", says), *bars, *_spot_mark(spot, px, py), class_=spot.ink))
    return _svg(title, description, height, shapes)


def share_plot(title: str, description: str, groups: Sequence[tuple[str, Sequence[Bar]]]) -> Element:
    """Whole bars cut into shares, one for each name, under the heading of their group."""
    shapes, top = [], 4.0
    left, right = 92.0, WIDTH - _RIGHT
    for heading, bars in groups:
        shapes.append(_text(0, top + 10, heading, "start", "strong"))
        top += 16
        for bar in bars:
            short = bar.name if len(bar.name) <= 15 else bar.name[:14] + "…"
            shapes.append(_text(left - 6, top + 11, short, "end"))
            at = left
            for name, ink, share in bar.parts:
                width = share * (right - left)
                says = element("title", f"{heading}, {bar.name}: {percent(share)} {name}")
                cut = element("rect", says, x=at, y=top, width=width, height=15.0, class_="part")
                inside = _text(at + width / 2, top + 11, percent(share), "middle", "tag") if width > 26 else None
                shapes.append(element("g", cut, inside, class_=ink))
                at += width
            top += 19
        top += 8
    return _svg(title, description, round(top), shapes)


def _spot_mark(spot: Spot, x: float, y: float) -> list[Element]:
    hollow = spot.marker != "circle"
    return [
        marker(spot.marker, x, y, 7.5, class_="spot hollow" if hollow else "spot"),
        _text(x, y + 3.5, spot.tag, "middle", "tag hollow" if hollow else "tag"),
    ]


def _dot(line: Series, x: float, y: float, says: str | None = None) -> Element:
    dot = marker(line.marker, x, y, 3.2, class_="dot")
    if says:
        dot.append(element("title", says))
    return dot


def _frame(
    x: Axis,
    y: Axis,
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    x_label: str,
    y_label: str,
    *,
    write_x: Callable[[float], str] = number,
    write_y: Callable[[float], str] = percent,
) -> list[Element]:
    """Grid, tick labels and axis titles, each in its own margin."""
    shapes = []
    for tick in x_ticks:
        shapes.append(_line(x.at(tick), y.start, x.at(tick), y.end, "grid"))
        shapes.append(_text(x.at(tick), y.start + 14, write_x(tick), "middle"))
    for tick in y_ticks:
        shapes.append(_line(x.start, y.at(tick), x.end, y.at(tick), "grid"))
        shapes.append(_text(x.start - 6, y.at(tick) + 3.5, write_y(tick), "end"))
    shapes.append(_line(x.start, y.start, x.end, y.start, "axis"))
    shapes.append(_line(x.start, y.start, x.start, y.end, "axis"))
    shapes.append(_text((x.start + x.end) / 2, y.start + 32, x_label, "middle", "label"))
    middle = (y.start + y.end) / 2
    turned = _text(12, middle, y_label, "middle", "label")
    turned.set("transform", f"rotate(-90 12 {middle:.1f})")
    return [*shapes, turned]


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Element:
    return element("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=kind)


def _text(x: float, y: float, text: str, anchor: str, kind: str | None = None) -> Element:
    return element("text", text, x=float(x), y=float(y), text_anchor=anchor, class_=kind)


def _svg(title: str, description: str, height: float, shapes: Sequence[Element]) -> Element:
    """The drawing with its name for screen readers."""
    ident = re.sub(r"\W+", "-", title.lower()).strip("-")
    return element(
        "svg",
        element("title", title, id=f"{ident}-title"),
        element("desc", description, id=f"{ident}-desc"),
        *shapes,
        viewBox=f"0 0 {WIDTH} {height}",
        role="img",
        aria_labelledby=f"{ident}-title {ident}-desc",
        class_="plot",
    )
