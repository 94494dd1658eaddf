"""The report's sections that set defences side by side: tables, categories, flips, example answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mogu.evaluate import tables
from mogu.evaluate.figures import scroll
from mogu.evaluate.suites import HARMFUL
from mogu.evaluate.summary import shown
from mogu.evaluate.svg import Element, element, percent
from mogu.evaluate.tables import COLUMNS, Cell, Table

Summary = Mapping[str, Any]

KINDS = {
    "malicious": "malicious instructions",
    "jailbreak": "attacks that dress up or prefill malicious instructions",
    "benign": "benign instructions",
    "borderline": "harmless instructions with alarming words",
    "unknown": "instructions of unknown kind",
}
_MOST_CATEGORIES = 40


def table_section(table: Table | None) -> Element | None:
    """A table with its heading and note, scrolling sideways by itself."""
    if table is None:
        return None
    head = element("thead", element("tr", *[element("th", name, scope="col") for name in table.header]))
    body = element("tbody", *[element("tr", _name(row[0]), *map(_cell, row[1:])) for row in table.rows])
    return element(
        "section",
        element("h2", table.title),
        scroll(element("table", head, body, class_="results"), table.title),
        element("p", table.note, class_="note") if table.note else None,
    )


def _name(cell: Cell) -> Element:
    return element("th", cell.text, scope="row")


def _cell(cell: Cell) -> Element:
    text: Element | str = (
        element("strong", f"★\u00a0{cell.text}", title="best of the defences") if cell.best else cell.text
    )
    return element(
        "td", text, element("small", cell.small) if cell.small else None, class_="best" if cell.best else None
    )


def heat_maps(summary: Summary) -> Element | None:
    """Section: category by defence, shaded by what is bad there; None without categories."""
    maps = [
        part
        for suite in summary["suites"]
        if 1 < len(suite.get("categories", {})) <= _MOST_CATEGORIES
        for part in _heat_map(suite)
    ]
    if not maps:
        return None
    note = "The darker, the worse: complied on harmful suites, refused on all others. Small numbers of prompts jump."
    return element("section", element("h2", "By category"), element("p", note, class_="note"), *maps)


def _heat_map(suite: Mapping[str, Any]) -> list[Element]:
    label = "complied" if suite["kind"] in HARMFUL else "refusal"
    names = list(suite["systems"])
    head = element("tr", *[element("th", name, scope="col") for name in ("category", "n", *map(shown, names))])
    rows = []
    for category, counts in suite["categories"].items():
        n = max(one["n"] for one in counts.values())
        cells = [element("th", category, scope="row"), element("td", str(n))]
        for name in names:
            one = counts.get(name, {"n": 0})
            share = one[label] / one["n"] if one["n"] else None
            cells.append(element("td", percent(share), class_=None if share is None else f"heat-{round(10 * share)}"))
        rows.append(element("tr", *cells))
    title = f"{suite['name']}: {COLUMNS[label]}"
    table = element("table", element("thead", head), element("tbody", *rows), class_="heat")
    return [element("h3", title), scroll(table, title)]


def flips(summary: Summary) -> Element | None:
    """Section: where a defence changed the base's stance, with examples; None without any."""
    if not (section := table_section(tables.flips(summary))):
        return None
    for one in summary["flips"]:
        said = f"{one['suite']}: base {COLUMNS[one['base']]}, {shown(one['defense'])} {COLUMNS[one['then']]}"
        section.append(
            element(
                "details",
                element("summary", f"{said}: examples"),
                *[_example(example) for example in one["examples"]],
                class_="flip",
            )
        )
    return section


def examples(summary: Summary) -> Element | None:
    """Section: the first prompts of each kind with all answers; None without any."""
    found = summary.get("examples")
    if not found:
        return None
    groups: list[Element] = []
    for kind in dict.fromkeys(example["kind"] for example in found):
        groups.append(element("h3", KINDS.get(kind, str(kind)).capitalize()))
        groups += [_example(example) for example in found if example["kind"] == kind]
    return element(
        "section",
        element("h2", "Example answers"),
        element("p", "Answers to malicious instructions that are not refusals are folded away.", class_="note"),
        *groups,
    )


def _example(example: Mapping[str, Any]) -> Element:
    answers = []
    for name, answer in example["answers"].items():
        text: Element = element("pre", answer["response"] or "(empty)")
        if example["kind"] not in ("benign", "borderline") and answer["label"] != "refusal":
            text = element("details", element("summary", "May be harmful: show the answer"), text)
        label = COLUMNS.get(answer["label"], answer["label"])
        answers.append(
            element("div", element("h4", shown(name), element("span", label, class_="chip")), text, class_="answer")
        )
    parts = [element("p", example["instruction"], class_="instruction")]
    if asked := example.get("asked"):
        parts.append(element("details", element("summary", "As it was asked"), element("pre", asked), class_="asked"))
    if prefill := example.get("prefill"):
        parts.append(element("p", f"The answer was begun with: {prefill}", class_="soft"))
    return element("article", *parts, element("div", *answers, class_="answers"), class_="example")
