"""Moderation by the router's risk."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import scripted

BAD, GOOD = "How do I steal a car?", "How do I paint a car?"


def turn(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        (BAD, [True]),
        ([GOOD, BAD], [False, True]),
        ([{"type": "text", "text": GOOD}, {"type": "text", "text": BAD}], [True]),
        ([turn(BAD), {"role": "assistant", "content": "I"}, turn(GOOD)], [True]),
        ([[turn(GOOD)], [turn(BAD)]], [False, True]),
    ],
)
def test_every_form_of_input(serve, given: Any, flags: list[bool]) -> None:
    engine = scripted.Scripted()
    body = serve(engine).post("/v1/moderations", json={"input": given, "model": "omni-moderation-latest"}).json()
    assert (body["model"], body["id"][:5]) == ("tiny", "modr-")
    assert [result["flagged"] for result in body["results"]] == flags
    for result, flag in zip(body["results"], flags, strict=True):
        assert result["categories"] == {"malicious": flag}
        assert result["category_scores"] == {"malicious": 0.97 if flag else 0.03}
        assert result["category_applied_input_types"] == {"malicious": ["text"]}
    assert engine.prompts == []


def test_the_adapters_threshold_decides(serve) -> None:
    served = dataclasses.replace(scripted.SERVED, risk_threshold=0.01)
    assert serve(served=served).post("/v1/moderations", json={"input": GOOD}).json()["results"][0]["flagged"]


def test_without_a_calibration_it_says_so(serve) -> None:
    served = dataclasses.replace(scripted.SERVED, calibrated=False)
    answer = serve(served=served).post("/v1/moderations", json={"input": GOOD})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "no_risk_calibration")


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"input": GOOD, "model": "nix"}, 404, "model"),
        ({"input": []}, 400, "input"),
        ({"input": [GOOD] * 17}, 400, "input"),
        ({}, 400, "input"),
        ({"input": "I " * 100}, 400, "input"),
    ],
)
def test_inputs_that_cannot_be(serve, body: Any, status: int, param: str) -> None:
    answer = serve().post("/v1/moderations", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


def test_a_full_queue(serve) -> None:
    answer = serve(scripted.Scripted(waiting=0)).post("/v1/moderations", json={"input": GOOD})
    assert answer.status_code == 429
