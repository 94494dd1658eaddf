"""Edits of a conversation that keep all its turns."""

from __future__ import annotations

from collections.abc import Sequence

from mogu.chat import Message

Conversation = list[Message]


def with_system(conversation: Sequence[Message], sentence: str) -> Conversation:
    """``sentence`` at the end of the system message, or as one."""
    messages = [dict(message) for message in conversation]
    if messages and messages[0]["role"] == "system":
        messages[0]["content"] = f"{messages[0]['content']}\n\n{sentence}"
        return messages
    return [{"role": "system", "content": sentence}, *messages]


def around_last_user(conversation: Sequence[Message], before: str = "", after: str = "") -> Conversation:
    """Text around the user's last turn."""
    messages = [dict(message) for message in conversation]
    last = max((n for n, message in enumerate(messages) if message["role"] == "user"), default=None)
    if last is not None:
        messages[last]["content"] = f"{before}{messages[last]['content']}{after}"
    return messages


def in_front(conversation: Sequence[Message], turns: Sequence[Message]) -> Conversation:
    """``turns`` after the system message, if there is one, and before all others."""
    start = 1 if conversation and conversation[0]["role"] == "system" else 0
    return [dict(message) for message in (*conversation[:start], *turns, *conversation[start:])]


def user_texts(conversation: Sequence[Message]) -> list[str]:
    """What the user said, turn by turn."""
    return [message["content"] for message in conversation if message["role"] == "user"]
