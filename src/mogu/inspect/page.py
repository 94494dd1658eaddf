"""The page of a reading: one HTML file that needs no network, with style, script and numbers inside."""

from __future__ import annotations

import json
from importlib import resources

from mogu.evaluate.page import html_page
from mogu.evaluate.svg import Element, element, number, percent
from mogu.inspect.read import Reading

STEPS = 10
"""Shades of risk."""


def render(reading: Reading) -> str:
    """The whole page; every text is escaped, and the content policy allows its own script and style only."""
    folder = resources.files(__package__)
    return html_page(
        "What the routers read",
        (folder / "page.css").read_text(encoding="utf-8"),
        _head(reading),
        _text(reading),
        _maps(reading),
        _meaning(reading),
        data=element("script", _numbers(reading), type="application/json", id="numbers"),
        script=(folder / "page.js").read_text(encoding="utf-8"),
    )


def _head(reading: Reading) -> Element:
    written = len(reading.tokens) - reading.prompt_tokens
    cards = [
        ("risk of the prompt", "–" if reading.risk is None else percent(reading.risk)),
        ("routed tokens of the answer", f"{reading.routed_tokens} of {written}"),
        ("hand-over", _handover(reading)),
        ("shift δ", number(round(reading.shift, 3))),
    ]
    return element(
        "header",
        element("h1", "What the routers read"),
        element("p", f"{reading.model} · {len(reading.layers)} routed layers", class_="soft"),
        element("dl", *[element("div", element("dt", name), element("dd", value)) for name, value in cards]),
    )


def _handover(reading: Reading) -> str:
    if reading.handover == "risk":
        return f"when risk ≤ {percent(reading.threshold)}"
    return "never" if reading.handover == "all" else "after m tokens"


def _text(reading: Reading) -> Element:
    start, handed = reading.prompt_tokens, reading.prompt_tokens + reading.routed_tokens
    parts = (("Prompt", 0, start), ("Answer, routed", start, handed), ("Answer, plain base", handed, None))
    blocks = []
    for name, first, last in parts:
        spans = [_token(reading, index) for index in range(first, len(reading.tokens) if last is None else last)]
        if spans:
            blocks += [element("h3", name), element("p", *spans, class_="tokens")]
    scale = [element("span", class_=f"r{step}") for step in range(STEPS)]
    legend = element("p", "0% ", element("span", *scale, class_="scale"), " 100%", class_="soft legend")
    return element("section", element("h2", "Risk at each token"), legend, *blocks)


def _token(reading: Reading, index: int) -> Element:
    risk, text = reading.token_risk[index], reading.tokens[index]
    shade = min(int(risk * STEPS), STEPS - 1)
    shown = text.replace("\n", "⏎\n")
    return element(
        "span", shown or "·", class_=f"r{shade}", data_token=index, title=f"{percent(risk)} at token {index}"
    )


def _maps(reading: Reading) -> Element:
    maps = []
    for key, name in (("unwill", "u, weight of the unwilling responder"), ("glad", "g, weight of the glad responder")):
        layers = element(
            "ol",
            *[element("li", str(layer)) for layer in reversed(reading.layers)],
            class_="layers",
            aria_hidden="true",
        )
        canvas = element(
            "canvas",
            id=key,
            tabindex="0",
            role="img",
            aria_label=f"{name}: {len(reading.layers)} layers by {len(reading.tokens)} tokens. Arrow keys move.",
        )
        maps += [element("h3", name), element("div", layers, element("div", canvas, class_="scroll"), class_="map")]
    return element(
        "section",
        element("h2", "Weights, layer by token"),
        element(
            "p",
            "Layers from the lowest (below) to the highest; the first upright line ends the prompt, the second is the "
            "hand-over. Point at a cell, or focus a map and use the arrow keys.",
            class_="soft",
        ),
        *maps,
        element("output", "Nothing is chosen yet.", id="readout", aria_live="polite"),
    )


def _meaning(reading: Reading) -> Element:
    risk = (
        "Risk is calibrated for the last token of a prompt and for the tokens of an answer; at earlier tokens of the "
        "prompt, which has not been read to its end there, it is the same formula and no probability."
        if reading.risk is not None
        else "This adapter has no risk calibration: tokens are coloured by the mean of u over the layers."
    )
    base = (
        "Colours behind the hand-over show what the routers would say there: the plain base wrote those tokens without "
        "them. All weights are of one routed forward over prompt and answer."
    )
    return element("section", element("h2", "What it does not mean"), element("p", risk), element("p", base))


def _numbers(reading: Reading) -> str:
    """As JSON in which no text can end the script element."""
    numbers = {
        "tokens": reading.tokens,
        "start": reading.prompt_tokens,
        "handed": reading.prompt_tokens + reading.routed_tokens,
        "layers": reading.layers,
        "risk": [round(value, 3) for value in reading.token_risk],
        "unwill": [[round(value, 3) for value in row] for row in reading.unwill],
        "glad": [[round(value, 3) for value in row] for row in reading.glad],
    }
    return json.dumps(numbers, separators=(",", ":")).replace("<", "\\u003c")
