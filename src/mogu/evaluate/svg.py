"""Building blocks of the report's drawings: elements, numbers as text, axes and marks.

Everything is an `xml.etree` element, so every text is escaped on output. Colours are CSS classes (``ink-…``, see
report.css) that set ``color``; shapes use ``currentColor``, so one drawing serves light and dark. The drawing is 360
units wide: its letters keep their size on a phone.
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
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 20, 40
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


def frame(
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
        shapes.append(line(x.at(tick), y.start, x.at(tick), y.end, "grid"))
        shapes.append(text_at(x.at(tick), y.start + 14, write_x(tick), "middle"))
    for tick in y_ticks:
        shapes.append(line(x.start, y.at(tick), x.end, y.at(tick), "grid"))
        shapes.append(text_at(x.start - 6, y.at(tick) + 3.5, write_y(tick), "end"))
    shapes.append(line(x.start, y.start, x.end, y.start, "axis"))
    shapes.append(line(x.start, y.start, x.start, y.end, "axis"))
    shapes.append(text_at((x.start + x.end) / 2, y.start + 32, x_label, "middle", "label"))
    middle = (y.start + y.end) / 2
    turned = text_at(12, middle, y_label, "middle", "label")
    turned.set("transform", f"rotate(-90 12 {middle:.1f})")
    return [*shapes, turned]


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Element:
    """A straight line of a CSS class."""
    return element("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=kind)


def text_at(x: float, y: float, text: str, anchor: str, kind: str | None = None) -> Element:
    """A text of a CSS class; ``anchor`` is start, middle or end."""
    return element("text", text, x=float(x), y=float(y), text_anchor=anchor, class_=kind)


def drawing(title: str, description: str, height: float, shapes: Sequence[Element]) -> Element:
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
