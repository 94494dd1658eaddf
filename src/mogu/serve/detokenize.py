"""Text of an answer, token by token: never half a character, never the beginning of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mogu.serve.requests import Finish

_BROKEN = "�"
_LONGEST_CHARACTER = 4
"""Bytes, hence so many tokens at most."""


class TextStream:
    """Turns the tokens of one answer into text that is certain.

    A token's text may depend on the one before (a leading blank) and on the next (the rest of a character). So the last
    tokens that gave text are decoded again with each new one, and what comes behind their text is new. Text that may be
    the beginning of a stop string waits.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self.decode = decoder(tokenizer)
        self.stop = [text for text in stop if text]
        self.tokens: list[int] = []
        """From the last ones whose text was given."""
        self.given = ""
        """What they begin with."""
        self.known = 0
        """Tokens that made ``given``."""
        self.waiting = ""
        """May begin a stop string."""

    def push(self, token: int) -> tuple[str, bool]:
        """Text that became certain with ``token``, and whether a stop string ended the answer."""
        self.tokens.append(token)
        text = self.decode(self.tokens)
        whole = _whole(text)
        new = whole[len(self.given) :]
        if whole == text and new:
            self.tokens, self.known = self.tokens[self.known :], len(self.tokens) - self.known
            self.given = self.decode(self.tokens)
        else:
            self.given = max(self.given, whole, key=len)
        return self.add(new)

    def write(self, token: int, ends: bool, last: bool) -> tuple[str, Finish | None]:
        """Text that became certain with ``token``, and whether and why the answer is over.

        Args:
            token: The newest.
            ends: It is an end-of-turn token, which has no text.
            last: There may be no more.
        """
        if ends:
            return self.end(), "stop"
        text, stopped = self.push(token)
        if stopped:
            return text, "stop"
        return (text + self.end(), "length") if last else (text, None)

    def end(self) -> str:
        """What waited, when the answer is over; half a character is dropped."""
        waiting, self.waiting = self.waiting, ""
        return waiting

    def add(self, new: str) -> tuple[str, bool]:
        """As :meth:`push`, for text whose tokens are not known."""
        if not self.stop:
            return new, False
        text = self.waiting + new
        found = [at for stop in self.stop if (at := text.find(stop)) >= 0]
        if found:
            self.waiting = ""
            return text[: min(found)], True
        held = max(_overlap(text, stop) for stop in self.stop)
        self.waiting = text[len(text) - held :]
        return text[: len(text) - held], False


def decoder(tokenizer: Any) -> Any:
    """Token ids to text without special tokens; called often, so by the library's core where there is one."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is not None:
        return lambda ids: core.decode(ids, skip_special_tokens=True)
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    return lambda ids: str(tokenizer.decode(ids, **options))


def _whole(text: str) -> str:
    """Without the beginning of a character at the end: the replacement characters that it is decoded to."""
    broken = len(text) - len(text.rstrip(_BROKEN))
    return text[: len(text) - min(broken, _LONGEST_CHARACTER - 1)] if broken else text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` with which ``stop`` begins."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
