"""A probe of all layers as a page: where it is readable what is asked, and which layers were chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from mogu.evaluate.page import html_page
from mogu.evaluate.plots import Series, legend, line_plot
from mogu.evaluate.svg import Element, element, number

_MARKERS = ("circle", "square", "diamond", "triangle")
_MEASURES = (
    ("log_loss", "Log-loss on what was held out", "nats; lower is better"),
    ("auroc", "AUROC on what was held out", "malicious against benign and borderline"),
    ("twins", "AUROC against harmless twins", "malicious against borderline"),
)


def layer_table(record: Mapping[str, Any]) -> list[list[str]]:
    """Header and one row for each layer: log-loss and AUROCs of every kind of states; a star where it was chosen."""
    scores = record["scores"]
    chosen = record["chosen"]["layers"]
    rows = [["layer", "", *(f"{name}: log-loss (AUROC, twins)" for name in scores)]]
    for layer in range(len(next(iter(scores.values())))):
        cells = []
        for each in scores.values():
            one = each[layer]
            twins = "–" if one["twins"] is None else f"{one['twins']:.3f}"
            cells.append(f"{one['log_loss']:.3f} ({one['auroc']:.3f}, {twins})")
        rows.append([str(layer), "*" if layer in chosen else "", *cells])
    return rows


def layer_page(record: Mapping[str, Any]) -> str:
    """One HTML file that needs no network; ``record`` is what ``probe.json`` holds."""
    chosen = record["chosen"]["layers"]
    plots = [_plot(record, *measure, chosen) for measure in _MEASURES]
    style = (resources.files(__package__) / "report.css").read_text(encoding="utf-8")
    return html_page("Layer probe", style, _head(record), *plots, _table(record))


def _head(record: Mapping[str, Any]) -> Element:
    chosen = record["chosen"]
    rows = ", ".join(f"{count} {kind}" for kind, count in record["rows"].items())
    return element(
        "header",
        element("h1", "Layer probe"),
        element("p", f"{record['model']} · {rows} prompts · held out: {', '.join(record['held_out'])}", class_="soft"),
        element(
            "p",
            f"Chosen by {record['chosen_by']}: layers {shown(chosen['layers'])}; mean log-loss "
            f"{chosen['log_loss']:.3f}, of as many best layers {chosen['best']:.3f}.",
        ),
    )


def shown(layers: Sequence[int]) -> str:
    """Layers as ranges.

    >>> shown([3, 4, 5, 9])
    '3–5, 9'
    """
    ranges: list[list[int]] = []
    for layer in sorted(layers):
        if ranges and layer == ranges[-1][1] + 1:
            ranges[-1][1] = layer
        else:
            ranges.append([layer, layer])
    return ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in ranges)


def _plot(record: Mapping[str, Any], key: str, title: str, label: str, chosen: Sequence[int]) -> Element | None:
    series = [
        Series(name, f"ink-{index}", [(layer, one[key]) for layer, one in enumerate(each)], _MARKERS[index % 4])
        for index, (name, each) in enumerate(record["scores"].items())
    ]
    values = [value for one in series for _, value in one.points if value is not None]
    if not values:
        return None
    low, high = min(values), max(values)
    pad = (high - low) * 0.08 or 0.05
    drawn = line_plot(
        title,
        f"{title} by layer for {len(series)} kinds of states",
        series,
        "layer",
        label,
        y_range=(low - pad, high + pad),
        chosen=[(chosen[0], f"first chosen: {chosen[0]}")],
        whole_x=True,
        write=number,
    )
    return element("section", element("h2", title), element("figure", drawn, legend(series)))


def _table(record: Mapping[str, Any]) -> Element:
    header, *rows = layer_table(record)
    head = element("thead", element("tr", *[element("th", name, scope="col") for name in header]))
    body = element("tbody", *[element("tr", *[element("td", cell) for cell in row]) for row in rows])
    return element(
        "section", element("h2", "All numbers"), element("div", element("table", head, body), class_="scroll")
    )
