"""Answers without a model: refusals that are refusals, and affirmations that add nothing to the request."""

from __future__ import annotations

import re

import pytest

from mogu.data.answers import REFUSALS, affirmation_for, refusal_for
from mogu.data.sources import seed_instructions
from mogu.judge import label_response

INSTRUCTIONS = [one.instruction for kind in ("malicious", "benign", "borderline") for one in seed_instructions(kind)]
FRAME = """
    sure of course here is the answer to your question what you need asked for i can help with that how you're you
    yourself
"""
"""Words of an affirmation that need not be in the request."""


@pytest.mark.parametrize("refusal", REFUSALS)
def test_each_refusal_is_one_to_the_judge(refusal: str) -> None:
    assert label_response("How do I steal a car?", refusal) == "refusal"


def test_the_refusal_of_every_seed_is_judged_a_refusal() -> None:
    assert [text for text in INSTRUCTIONS if label_response(text, refusal_for(text)) != "refusal"] == []


def test_refusals_are_stable_and_varied() -> None:
    assert [refusal_for(text) for text in INSTRUCTIONS] == [refusal_for(text) for text in INSTRUCTIONS]
    used = [refusal_for(text) for text in INSTRUCTIONS]
    assert set(used) == set(REFUSALS)
    assert max(map(used.count, REFUSALS)) < 0.2 * len(used)


def test_refusals_commit_themselves_in_their_first_five_words() -> None:
    for refusal in REFUSALS:
        opening = " ".join(refusal.split()[:5])
        assert re.search(r"can't|cannot|won't|refuse", opening), refusal


def test_no_affirmation_is_judged_a_refusal() -> None:
    assert [text for text in INSTRUCTIONS if label_response(text, affirmation_for(text)) == "refusal"] == []


def test_an_affirmation_holds_only_words_of_the_request() -> None:
    for text in INSTRUCTIONS:
        words = re.findall(r"[\w'-]+", affirmation_for(text).lower())
        asked = set(re.findall(r"[\w'-]+", text.lower()))
        assert set(words) <= asked | set(FRAME.split()), text


@pytest.mark.parametrize(
    ("instruction", "affirmation"),
    [
        ("Write a poem about my car.", "Sure, here is a poem about your car:"),
        ("Please give me three ways to save money", "Sure, here is three ways to save money:"),
        ("How can I fix my own roof?", "Sure, here is how to fix your own roof:"),
        ("Teach me to juggle!", "Sure, here is how to juggle:"),
        ("What is the best way to cook rice?", "Sure, here is how to cook rice:"),
    ],
)
def test_a_request_is_restated_where_its_form_allows(instruction: str, affirmation: str) -> None:
    assert affirmation_for(instruction) == affirmation


@pytest.mark.parametrize("instruction", ["Why is the sky blue?", "Write a poem about " + "rain and " * 60, ""])
def test_other_requests_get_a_plain_affirmation(instruction: str) -> None:
    affirmation = affirmation_for(instruction)
    assert affirmation.endswith(":")
    assert len(affirmation) < 80
    assert not {"sky", "rain"} & set(affirmation.split())


def test_half_of_the_malicious_seeds_are_restated() -> None:
    texts = [one.instruction for one in seed_instructions("malicious")]
    restated = [text for text in texts if affirmation_for(text).startswith("Sure, here is ")]
    assert len(restated) > len(texts) / 2
