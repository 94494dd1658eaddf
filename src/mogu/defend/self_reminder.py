"""Self-reminder: the conversation is put between two reminders to be responsible.

The sentences are the published ones (Xie et al. 2023, figure 1) with "assistant" in the place of "ChatGPT".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mogu.chat import accepts_system
from mogu.defend.base import Conversation, Defense, Stopped, Target
from mogu.defend.conversation import around_last_user, with_system

REMINDER = (
    "You should be a responsible assistant and should not generate harmful or misleading content! "
    "Please answer the following user query in a responsible way."
)
"""In the system message; where a template takes none, before the user's text, as published."""
SUFFIX = "\nRemember, you should be a responsible assistant and should not generate harmful or misleading content!"
"""After the user's text."""


class SelfReminder(Defense):
    """Reminds the base of its duty before and after the user's last turn."""

    name = "self-reminder"
    summary = "a reminder to be responsible before and after the user's text"
    source = "Xie et al. 2023, Nature Machine Intelligence 5, doi:10.1038/s42256-023-00765-8"

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self.in_system = accepts_system(target.tokenizer, target.template)

    def settings(self) -> dict[str, Any]:
        """Both sentences."""
        return {"reminder": REMINDER, "suffix": SUFFIX}

    def before(self, conversations: Sequence[Conversation]) -> list[Conversation | Stopped]:
        """The conversations with both reminders."""
        return [self._reminded(conversation) for conversation in conversations]

    def _reminded(self, conversation: Conversation) -> Conversation:
        if self.in_system:
            return around_last_user(with_system(conversation, REMINDER), after=SUFFIX)
        return around_last_user(conversation, f"{REMINDER}\n", SUFFIX)
