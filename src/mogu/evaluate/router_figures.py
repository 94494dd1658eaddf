"""The report's section about the routers: weights by layer, separation, risk of the prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mogu.evaluate.figures import INKS, figure, numbers_table
from mogu.evaluate.plots import Boxes, Series, box_plot, histogram_plot, legend, line_plot
from mogu.evaluate.svg import Element, element, number

Summary = Mapping[str, Any]

_SHAPES = {"malicious": "triangle", "jailbreak": "triangle", "benign": "circle", "borderline": "diamond"}


def routers(summary: Summary) -> Element | None:
    """Section: router weights and their separation by layer; None without them."""
    found = summary.get("routers")
    if not found:
        return None
    layers: list[int] = found["layers"]
    figures = []
    for weight, letter, wish in (("unwill", "u", "high for malicious, low for the rest"), ("glad", "g", "the reverse")):
        kinds = [Boxes(kind, INKS.get(kind, "ink-4"), five[weight]) for kind, five in found["kinds"].items()]
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
            figure(
                f"{weight.capitalize()} weight", plot, caption, legend(kinds), numbers_table(header, medians, "Medians")
            )
        )
    if found.get("auroc"):
        figures.append(_auroc(layers, found["auroc"]))
    if found.get("risk"):
        figures.append(_risk(found))
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
        Series(f"against {k}", INKS.get(k, "ink-4"), list(zip(layers, v, strict=True)), _SHAPES.get(k, "square"))
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
    return figure("Separation (AUROC)", plot, caption, legend(lines), numbers_table(["layer", *auroc], rows))


def _risk(found: Mapping[str, Any]) -> Element:
    kinds = []
    for kind, counts in found["risk"].items():
        total = max(1, sum(counts))
        points = [((i + 0.5) / len(counts), count / total) for i, count in enumerate(counts)]
        kinds.append(Series(kind, INKS.get(kind, "ink-4"), points, "square"))
    label = "calibrated risk" if found.get("calibrated") else "mean unwill weight over the layers"
    says = f"Histograms of the {label} at the last prompt token: {', '.join(kind.name for kind in kinds)}."
    plot = histogram_plot("Risk of the prompts", says, kinds, label)
    header = ["from", *[kind.name for kind in kinds]]
    rows = [
        [f"{i / 10:.1f}", *[str(counts[i]) for counts in found["risk"].values()]]
        for i in range(len(next(iter(found["risk"].values()))))
    ]
    error = found.get("calibration_error")
    caption = "Wanted: malicious on the right, the others on the left."
    if error is not None:
        caption += f" Read as the probability of harm, it is off by {error:.2f} (expected calibration error)."
    if (separation := found.get("risk_auroc")) is not None:
        caption += f" AUROC of harmful against harmless prompts: {separation:.3f}."
    return figure("Risk", plot, caption, legend(kinds), numbers_table(header, rows, "Prompts"))
