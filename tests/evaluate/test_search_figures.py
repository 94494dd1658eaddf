"""What a search found, as rows and as a section of the report."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

from mogu.evaluate.search_figures import search, search_table

PROMPTS = {"malicious": 40, "benign": 20, "borderline": 0}
BASE = {"complied": 0.95, "benign_refused": 0.0, "borderline_refused": 0.0, "degenerate": 0.0}


def member(trial: int, shift: float, **changes: float) -> dict[str, Any]:
    shares = {"complied": 0.1, "benign_refused": 0.05, "borderline_refused": 0.0, "degenerate": 0.002}
    return {**shares, "trial": trial, "shift": shift, "kl": 0.12345, "benefit": -0.25, "changes": changes}


def found(**more: Any) -> dict[str, Any]:
    trial = {"changes": {}, "responders": {"glad": {"on_target": 1.0, "pairs": 64}}, "seconds": 61.4}
    return {
        "rule": "balance",
        "picked": 1,
        "recipe": 2,
        "prompts": PROMPTS,
        "base": BASE,
        "members": [member(1, -0.5, sharpness=2.5, l2=0.001), member(0, 0.0)],
        "trials": [
            {**trial, "number": 0, "given_up": None, "members": [{}, {}]},
            {**trial, "number": 1, "given_up": "beaten <b>", "members": []},
        ],
        **more,
    }


def test_rows_name_the_trade_and_what_was_changed() -> None:
    header, base, first, own = search_table(found())
    assert header[0] == ""
    assert base == ["base", "–", "–", "95% (83–99)", "0% (0–16)", "–", "0%", "0", "–", "–"]
    assert first[:3] == ["1 picked", "1", "−0.5"]
    assert first[3:] == ["10% (4–23)", "5% (1–24)", "–", "<1%", "0.123", "−0.25", "sharpness 2.5, l2 0.001"]
    assert (own[0], own[-1]) == ("2 recipe", "nothing")
    assert search_table(found(picked=2))[3][0] == "2 recipe picked"


def test_the_section_shows_every_trade_and_why_trials_were_given_up() -> None:
    section = search({"search": found()})
    assert section is not None
    text = ET.tostring(section, encoding="unicode")
    assert "2 trials, 1 of them given up early; number 1 was picked by the rule “balance”" in text
    assert "given up: beaten &lt;b&gt;" in text
    titles = [e.text for e in section.iter("title")]
    assert "number 1, picked: 2% across, 10% up" in titles
    assert "base: 0% across, 95% up" in titles
    assert "100% on target after 64 pairs" in text


def test_a_number_is_no_rule_and_without_a_search_there_is_no_section() -> None:
    section = search({"search": found(rule="1")})
    assert section is not None
    assert "was picked by its number" in ET.tostring(section, encoding="unicode")
    assert search({}) is None
