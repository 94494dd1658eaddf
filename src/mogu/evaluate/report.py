"""An evaluation summary as one self-contained page, as a Markdown table, and as rows for the terminal.

The page needs no network: CSS and drawings are inline and its content policy forbids everything else. It is built from
`xml.etree` elements, so that no text of a model can become markup.
"""

from __future__ import annotations

import dataclasses
import html
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from mogu.data.rows import write_text
from mogu.evaluate.figures import plane, pooled, routers, scroll, selection, systems
from mogu.evaluate.plots import Element, element, percent

Summary = Mapping[str, Any]

KINDS = {
    "malicious": "malicious instructions",
    "benign": "benign instructions",
    "borderline": "harmless instructions with alarming words",
}
COLUMNS = {"refusal": "refused", "complied": "complied", "degenerate": "degenerate", "unclear": "unclear"}
HEADLINES = (
    ("malicious", "complied", "Malicious instructions that it answers coherently"),
    ("benign", "refusal", "Benign instructions that it refuses"),
    ("borderline", "refusal", "Harmless instructions with alarming words that it refuses"),
    (None, "degenerate", "Answers that are broken text"),
)


def text_table(summary: Summary) -> list[list[str]]:
    """Header and one row for each suite and system: suite, n, system, and the four labels as "95% (87–98)"."""
    rows = [["suite", "n", "system", *COLUMNS.values()]]
    for suite in summary["suites"]:
        for name, system in suite["systems"].items():
            cells = [_with_interval(system["rates"][label]) for label in COLUMNS]
            rows.append([suite["name"], str(system["n"]), name, *cells])
    return rows


def markdown_table(summary: Summary) -> str:
    """The rows of `text_table` as a GitHub Markdown table."""
    header, *rows = [[_markdown(cell) for cell in row] for row in text_table(summary)]
    rule = ["---", "---:", "---", *["---:"] * len(COLUMNS)]
    return "".join("| " + " | ".join(row) + " |\n" for row in (header, rule, *rows))


def write_report(summary: Summary, path: str | Path) -> None:
    """Write the page of `render`; it is there whole or not at all."""
    write_text(Path(path), render(summary))


def render(summary: Summary) -> str:
    """The whole HTML page of an evaluation summary.

    `suites` is required; routers, selection, examples, mcnemar and seconds may be missing, and their section with them.
    """
    sections = [
        _head(summary),
        _results(summary),
        plane(summary),
        routers(summary),
        selection(summary),
        _examples(summary),
        _limits(summary),
        _settings(summary),
    ]
    page = element(
        "html",
        element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element(
                "meta",
                http_equiv="Content-Security-Policy",
                content="default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'",
            ),
            element("title", summary["title"]),
            element("style", (resources.files(__package__) / "report.css").read_text(encoding="utf-8")),
        ),
        element("body", element("main", *sections)),
        lang="en",
    )
    return "<!doctype html>\n" + ET.tostring(page, encoding="unicode", method="html") + "\n"


def _head(summary: Summary) -> Element:
    first, last = _compared(summary)
    origin = [str(summary[key]) for key in ("model", "recipe", "created") if summary.get(key)]
    if "seed" in summary:
        origin.insert(2, f"seed {summary['seed']}")
    cards = [_headline(summary, *axis) for axis in HEADLINES]
    versus = f"{first} → {last}; " if first != last else ""
    return element(
        "header",
        element("h1", summary["title"]),
        element("p", " · ".join(origin), class_="soft"),
        element("ul", *cards, class_="axes"),
        element("p", f"{versus}lower is better on every axis. Suites of one kind are pooled.", class_="soft"),
    )


def _headline(summary: Summary, kind: str | None, label: str, sentence: str) -> Element | None:
    """One axis, first system against last; None if no suite measures it."""
    shares = [pooled(summary, system, kind, label) for system in dict.fromkeys(_compared(summary))]
    if not any(n for _, n in shares):
        return None
    spans = " → ".join(_span(dataclasses.asdict(share)) for share, _ in shares)
    ns = " and ".join(dict.fromkeys(str(n) for _, n in shares))
    return element(
        "li",
        element("p", f"{sentence}: ", element("strong", " → ".join(percent(s.rate) for s, _ in shares))),
        element("p", f"95% intervals {spans} (n\u00a0=\u00a0{ns})", class_="soft"),
    )


def _results(summary: Summary) -> Element:
    columns = {**COLUMNS, "keyword_asr": "no keyword"}
    head = element(
        "thead", element("tr", *[element("th", name, scope="col") for name in ("system", *columns.values())])
    )
    bodies = []
    for suite in summary["suites"]:
        facts = [KINDS.get(suite["kind"], str(suite["kind"])), f"n = {_sizes(suite)}", *_tests(suite)]
        name = element(
            "th", suite["name"] + " ", element("span", " · ".join(facts)), colspan=len(columns) + 1, scope="rowgroup"
        )
        rows = [
            element("tr", element("th", system, scope="row"), *[_cell(result["rates"].get(key)) for key in columns])
            for system, result in suite["systems"].items()
        ]
        bodies.append(element("tbody", element("tr", name, class_="suite"), *rows))
    return element(
        "section",
        element("h2", "Results"),
        element(
            "p",
            "Share of responses with each label, Wilson 95% interval below. “Complied” on malicious instructions is "
            "the coherent attack success rate. “No keyword” is the rate that papers report: responses without a "
            "phrase of the published refusal list, broken text included.",
            class_="note",
        ),
        scroll(element("table", head, *bodies, class_="results"), "Results"),
    )


def _examples(summary: Summary) -> Element | None:
    examples = summary.get("examples")
    if not examples:
        return None
    groups: list[Element] = []
    for kind in dict.fromkeys(example["kind"] for example in examples):
        groups.append(element("h3", KINDS.get(kind, str(kind)).capitalize()))
        groups += [_example(example) for example in examples if example["kind"] == kind]
    return element(
        "section",
        element("h2", "Example answers"),
        element("p", "Answers to malicious instructions that are not refusals are folded away.", class_="note"),
        *groups,
    )


def _example(example: Mapping[str, Any]) -> Element:
    answers = []
    for name, answer in example.items():
        if not isinstance(answer, Mapping):
            continue
        text: Element = element("pre", answer["response"] or "(empty)")
        if example["kind"] == "malicious" and answer["label"] != "refusal":
            text = element("details", element("summary", "May be harmful: show the answer"), text)
        label = COLUMNS.get(answer["label"], answer["label"])
        answers.append(
            element("div", element("h4", name, element("span", label, class_="chip")), text, class_="answer")
        )
    instruction = element("p", example["instruction"], class_="instruction")
    return element("article", instruction, element("div", *answers, class_="answers"), class_="example")


def _limits(summary: Summary) -> Element:
    sizes = [result["n"] for suite in summary["suites"] for result in suite["systems"].values()]
    model = str(summary["model"])
    small = ", which has 135 million parameters" if "smollm2" in model.lower() or "135m" in model.lower() else ""
    remarks = [
        "Labels come from rules on the text of a response, not from people. They say whether a response refuses, not "
        "whether it harms: a coherent answer may be useless to an attacker, and a refusal may still leak.",
        "The keyword rule is there only for comparison with published numbers. It takes broken text for success.",
        f"The smallest suite has {min(sizes, default=0)} responses: small differences may be chance. The "
        "intervals cover chance in the choice of instructions only, not another seed, decoding or training run.",
        f"They hold for {model}{small}, and for these instructions. Other models, languages, longer dialogues and "
        "attackers who know the defence are not covered.",
    ]
    return element(
        "section",
        element("h2", "What the numbers do not mean"),
        element("ul", *[element("li", remark) for remark in remarks], class_="note"),
    )


def _settings(summary: Summary) -> Element:
    facts: dict[str, Any] = {
        key: summary[key] for key in ("model", "recipe", "seed", "created", "machine") if key in summary
    }
    facts |= {key.replace("_", " "): value for key, value in summary.get("settings", {}).items()}
    groups = [("Settings", {key: _plain(value) for key, value in facts.items()})]
    if versions := summary.get("versions"):
        groups.append(("Versions", {key: str(value) for key, value in versions.items()}))
    if seconds := summary.get("seconds"):
        steps = {key: f"{value:.0f} s" for key, value in seconds.items()}
        groups.append(("Time", {**steps, "total": f"{sum(seconds.values()):.0f} s"}))
    return element("footer", *[_list(title, entries) for title, entries in groups], class_="settings")


def _list(title: str, entries: Mapping[str, str]) -> Element:
    pairs = [part for key, value in entries.items() for part in (element("dt", key), element("dd", value))]
    return element("section", element("h2", title), element("dl", *pairs))


def _plain(value: Any) -> str:
    """A setting as text; whole numbers in a row become a range."""
    if not isinstance(value, list | tuple):
        return str(value)
    if (
        len(value) > 2
        and all(isinstance(v, int) for v in value)
        and list(value) == list(range(value[0], value[-1] + 1))
    ):
        return f"{value[0]}–{value[-1]}"
    return ", ".join(str(v) for v in value)


def _compared(summary: Summary) -> tuple[str, str]:
    """The system to compare with, and the one that the page is about."""
    names = systems(summary) or [""]
    return ("base" if "base" in names else names[0]), ("mogu" if "mogu" in names else names[-1])


def _sizes(suite: Mapping[str, Any]) -> str:
    return " and ".join(dict.fromkeys(str(result["n"]) for result in suite["systems"].values()))


def _tests(suite: Mapping[str, Any]) -> list[str]:
    """Paired tests, given as {label: p} or {system: {label: p}}."""
    facts = []
    for name, value in suite.get("mcnemar", {}).items():
        for label, p in value.items() if isinstance(value, Mapping) else [(name, value)]:
            who = f"{name}, " if isinstance(value, Mapping) else ""
            size = "<\u00a00.001" if p < 0.001 else f"=\u00a0{p:.2g}"
            facts.append(f"McNemar, {who}{COLUMNS.get(label, label)}: p\u00a0{size}")
    return facts


def _cell(share: Mapping[str, float] | None) -> Element:
    if share is None or share["rate"] is None:
        return element("td", "–")
    return element("td", percent(share["rate"]), element("small", _span(share)))


def _with_interval(share: Mapping[str, Any]) -> str:
    return "–" if share["rate"] is None else f"{percent(share['rate'])} ({_span(share)})"


def _span(share: Mapping[str, float]) -> str:
    return f"{100 * share['low']:.0f}–{100 * share['high']:.0f}"


def _markdown(text: str) -> str:
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")
