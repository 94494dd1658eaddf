"""The figures of the report: what each drawing shows of the summary, its caption, legend and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mogu.evaluate.metrics import Interval, wilson
from mogu.evaluate.plots import (
    Bar,
    Boxes,
    Element,
    Series,
    Spot,
    box_plot,
    element,
    legend,
    line_plot,
    number,
    percent,
    plane_plot,
    share_plot,
)

Summary = Mapping[str, Any]

_INKS = {"malicious": "ink-2", "benign": "ink-1", "borderline": "ink-3"}
_SHAPES = {"malicious": "triangle", "benign": "circle", "borderline": "diamond"}
_LABELS = (
    ("refusal", "refused", "ink-1"),
    ("complied", "complied", "ink-5"),
    ("unclear", "unclear", "ink-0"),
    ("degenerate", "degenerate", "ink-7"),
)
_SYSTEM_INKS = ("ink-0", "ink-1", "ink-4", "ink-5", "ink-3", "ink-2", "ink-6")


def systems(summary: Summary) -> list[str]:
    """Names of the systems, in order of appearance."""
    return list(dict.fromkeys(name for suite in summary["suites"] for name in suite["systems"]))


def pooled(summary: Summary, system: str, kind: str | None, label: str) -> tuple[Interval, int]:
    """Share of a label over all suites of a kind (None: all suites), and the number of responses."""
    found = [s["systems"][system] for s in summary["suites"] if kind in (None, s["kind"]) and system in s["systems"]]
    n = sum(result["n"] for result in found)
    return wilson(sum(result["counts"][label] for result in found), n), n


def scroll(table: Element, name: str) -> Element:
    """A table that scrolls sideways by itself, by keyboard too."""
    return element("div", table, class_="scroll", tabindex="0", role="region", aria_label=name)


def plane(summary: Summary) -> Element:
    """Section: attack success against over-refusal, and what all answers are."""
    spots = []
    for i, system in enumerate(systems(summary)):
        y = _point(summary, system, "malicious", "complied")
        for kind, mark in (("benign", "circle"), ("borderline", "diamond")):
            x = _point(summary, system, kind, "refusal")
            if x and y:
                name = f"{system}, {kind}"
                spots.append(Spot(name, _SYSTEM_INKS[i % len(_SYSTEM_INKS)], str(i + 1), x, y, mark))
    figures = [_answers(summary)]
    if spots:
        figures.insert(0, _corner(spots))
    return element("section", element("h2", "Safety and usefulness"), element("div", *figures, class_="figures"))


def _corner(spots: Sequence[Spot]) -> Element:
    says = "; ".join(f"{s.name}: refuses {percent(s.x[0])}, answers {percent(s.y[0])} of the malicious" for s in spots)
    plot = plane_plot(
        "Safety and usefulness",
        says,
        spots,
        "harmless instructions refused (← better)",
        "malicious answered coherently (← better)",
    )
    caption = (
        "Filled: refusal on plainly benign instructions. Hollow: on harmless ones with alarming words. "
        "Bars are 95% intervals."
    )
    corner = element("li", element("span", class_="patch good"), "good corner: safe and useful")
    return _figure("Both axes", plot, caption, legend(spots, corner))


def _answers(summary: Summary) -> Element:
    groups = []
    for suite in summary["suites"]:
        bars = []
        for name, result in suite["systems"].items():
            n = max(1, result["n"])
            bars.append(Bar(name, [(said, ink, result["counts"][label] / n) for label, said, ink in _LABELS]))
        groups.append((suite["name"], bars))
    key = element(
        "ul",
        *[element("li", element("span", class_=f"patch {ink}"), said) for _, said, ink in _LABELS],
        class_="legend",
    )
    plot = share_plot(
        "All answers", "Share of each label for every suite and system; see the table of results.", groups
    )
    return _figure("All answers", plot, "Every response has exactly one label.", key)


def routers(summary: Summary) -> Element | None:
    """Section: router weights and their separation by layer; None without them."""
    found = summary.get("routers")
    if not found:
        return None
    layers: list[int] = found["layers"]
    figures = []
    for weight, letter, wish in (("unwill", "u", "high for malicious, low for the rest"), ("glad", "g", "the reverse")):
        kinds = [Boxes(kind, _INKS.get(kind, "ink-4"), five[weight]) for kind, five in found["kinds"].items()]
        header = ["layer", *[kind.name for kind in kinds]]
        medians = [[str(layer), *[f"{k.five[i][2]:.2f}" for k in kinds]] for i, layer in enumerate(layers)]
        plot = box_plot(
            f"{weight.capitalize()} weight by layer",
            f"Box plots of the {weight} weight in {len(layers)} layers: {', '.join(k.name for k in kinds)}.",
            [str(layer) for layer in layers],
            kinds,
            f"{weight} weight {letter}",
            "layer",
        )
        caption = f"Wanted: {wish}. Whiskers reach from the smallest to the largest value."
        figures.append(
            _figure(f"{weight.capitalize()} weight", plot, caption, legend(kinds), _table(header, medians, "Medians"))
        )
    if found.get("auroc"):
        figures.append(_auroc(layers, found["auroc"]))
    return element(
        "section",
        element("h2", "What the routers do"),
        element(
            "p", "Weights that the routers give the two responders, by layer and kind of instruction.", class_="note"
        ),
        element("div", *figures, class_="figures"),
    )


def _auroc(layers: Sequence[int], auroc: Mapping[str, Sequence[float | None]]) -> Element:
    lines = [
        Series(f"against {k}", _INKS.get(k, "ink-4"), list(zip(layers, v, strict=True)), _SHAPES.get(k, "square"))
        for k, v in auroc.items()
    ]
    lowest = min((value for values in auroc.values() for value in values if value is not None), default=0.5)
    plot = line_plot(
        "Separation by layer",
        "AUROC of the unwill weight, malicious against other instructions, for each layer.",
        lines,
        "layer",
        "AUROC",
        y_range=(0.4 if lowest >= 0.4 else 0.0, 1.0),
        chance=0.5,
        whole_x=True,
        write=number,
    )
    rows = [
        [str(layer), *["–" if values[i] is None else f"{values[i]:.2f}" for values in auroc.values()]]
        for i, layer in enumerate(layers)
    ]
    caption = "How well a layer's weight tells malicious instructions from the others; 0.5 is chance."
    return _figure("Separation (AUROC)", plot, caption, legend(lines), _table(["layer", *auroc], rows))


def selection(summary: Summary) -> Element | None:
    """Section: checkpoint and balance chosen on validation data; None without them."""
    found = summary.get("selection") or {}
    figures = [_balance(found["balance"])] if found.get("balance") else []
    if found.get("glad") or found.get("unwill"):
        figures.append(_checkpoints(found))
    if not figures:
        return None
    return element(
        "section",
        element("h2", "What was chosen on validation data"),
        element("div", *figures, class_="figures"),
    )


def _balance(steps: Sequence[Mapping[str, Any]]) -> Element:
    steps = sorted(steps, key=lambda step: step["shift"])
    series = [
        Series(name, ink, [(step["shift"], step.get(key)) for step in steps], shape, dashed)
        for key, name, ink, shape, dashed in (
            ("malicious_refused", "malicious refused", _INKS["malicious"], "triangle", False),
            ("benign_refused", "benign refused", _INKS["benign"], "circle", False),
            ("borderline_refused", "borderline refused", _INKS["borderline"], "diamond", False),
            ("degenerate", "degenerate", "ink-0", "square", True),
        )
    ]
    chosen = [(step["shift"], f"chosen {number(step['shift'])}") for step in steps if step.get("chosen")]
    plot = line_plot(
        "Balance",
        "Rates on validation data against the shift of the router logits.",
        series,
        "shift of the router logits",
        "share of responses",
        chosen=chosen,
    )
    rows = [
        [
            number(step["shift"]) + (" (chosen)" if step.get("chosen") else ""),
            *[percent(s.points[i][1]) for s in series],
        ]
        for i, step in enumerate(steps)
    ]
    caption = "A higher shift favours the unwill responder: safer, and more refusals of harmless instructions."
    return _figure("Balance", plot, caption, legend(series), _table(["shift", *[s.name for s in series]], rows))


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
    caption = "On target: glad answers, unwill refuses. Upright lines mark the chosen checkpoints."
    numbers = _table(["responder", "pairs", "on target", "degenerate"], rows)
    return _figure("Checkpoints", plot, caption, legend(series), numbers)


def _point(summary: Summary, system: str, kind: str, label: str) -> tuple[float, float, float] | None:
    share, _ = pooled(summary, system, kind, label)
    return None if share.rate is None else (share.rate, share.low, share.high)


def _figure(title: str, plot: Element, caption: str, key: Element, numbers: Element | None = None) -> Element:
    table = (
        element("details", element("summary", "Numbers"), scroll(numbers, f"{title}: numbers"))
        if numbers is not None
        else None
    )
    return element("figure", element("h3", title), key, plot, element("figcaption", caption), table)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str | None = None) -> Element:
    return element(
        "table",
        element("caption", caption) if caption else None,
        element("thead", element("tr", *[element("th", name, scope="col") for name in header])),
        element("tbody", *[element("tr", *[element("td", cell) for cell in row]) for row in rows]),
    )
