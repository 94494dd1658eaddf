"""The figures of the report: what each drawing shows of the summary, its caption, legend and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mogu.evaluate.metrics import pareto_front
from mogu.evaluate.plots import Bar, Series, Spot, legend, line_plot, plane_plot, share_plot
from mogu.evaluate.summary import shown
from mogu.evaluate.svg import Element, element, number, percent
from mogu.evaluate.tables import pooled, systems

Summary = Mapping[str, Any]

INKS = {"malicious": "ink-2", "benign": "ink-1", "borderline": "ink-3"}
_LABELS = (
    ("refusal", "refused", "ink-1"),
    ("complied", "complied", "ink-5"),
    ("unclear", "unclear", "ink-0"),
    ("degenerate", "degenerate", "ink-7"),
)
_SYSTEM_INKS = ("ink-0", "ink-1", "ink-4", "ink-5", "ink-3", "ink-2", "ink-6")


def scroll(table: Element, name: str) -> Element:
    """A table that scrolls sideways by itself, by keyboard too."""
    return element("div", table, class_="scroll", tabindex="0", role="region", aria_label=name)


def plane(summary: Summary) -> Element:
    """Section: attack success against over-refusal, and what all answers are."""
    figures = [_answers(summary)]
    for kind, words in (("benign", "plainly benign instructions"), ("borderline", "harmless ones in alarming words")):
        if spots := _spots(summary, kind):
            figures.insert(0, _corner(spots, kind, words))
    return element("section", element("h2", "Safety and usefulness"), element("div", *figures, class_="figures"))


def _spots(summary: Summary, kind: str) -> list[Spot]:
    spots = []
    for i, system in enumerate(systems(summary)):
        x, y = _point(summary, system, kind, "refusal"), _point(summary, system, "malicious", "complied")
        if x and y:
            spots.append(Spot(shown(system), _SYSTEM_INKS[i % len(_SYSTEM_INKS)], str(i + 1), x, y))
    return spots


def _corner(spots: Sequence[Spot], kind: str, words: str) -> Element:
    says = "; ".join(f"{s.name}: refuses {percent(s.x[0])}, answers {percent(s.y[0])} of the malicious" for s in spots)
    front = pareto_front({s.name: (s.x[0], s.y[0]) for s in spots})
    plot = plane_plot(
        f"Safety against refusals of {kind} instructions",
        says,
        spots,
        f"{kind} instructions refused (← better)",
        "malicious answered coherently (← better)",
        front,
    )
    caption = (
        f"Refusals of {words}. Bars are 95% intervals. No system is better on both axes than those on the dashed "
        f"Pareto front: {', '.join(front)}."
    )
    corner = element("li", element("span", class_="patch good"), "good corner: safe and useful")
    return figure(f"Attack success against {kind} refusals", plot, caption, legend(spots, corner))


def _answers(summary: Summary) -> Element:
    groups = []
    for suite in summary["suites"]:
        bars = []
        for name, result in suite["systems"].items():
            n = max(1, result.get("answers", result["n"]))
            bars.append(Bar(shown(name), [(said, ink, result["counts"][label] / n) for label, said, ink in _LABELS]))
        groups.append((suite["name"], bars))
    key = element(
        "ul",
        *[element("li", element("span", class_=f"patch {ink}"), said) for _, said, ink in _LABELS],
        class_="legend",
    )
    plot = share_plot(
        "All answers", "Share of each label for every suite and system; see the table of results.", groups
    )
    return figure("All answers", plot, "Every response has exactly one label.", key)


def selection(summary: Summary) -> Element | None:
    """Section: checkpoint and balance chosen on validation data; None without them."""
    found = summary.get("selection") or {}
    figures = [_balance(found["balance"])] if found.get("balance") else []
    if found.get("routers"):
        figures.append(_routers(found["routers"]))
    if found.get("glad") or found.get("unwill"):
        figures.append(_checkpoints(found))
    if not figures:
        return None
    return element(
        "section",
        element("h2", "What was chosen on validation data"),
        element("div", *figures, class_="figures"),
    )


_TRADE = (
    ("malicious_refused", "malicious refused", INKS["malicious"], "triangle", False),
    ("benign_refused", "benign refused", INKS["benign"], "circle", False),
    ("borderline_refused", "borderline refused", INKS["borderline"], "diamond", False),
    ("degenerate", "degenerate", "ink-0", "square", True),
)
"""What a shift, or a checkpoint of the routers, does to validation prompts."""


def _balance(steps: Sequence[Mapping[str, Any]]) -> Element:
    return _trade(
        "Balance",
        sorted(steps, key=lambda step: step["shift"]),
        "shift",
        "shift of the router logits",
        "A higher shift favours the unwill responder: safer, and more refusals of harmless instructions.",
    )


def _routers(steps: Sequence[Mapping[str, Any]]) -> Element:
    return _trade(
        "Router checkpoints",
        sorted(steps, key=lambda step: step["pairs"]),
        "pairs",
        "rows of end-to-end training seen",
        "Taken is the checkpoint that refuses most malicious prompts less benign, borderline and broken ones. AUROC is "
        "that of the routers' mean unwill weight, malicious against all other prompts; KL is from the base, in nats "
        "per token on benign prompts.",
        {"auroc": "AUROC", "kl": "KL"},
    )


def _trade(
    title: str,
    steps: Sequence[Mapping[str, Any]],
    x: str,
    label: str,
    caption: str,
    more: Mapping[str, str] | None = None,
) -> Element:
    """Rates on validation prompts over ``x``; ``more`` names further columns of the table."""
    series = [
        Series(name, ink, [(step[x], step.get(key)) for step in steps], shape, dashed)
        for key, name, ink, shape, dashed in _TRADE
    ]
    chosen = [(step[x], f"chosen {number(step[x])}") for step in steps if step.get("chosen")]
    description = f"Rates on validation data by {label}."
    plot = line_plot(title, description, series, label, "share of responses", chosen=chosen, whole_x=x != "shift")
    more = more or {}
    rows = [
        [
            number(step[x]) + (" (chosen)" if step.get("chosen") else ""),
            *[percent(s.points[i][1]) for s in series],
            *[_short(step.get(key)) for key in more],
        ]
        for i, step in enumerate(steps)
    ]
    numbers = numbers_table([label, *[s.name for s in series], *more.values()], rows)
    return figure(title, plot, caption, legend(series), numbers)


def _short(value: float | None) -> str:
    return "–" if value is None else number(float(f"{value:.3g}"))


def _checkpoints(found: Mapping[str, Any]) -> Element:
    series, chosen, rows = [], [], []
    for responder, ink, shape in (("glad", "ink-1", "circle"), ("unwill", "ink-2", "triangle")):
        points = sorted(found.get(responder) or [], key=lambda point: point["pairs"])
        if not points:
            continue
        series.append(Series(f"{responder} on target", ink, [(p["pairs"], p["on_target"]) for p in points], shape))
        series.append(
            Series(f"{responder} degenerate", ink, [(p["pairs"], p["degenerate"]) for p in points], shape, True)
        )
        chosen += [(p["pairs"], responder) for p in points if p.get("chosen")]
        rows += [
            [
                responder,
                f"{p['pairs']}{' (chosen)' if p.get('chosen') else ''}",
                percent(p["on_target"]),
                percent(p["degenerate"]),
                _short(p.get("kl")),
            ]
            for p in points
        ]
    plot = line_plot(
        "Checkpoints",
        "Share of held-out answers on target and degenerate, by number of training pairs seen.",
        series,
        "training pairs seen",
        "share of responses",
        chosen=chosen,
        whole_x=True,
    )
    caption = (
        "On target: glad answers, unwill refuses. Upright lines mark the chosen checkpoints. KL is from the base, in "
        "nats per token on benign prompts, where the unwill responder is meant to be far away."
    )
    numbers = numbers_table(["responder", "pairs", "on target", "degenerate", "KL"], rows)
    return figure("Checkpoints", plot, caption, legend(series), numbers)


def _point(summary: Summary, system: str, kind: str, label: str) -> tuple[float, float, float] | None:
    share, _ = pooled(summary, system, kind, label)
    return None if share.rate is None else (share.rate, share.low, share.high)


def figure(title: str, plot: Element, caption: str, key: Element, numbers: Element | None = None) -> Element:
    """A drawing with its heading, legend, caption, and perhaps its numbers in a folded table."""
    table = (
        element("details", element("summary", "Numbers"), scroll(numbers, f"{title}: numbers"))
        if numbers is not None
        else None
    )
    return element("figure", element("h3", title), key, plot, element("figcaption", caption), table)


def numbers_table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str | None = None) -> Element:
    """A plain table of texts."""
    return element(
        "table",
        element("caption", caption) if caption else None,
        element("thead", element("tr", *[element("th", name, scope="col") for name in header])),
        element("tbody", *[element("tr", *[element("td", cell) for cell in row]) for row in rows]),
    )
