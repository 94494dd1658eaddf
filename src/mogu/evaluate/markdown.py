"""An evaluation summary as Markdown."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from mogu.evaluate.dial import dial_table
from mogu.evaluate.summary import shown
from mogu.evaluate.tables import COLUMNS, Cell, Table, cost, flips, overview, paired, systems, text_table, usability

Summary = Mapping[str, Any]


def markdown_table(summary: Summary) -> str:
    """The rows of `text_table` as a GitHub Markdown table."""
    header, *rows = text_table(summary)
    return _lines(header, rows, ["---", "---:", "---", *["---:"] * len(COLUMNS)])


def markdown_report(summary: Summary) -> str:
    """The numbers of the page: every table, the paired tests, and what was left out."""
    parts = [f"# {_escaped(summary['title'])}\n"]
    if len(systems(summary)) > 1:
        parts.append(_section(overview(summary)))
    parts.append("## Results\n\nShare of responses with each label, 95% intervals.\n\n" + markdown_table(summary))
    if tests := paired(summary):
        parts.append("## Paired tests (McNemar, exact)\n\n" + "".join(f"- {_escaped(line)}\n" for line in tests))
    parts += [
        _section(table) for table in (dial_table(summary), flips(summary), usability(summary), cost(summary)) if table
    ]
    if found := summary.get("routers"):
        parts.append("## Routers\n\n" + _routers(found))
    facts = {**summary.get("settings", {}), **({"inputs": summary["inputs"]} if "inputs" in summary else {})}
    lines = [f"- {_escaped(key.replace('_', ' '))}: {_escaped(str(value))}\n" for key, value in facts.items()]
    for suite in summary["suites"]:
        if excluded := suite.get("excluded"):
            what = f"{excluded['exact']} exact and {excluded['near']} near duplicates of training rows"
            lines.append(f"- {_escaped(suite['name'])}: left out {what}\n")
    lines += [f"- {_escaped(shown(name))}: {_escaped(str(one))}\n" for name, one in summary.get("defenses", {}).items()]
    parts.append("## Settings\n\n" + "".join(lines))
    return "\n".join(parts)


def _routers(found: Mapping[str, Any]) -> str:
    lines = []
    for kind, values in found["auroc"].items():
        known = [value for value in values if value is not None]
        if known:
            best = max(range(len(values)), key=lambda i: values[i] or 0.0)
            mean = sum(known) / len(known)
            lines.append(
                f"AUROC of malicious against {kind}: mean {mean:.2f}, best {values[best]:.2f} in layer "
                f"{found['layers'][best]}"
            )
    if (error := found.get("calibration_error")) is not None:
        what = "risk" if found.get("calibrated") else "mean unwill weight"
        lines.append(f"Expected calibration error of the {what}: {error:.3f}")
        if (separation := found.get("risk_auroc")) is not None:
            lines.append(f"AUROC of the {what}, harmful against harmless prompts: {separation:.3f}")
    return "".join(f"- {_escaped(line)}\n" for line in lines)


def _section(table: Table) -> str:
    rows = [[_cell(cell) for cell in row] for row in table.rows]
    rule = ["---", *["---:"] * (len(table.header) - 1)]
    note = f"\n{_escaped(table.note)}\n" if table.note else ""
    return f"## {table.title}\n\n{_lines(table.header, rows, rule)}{note}"


def _cell(cell: Cell) -> str:
    text = f"{cell.text} ({cell.small})" if cell.small else cell.text
    return f"★ {text}" if cell.best else text


def _lines(header: Sequence[str], rows: Sequence[Sequence[str]], rule: Sequence[str]) -> str:
    cells = [[_escaped(cell) for cell in header], list(rule), *[[_escaped(cell) for cell in row] for row in rows]]
    return "".join("| " + " | ".join(row) + " |\n" for row in cells)


def _escaped(text: str) -> str:
    return html.escape(" ".join(text.split(" ")).replace("\n", " "), quote=False).replace("|", "\\|")
