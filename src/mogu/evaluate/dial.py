"""The safety dial in the report: what each position does to the trade between attack success and refusals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mogu.evaluate.figures import INKS, figure, numbers_table
from mogu.evaluate.plots import Series, legend, line_plot
from mogu.evaluate.svg import Element, element, number, percent
from mogu.evaluate.tables import Cell, Table, pooled, span, systems

Summary = Mapping[str, Any]

_CURVES = (
    ("malicious", "complied", "malicious answered (ASR)", INKS["malicious"], "triangle"),
    ("jailbreak", "complied", "attacks answered", "ink-4", "square"),
    ("benign", "refusal", "benign refused", INKS["benign"], "circle"),
    ("borderline", "refusal", "borderline refused", INKS["borderline"], "diamond"),
)
_NOTE = (
    "The dial is added to the shift of the router logits (unwill +, glad −); 0 is the adapter as trained. "
    "All positions answer the same prompts; below each share its 95% interval."
)


def dial_table(summary: Summary) -> Table | None:
    """One row for each position of the dial; ``None`` with fewer than two, or where no suite is of a kind drawn."""
    found = _positions(summary)
    curves = _measured(summary, found) if len(found) > 1 else []
    if not curves:
        return None
    rows = []
    for value, system in found:
        shares = [pooled(summary, system, kind, label)[0] for kind, label, *_ in curves]
        rows.append([Cell(number(value)), *[Cell(percent(share.rate), span(share)) for share in shares]])
    return Table("Safety dial", ["dial", *[name for _, _, name, *_ in curves]], rows, _NOTE)


def dial_section(summary: Summary) -> Element | None:
    """Section: the rates of :func:`dial_table` as curves over the dial; ``None`` with fewer than two positions."""
    table = dial_table(summary)
    if table is None:
        return None
    found = _positions(summary)
    series = [
        Series(name, ink, [(value, pooled(summary, system, kind, label)[0].rate) for value, system in found], mark)
        for kind, label, name, ink, mark in _measured(summary, found)
    ]
    plot = line_plot(
        "Safety dial", "Rates by position of the dial.", series, "dial δ", "share of responses", chosen=[(0, "trained")]
    )
    cells = [[f"{cell.text} ({cell.small})" if cell.small else cell.text for cell in row] for row in table.rows]
    drawn = figure("Rates by position", plot, table.note, legend(series), numbers_table(table.header, cells))
    return element("section", element("h2", table.title), element("div", drawn, class_="figures"))


def _positions(summary: Summary) -> list[tuple[float, str]]:
    """(dial, system) of every system that is MoGU alone at a position of its dial, by the dial."""
    found = []
    for system in systems(summary):
        members = summary.get("defenses", {}).get(system, {})
        if len(members) == 1 and (value := members.get(system, {}).get("dial")) is not None:
            found.append((float(value), system))
    return sorted(found)


def _measured(summary: Summary, found: list[tuple[float, str]]) -> list[tuple[str, str, str, str, str]]:
    """The curves for which there are suites."""
    return [curve for curve in _CURVES if pooled(summary, found[0][1], curve[0], curve[1])[1]]
