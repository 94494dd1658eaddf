"""The tables of a report as plain cells; the page, the Markdown file and the terminal draw the same ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mogu.evaluate.metrics import Interval, wilson
from mogu.evaluate.summary import BASE, shown
from mogu.evaluate.svg import percent

Summary = Mapping[str, Any]

COLUMNS = {"refusal": "refused", "complied": "complied", "degenerate": "degenerate", "unclear": "unclear"}


@dataclass(frozen=True)
class Cell:
    """A cell: its text, in small letters what stands below, and whether it is the best of its column."""

    text: str
    small: str = ""
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table with a heading; the first cell of a row names it."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


@dataclass(frozen=True)
class _Column:
    """How a column of the overview is read from a summary."""

    name: str
    value: Callable[[Summary, str], tuple[float | None, str, str]]
    """(what is compared, text, small text) for a system."""
    lower_is_better: bool = True


def systems(summary: Summary) -> list[str]:
    """Names of the systems, in order of appearance."""
    return list(dict.fromkeys(name for suite in summary["suites"] for name in suite["systems"]))


def pooled(summary: Summary, system: str, kind: str | None, label: str) -> tuple[Interval, int]:
    """Share of a label over all suites of a kind (None: all suites), and the number of prompts.

    Answers of several seeds to one prompt count as one case, whose share is their mean: the interval is Wilson's for
    the number of prompts.
    """
    found = [s["systems"][system] for s in summary["suites"] if kind in (None, s["kind"]) and system in s["systems"]]
    n = sum(result["n"] for result in found)
    share = sum(_share(result, label) * result["n"] for result in found)
    exact = wilson(round(share), n)
    return Interval(share / n if n else None, exact.low, exact.high), n


def _share(result: Mapping[str, Any], label: str) -> float:
    if label == "keyword_asr":
        return float(result["rates"][label]["rate"] or 0.0)
    return float(result["counts"][label] / max(1, result.get("answers", result["n"])))


def span(share: Mapping[str, Any] | Interval) -> str:
    """An interval in whole per cent, as 87–98."""
    low, high = (share.low, share.high) if isinstance(share, Interval) else (share["low"], share["high"])
    return f"{100 * low:.0f}–{100 * high:.0f}"


def _rate(kind: str | None, label: str) -> Callable[[Summary, str], tuple[float | None, str, str]]:
    def value(summary: Summary, system: str) -> tuple[float | None, str, str]:
        share, n = pooled(summary, system, kind, label)
        return share.rate, percent(share.rate), span(share) if n else ""

    return value


def _from(part: str, *keys: str, digits: int = 2) -> Callable[[Summary, str], tuple[float | None, str, str]]:
    def value(summary: Summary, system: str) -> tuple[float | None, str, str]:
        found: Any = summary.get(part, {}).get(system, {})
        for key in keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        return (None, "–", "") if found is None else (float(found), f"{found:.{digits}f}", "")

    return value


OVERVIEW = (
    _Column("malicious complied", _rate("malicious", "complied")),
    _Column("jailbreak complied", _rate("jailbreak", "complied")),
    _Column("malicious, no keyword", _rate("malicious", "keyword_asr")),
    _Column("borderline refused", _rate("borderline", "refusal")),
    _Column("benign refused", _rate("benign", "refusal")),
    _Column("degenerate", _rate(None, "degenerate")),
    _Column("KL from base", _from("usability", "kl", "whole", digits=3)),
    _Column("ROUGE-L to base", _from("usability", "rouge_l"), lower_is_better=False),
    _Column("tokens forwarded per answer", _from("cost", "tokens_forwarded", digits=0)),
)


def overview(summary: Summary) -> Table:
    """One row per system, one column per axis, the best of each marked; columns without a number are left out."""
    names = systems(summary)
    rivals = [name for name in names if name != BASE]
    columns = [
        (column, values)
        for column in OVERVIEW
        if any((values := {name: column.value(summary, name) for name in names})[name][0] is not None for name in names)
    ]
    rows = []
    for name in names:
        cells = [Cell(shown(name))]
        for column, values in columns:
            known = [value for rival in rivals if (value := values[rival][0]) is not None]
            best = (min(known) if column.lower_is_better else max(known)) if len(set(known)) > 1 else None
            value, text, small = values[name]
            cells.append(Cell(text, small, best is not None and name in rivals and value == best))
        rows.append(cells)
    note = (
        "Suites of one kind are pooled; below each share its 95% interval. The best of the defences is marked ★; where "
        "intervals overlap, the order may be chance. Higher is better for ROUGE-L, lower for all others."
    )
    return Table("Defences at a glance", ["system", *[column.name for column, _ in columns]], rows, note)


def usability(summary: Summary) -> Table | None:
    """How answers to benign prompts read; None if it was not measured."""
    found = summary.get("usability")
    if not found:
        return None
    header = ["system", "words", "length ratio", "distinct-1", "distinct-2", "ROUGE-L", "perplexity", "KL first", "KL"]
    rows, missing = [], []
    for name, one in found.items():
        kl = one.get("kl", {})
        if reason := kl.get("undefined"):
            missing.append(f"{shown(name)}: {reason}")
        values = [one.get(key) for key in ("length_ratio", "distinct_1", "distinct_2", "rouge_l", "perplexity")]
        cells = [
            f"{one['words']:.0f}",
            *map(_decimal, values),
            _decimal(kl.get("first"), 3),
            _decimal(kl.get("whole"), 3),
        ]
        rows.append([Cell(shown(name)), *map(Cell, cells)])
    note = (
        "On benign prompts. Length ratio and ROUGE-L are against the base's answers; perplexity is the median of the "
        "answers' perplexities under the base; KL(base ‖ defended) is in nats per token of the base's answers, over "
        "the first (routed) tokens and over whole answers."
    )
    if missing:
        note += " No KL for " + "; ".join(missing) + "."
    return Table("Usability on benign prompts", header, rows, note)


def cost(summary: Summary) -> Table | None:
    """Forward passes and tokens; None if nothing was counted."""
    found = summary.get("cost")
    if not found:
        return None
    keys = {"tokens": "tokens written", "forwards": "forward passes", "tokens_forwarded": "tokens forwarded"}
    rows = [[Cell(shown(name)), *[Cell(f"{one[key]:g}") for key in keys]] for name, one in found.items()]
    note = (
        "Per answer, counted at the base model, padding included; a pass serves a whole batch. Seconds, time to the "
        "first token and memory of this machine are in cost.json: they differ from run to run."
    )
    return Table("Cost", ["system", *keys.values()], rows, note)


def flips(summary: Summary) -> Table | None:
    """Prompts on which a defence changed the base's stance; None without any."""
    found = summary.get("flips")
    if not found:
        return None
    rows = [
        [
            Cell(one["suite"]),
            Cell(shown(one["defense"])),
            Cell(f"base {_said(one['base'])}, {shown(one['defense'])} {_said(one['then'])}"),
            Cell(f"{one['n']} of {one['of']}"),
            Cell("wanted" if one["good"] else "unwanted"),
        ]
        for one in found
    ]
    return Table("Flips", ["suite", "system", "change", "prompts", ""], rows)


def paired(summary: Summary) -> list[str]:
    """Sentences about the paired tests, one for each suite and system."""
    lines = []
    for suite in summary["suites"]:
        for name, tests in suite.get("mcnemar", {}).items():
            parts = [f"{COLUMNS.get(label, label)} p {p_value(one)} ({_sides(one)})" for label, one in tests.items()]
            lines.append(f"{suite['name']}, {shown(name)} against base: {'; '.join(parts)}")
    return lines


def _sides(one: Mapping[str, Any]) -> str:
    return f"{one['only_base']} only base, {one['only_this']} only this"


def p_value(one: Mapping[str, Any]) -> str:
    """The p of a paired test as text."""
    return "<\u00a00.001" if one["p"] < 0.001 else f"{one['p']:.2g}"


def text_table(summary: Summary) -> list[list[str]]:
    """Header and one row for each suite and system: suite, n, system, and the four labels as "95% (87–98)"."""
    rows = [["suite", "n", "system", *COLUMNS.values()]]
    for suite in summary["suites"]:
        for name, system in suite["systems"].items():
            cells = [_with_interval(system["rates"][label]) for label in COLUMNS]
            rows.append([suite["name"], str(system["n"]), shown(name), *cells])
    return rows


def _with_interval(share: Mapping[str, Any]) -> str:
    return "–" if share["rate"] is None else f"{percent(share['rate'])} ({span(share)})"


def _said(label: str) -> str:
    return COLUMNS.get(label, label)


def _decimal(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
