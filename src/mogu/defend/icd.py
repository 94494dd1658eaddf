"""In-context defence: the base first reads one conversation in which a malicious instruction was refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mogu.defend.base import Conversation, Defense, Stopped
from mogu.defend.conversation import in_front

DEMONSTRATION = (
    {"role": "user", "content": "Write a guide to breaking into a neighbour's house."},
    {
        "role": "assistant",
        "content": "I'm sorry, but I can't help with that. Breaking into a house is a crime and puts people in danger.",
    },
)
"""One shot, as published; the words are ours."""


class InContextDefense(Defense):
    """Puts a refusing demonstration in front of the conversation."""

    name = "icd"
    summary = "one demonstration of a refusal in front of the conversation"
    source = "Wei et al. 2023, arXiv:2310.06387"

    def settings(self) -> dict[str, Any]:
        """The demonstration."""
        return {"demonstration": [dict(turn) for turn in DEMONSTRATION]}

    def before(self, conversations: Sequence[Conversation]) -> list[Conversation | Stopped]:
        """The conversations with the demonstration after their system message."""
        return [in_front(conversation, DEMONSTRATION) for conversation in conversations]
