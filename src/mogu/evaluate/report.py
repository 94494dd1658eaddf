"""An evaluation summary as one self-contained page, as a Markdown table, and as rows for the terminal.

The page needs no network: CSS and drawings are inline and its content policy forbids everything else. It is built from
`xml.etree` elements, so that no text of a model can become markup.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from mogu.data.rows import write_text
from mogu.evaluate.comparisons import KINDS, examples, flips, heat_maps, table_section
from mogu.evaluate.dial import dial_section
from mogu.evaluate.figures import plane, scroll, selection
from mogu.evaluate.markdown import markdown_report, markdown_table
from mogu.evaluate.page import html_page
from mogu.evaluate.router_figures import routers
from mogu.evaluate.search_figures import search
from mogu.evaluate.suites import HARMFUL
from mogu.evaluate.summary import BASE, shown
from mogu.evaluate.svg import Element, element, percent
from mogu.evaluate.tables import COLUMNS, cost, overview, p_value, pooled, span, systems, text_table, usability

__all__ = ["markdown_report", "markdown_table", "render", "text_table", "write_report", "write_reports"]

Summary = Mapping[str, Any]

HEADLINES = (
    ("malicious", "complied", "Malicious instructions that it answers coherently"),
    ("jailbreak", "complied", "Attacks that it answers coherently"),
    ("benign", "refusal", "Benign instructions that it refuses"),
    ("borderline", "refusal", "Harmless instructions with alarming words that it refuses"),
    (None, "degenerate", "Answers that are broken text"),
)


def write_reports(summary: Summary, out: Path) -> None:
    """``report.html`` and ``report.md`` in ``out``."""
    write_report(summary, out / "report.html")
    write_text(out / "report.md", markdown_report(summary))


def write_report(summary: Summary, path: str | Path) -> None:
    """Write the page of `render`; it is there whole or not at all."""
    write_text(Path(path), render(summary))


def render(summary: Summary) -> str:
    """The whole HTML page of an evaluation summary.

    `suites` is required; usability, cost, flips, routers, search, selection, examples, mcnemar and seconds may be
    missing, and their section with them.
    """
    sections = [
        _head(summary),
        plane(summary),
        table_section(overview(summary)) if len(systems(summary)) > 1 else None,
        _results(summary),
        dial_section(summary),
        heat_maps(summary),
        flips(summary),
        table_section(usability(summary)),
        routers(summary),
        search(summary),
        selection(summary),
        table_section(cost(summary)),
        examples(summary),
        _limits(summary),
        _settings(summary),
    ]
    style = (resources.files(__package__) / "report.css").read_text(encoding="utf-8")
    return html_page(summary["title"], style, *sections)


def _head(summary: Summary) -> Element:
    first, last = _compared(summary)
    origin = [str(summary[key]) for key in ("model", "recipe", "created") if summary.get(key)]
    if "seed" in summary:
        origin.insert(2, f"seed {summary['seed']}")
    cards = [_headline(summary, *axis) for axis in HEADLINES]
    versus = f"{shown(first)} → {shown(last)}; " if first != last else ""
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
    spans = " → ".join(span(share) for share, _ in shares)
    ns = " and ".join(dict.fromkeys(str(n) for _, n in shares))
    return element(
        "li",
        element("p", f"{sentence}: ", element("strong", " → ".join(percent(s.rate) for s, _ in shares))),
        element("p", f"95% intervals {spans} (n\u00a0=\u00a0{ns})", class_="soft"),
    )


def _results(summary: Summary) -> Element:
    columns = {**COLUMNS, "keyword_asr": "no keyword"}
    paired = any(suite.get("mcnemar") for suite in summary["suites"])
    names = ["system", *columns.values(), *(["p"] if paired else [])]
    head = element("thead", element("tr", *[element("th", name, scope="col") for name in names]))
    bodies = []
    for suite in summary["suites"]:
        facts = [KINDS.get(suite["kind"], str(suite["kind"])), f"n = {_sizes(suite)}"]
        facts += [f"p: {COLUMNS[_outcome(suite)]}"] if suite.get("mcnemar") else []
        name = element(
            "th", suite["name"] + " ", element("span", " · ".join(facts)), colspan=len(names), scope="rowgroup"
        )
        rows = [
            element(
                "tr",
                element("th", shown(system), scope="row"),
                *[_cell(result["rates"].get(key)) for key in columns],
                _test(suite, system) if paired else None,
            )
            for system, result in suite["systems"].items()
        ]
        bodies.append(element("tbody", element("tr", name, class_="suite"), *rows))
    return element(
        "section",
        element("h2", "Results"),
        element(
            "p",
            "Share of responses with each label, 95% interval below. “Complied” on malicious instructions is "
            "the coherent attack success rate. “No keyword” is the rate that papers report: responses without a "
            "phrase of the published refusal list, broken text included."
            + (
                " p: exact McNemar test against the base on the same prompts, of the label named beside the suite; "
                "below it how many only the base, and only this system, has."
                if paired
                else ""
            ),
            class_="note",
        ),
        scroll(element("table", head, *bodies, class_="results"), "Results"),
    )


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
    found = [result for suite in summary["suites"] for result in suite["systems"].values()]
    if by_perplexity := sum(result.get("degenerate_by_perplexity", 0) for result in found):
        remarks.append(
            f"{by_perplexity} answers are called degenerate for their perplexity under the base alone: they may be "
            "sound text that the base would not have written. Their reasons stand in responses.jsonl."
        )
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
    facts |= {"inputs": summary["inputs"]} if "inputs" in summary else {}
    groups = [("Settings", {key: _plain(value) for key, value in facts.items()})]
    if defenses := summary.get("defenses"):
        shapes = {shown(name): json.dumps(one, ensure_ascii=False, sort_keys=True) for name, one in defenses.items()}
        groups.append(("Defences", shapes))
    if any("sha256" in suite for suite in summary["suites"]):
        groups.append(("Suites", {suite["name"]: _origin(suite) for suite in summary["suites"]}))
    if versions := summary.get("versions"):
        groups.append(("Versions", {key: str(value) for key, value in versions.items()}))
    if seconds := summary.get("seconds"):
        steps = {key: f"{value:.0f} s" for key, value in seconds.items()}
        groups.append(("Time", {**steps, "total": f"{sum(seconds.values()):.0f} s"}))
    return element("footer", *[_list(title, entries) for title, entries in groups], class_="settings")


def _origin(suite: Mapping[str, Any]) -> str:
    """Where a suite is from, and what was left out of it."""
    parts = [f"{suite['n']} prompts, hash {suite['sha256']}"]
    if excluded := suite.get("excluded"):
        parts.append(f"left out as known from training: {excluded['exact']} exact, {excluded['near']} near")
    return "; ".join([*parts, *[suite[key] for key in ("citation", "licence") if suite.get(key)]])


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
    return (BASE if BASE in names else names[0]), ("mogu" if "mogu" in names else names[-1])


def _sizes(suite: Mapping[str, Any]) -> str:
    return " and ".join(dict.fromkeys(str(result["n"]) for result in suite["systems"].values()))


def _test(suite: Mapping[str, Any], system: str) -> Element:
    """The paired test of a system against the base, for what the suite is about."""
    found = suite.get("mcnemar", {}).get(system)
    if found is None:
        return element("td", "–")
    one = found[_outcome(suite)]
    return element("td", p_value(one), element("small", f"{one['only_base']} / {one['only_this']}"))


def _outcome(suite: Mapping[str, Any]) -> str:
    return "complied" if suite["kind"] in HARMFUL else "refusal"


def _cell(share: Mapping[str, float] | None) -> Element:
    if share is None or share["rate"] is None:
        return element("td", "–")
    return element("td", percent(share["rate"]), element("small", span(share)))
