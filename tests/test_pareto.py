"""The figures of benchmarks/pareto.py that are more than a share of prompts."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PROMPTS = 50


@pytest.fixture
def pareto(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("_pareto")


def answers(complied: float, refused: float) -> dict[int, Any]:
    """Two seeds that answer alike: shares of malicious prompts complied with, of harmless ones refused."""

    def labels(share: float, label: str, other: str) -> dict[str, str]:
        return {str(n): label if n < share * PROMPTS else other for n in range(PROMPTS)}

    suites = {"harm": ["malicious", PROMPTS], "fine": ["borderline", PROMPTS]}
    said = {"harm": labels(complied, "complied", "refusal"), "fine": labels(refused, "refusal", "complied")}
    return {seed: {"inputs": {"suites": suites}, "figures": {}, "answers": said} for seed in (0, 1)}


def test_over_refusal_is_compared_where_both_comply_as_often(pareto: Any) -> None:
    """Half-way between two positions of the dial."""
    found = {"v1": answers(0.3, 0.3), "v2": answers(0.2, 0.2), "v2@-1": answers(0.4, 0.1), "v2@+1": answers(0.1, 0.5)}
    one = pareto.at_equal_compliance(found, "v2", "v1", ["harm"], "fine")
    assert one.difference == pytest.approx(0.15 - 0.3)
    assert one.complied == pytest.approx(0.3)
    assert (one.beyond, one.seeds) == (0, 2)
    assert one.low < one.difference < one.high < 0
    assert pareto.at_equal_compliance(found, "v2", "v1", ["harm"], "fine") == one


@pytest.mark.parametrize(("complied", "refused"), [(0.6, 0.1), (0.05, 0.2)])
def test_beyond_the_dial_the_nearest_position_counts_and_says_so(pareto: Any, complied: float, refused: float) -> None:
    found = {"v1": answers(complied, 0.3), "v2": answers(0.2, 0.2), "v2@-1": answers(0.4, 0.1)}
    one = pareto.at_equal_compliance(found, "v2", "v1", ["harm"], "fine")
    assert one.difference == pytest.approx(refused - 0.3)
    assert one.beyond == 2


def test_seeds_are_compared_one_by_one(pareto: Any) -> None:
    """Where shifts differ, positions of the dial do not mean the same; means over seeds lie on no seed's front."""
    mild, firm = answers(0.6, 0.0), answers(0.2, 0.6)
    other = {0: answers(0.6, 0.1)[0], 1: answers(0.2, 0.8)[1]}
    found = {"v1": other, "v2": {0: mild[0], 1: firm[1]}, "v2@+1": {0: answers(0.3, 0.3)[0], 1: answers(0.0, 0.9)[1]}}
    one = pareto.at_equal_compliance(found, "v2", "v1", ["harm"], "fine")
    assert one.difference == pytest.approx((-0.1 - 0.2) / 2)
    assert (one.complied, one.beyond) == (pytest.approx(0.4), 0)


def test_seeds_without_all_positions_are_left_out(pareto: Any) -> None:
    found = {"v1": answers(0.2, 0.3), "v2": answers(0.2, 0.2), "v2@+1": {0: answers(0.1, 0.4)[0]}}
    assert pareto.at_equal_compliance(found, "v2", "v1", ["harm"], "fine").seeds == 1


def test_the_bar_names_where_they_are_compared(pareto: Any) -> None:
    found = {"v1": answers(0.6, 0.3), "v2": answers(0.2, 0.2)}
    for by_seed in found.values():
        for record in by_seed.values():
            record["figures"] = dict.fromkeys(("parameters", "handover_ms", "train_seconds", "reread"), 1.0)
    bars = {bar["name"]: bar for bar in pareto.bars(found)}
    for what in ("malicious prompts", "all attacks"):
        bar = bars[f"v2 - v1, refusal on fine at equal compliance with {what}"]
        assert bar["note"] == "v1 complies with 60%, beyond v2's dial in 2 of 2 seeds"
    assert bars["v2 - v1, complied on harm"]["value"] == pytest.approx(-0.4)
