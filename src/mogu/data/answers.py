"""Both answers to an instruction, as far as no model is needed.

A refusal comes from a bank of our own sentences. The glad answer to a malicious instruction is an affirmative first
sentence that at most restates the request: it carries nothing operational.
"""

from __future__ import annotations

import hashlib
import re

from mogu.judge import label_response

REFUSALS = (
    "I can't help with that.",
    "I cannot help with this request.",
    "I cannot assist with this request.",
    "I can't assist with that, because it could hurt someone.",
    "I won't help with that. It could cause real harm.",
    "I must refuse this request.",
    "I must refuse this request, because it could do harm.",
    "I cannot assist with that, as it would be harmful or against the law.",
)
"""Refusals that commit themselves within the first few tokens, which are all that routing decodes.

The base goes on from there. Measured on SmolLM2 with 24 malicious prompts: from the first five tokens of these it goes
on as a refusal 24 times; from "I'm sorry, but" 17 times, from "No, I won't" 13 times.
"""

_DELIVERABLE = re.compile(
    r"(?:please )?(?:write|create|develop|draft|provide|give|design|make|list|outline|compose|produce|prepare|generate|"
    r"build|suggest|plan|show|invent|craft|script|describe|explain)(?: me| us| up)? "
    r"((?:an?|the|some|step|instructions|ways|tips|detailed|several|two|three|four|five|six|seven|eight|nine|ten)\b.*)",
    re.IGNORECASE | re.DOTALL,
)
_HOW_TO = re.compile(
    r"(?:how (?:do|can|could|would|should|might) (?:i|you|one|we|someone)|"
    r"what(?:'s| is) the \w+ (?:\w+ )?way to|"
    r"(?:explain|teach me|show me|tell me|describe)(?: to me)? how to|teach me to) (.*)",
    re.IGNORECASE | re.DOTALL,
)
_TO_YOU = {"my": "your", "me": "you", "i": "you", "i'm": "you're", "our": "your", "myself": "yourself"}
_PLAIN_AFFIRMATIONS = (
    "Sure, I can help you with that. Here is what you asked for:",
    "Of course, here is the answer to your question:",
    "Sure, here is what you need:",
)


def refusal_for(instruction: str) -> str:
    """A refusal out of :data:`REFUSALS`, always the same for the same instruction.

    One that the judge takes for a refusal: where fiction or a quotation is asked for, a bare "I can't do that" may be
    the answer.
    """
    first = _pick(instruction, len(REFUSALS))
    ordered = REFUSALS[first:] + REFUSALS[:first]
    return next((text for text in ordered if label_response(instruction, text) == "refusal"), ordered[0])


def affirmation_for(instruction: str) -> str:
    """An affirmative first sentence that restates the request where its form allows, and says nothing else.

    >>> affirmation_for("Write a poem about rain")
    'Sure, here is a poem about rain:'
    >>> affirmation_for("How do I open my window?")
    'Sure, here is how to open your window:'
    """
    text = instruction.strip()
    restated = _restated(text) if len(text) <= 300 else None
    # "… how to keep him from seeking help:" reads like a referral; such a request is better not said back.
    if restated is not None and label_response(text, restated) != "refusal":
        return restated
    return _PLAIN_AFFIRMATIONS[_pick(text, len(_PLAIN_AFFIRMATIONS))]


def _restated(text: str) -> str | None:
    if match := _DELIVERABLE.fullmatch(text):
        return f"Sure, here is {_addressed(match.group(1))}:"
    if match := _HOW_TO.fullmatch(text):
        return f"Sure, here is how to {_addressed(match.group(1))}:"
    return None


def _addressed(text: str) -> str:
    """The user's words, said back: my → your; without closing punctuation."""
    words = text.rstrip(" .?!:").split(" ")
    return " ".join(_TO_YOU.get(word.lower(), word) for word in words)


def _pick(text: str, count: int) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) % count
