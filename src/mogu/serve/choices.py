"""From an engine's pieces to the choices of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mogu.serve.replies import (
    ChatLogprobs,
    Report,
    TextLogprobs,
    TokenLogprob,
    TokenTrace,
    TopLogprob,
    Trace,
    Usage,
)
from mogu.serve.requests import NO_TOKEN, Finish, Opening, Piece, Prompt, Weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BY_ID = "token_id:"
"""Before the number of a token, where tokens are named by it, as vLLM does."""


class Words:
    """What single tokens say."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}
        self.special = frozenset(tokenizer.all_special_ids)

    def __getitem__(self, token: int) -> str:
        if token not in self._known:
            text = str(self._tokenizer.decode([token], clean_up_tokenization_spaces=False))
            piece = self._tokenizer.convert_ids_to_tokens(token)
            # SentencePiece drops the blank before the first word of what it decodes.
            lost = isinstance(piece, str) and piece.startswith("▁") and not text.startswith(" ")
            self._known[token] = " " + text if lost else text
        return self._known[token]

    def logprob(self, token: int, logprob: float) -> TopLogprob:
        """One token as OpenAI tells it; bytes that are no whole character are not told."""
        text = self[token]
        return TopLogprob(token=text, logprob=_finite(logprob), bytes=None if "\ufffd" in text else [*text.encode()])


@dataclass
class Choice:
    """One answer in the making."""

    index: int
    prompt: Prompt
    opening: Opening | None = None
    pieces: list[Piece] = field(default_factory=list)
    text: str = ""
    routed: int = 0
    finish: Finish | None = None

    def add(self, event: Opening | Piece) -> None:
        """Take what the engine told."""
        if isinstance(event, Opening):
            self.opening = event
            return
        if event.token != NO_TOKEN:
            self.pieces.append(event)
        self.text += event.text
        self.routed += event.routed
        self.finish = event.finish

    def report(self, words: Words, layers: Sequence[int], trace: bool) -> Report:
        """What is known by now, with the whole trace if asked."""
        told = self.opening
        found: dict[str, Any] = {"risk": None, "routed_tokens": self.routed, "glad": None, "unwill": None}
        if told is not None:
            found |= {"risk": _rounded(told.risk), "glad": _rounded(told.glad), "unwill": _rounded(told.unwill)}
        if trace:
            prompt = told.trace if told is not None else ()
            ids = self.prompt.ids[len(self.prompt.ids) - len(prompt) :]
            read = [_traced(words[n], weights) for n, weights in zip(ids, prompt, strict=True)]
            answer = [trace_of(piece, words) for piece in self.pieces]
            found["trace"] = Trace(layers=list(layers), prompt=read, answer=answer)
        return Report(**found)


def usage(prompt_tokens: int, choices: Sequence[Choice]) -> Usage:
    """Tokens that were read and written; end-of-turn tokens count."""
    written = sum(len(choice.pieces) for choice in choices)
    return Usage(prompt_tokens=prompt_tokens, completion_tokens=written, total_tokens=prompt_tokens + written)


def trace_of(piece: Piece, words: Words) -> TokenTrace:
    """The router weights behind one new token."""
    return _traced(words[piece.token], piece.weights, routed=piece.routed, risk=_rounded(piece.risk))


def _traced(token: str, weights: Weights | None, **more: Any) -> TokenTrace:
    if weights is not None:
        more |= {"unwill": [round(u, 4) for u in weights.unwill], "glad": [round(g, 4) for g in weights.glad]}
    return TokenTrace(token=token, **more)


def chat_logprobs(pieces: Sequence[Piece], words: Words) -> ChatLogprobs:
    """Of ``pieces``, without the end-of-turn token."""
    content = [
        TokenLogprob(
            **words.logprob(piece.token, piece.logprob or 0.0).model_dump(),
            top_logprobs=[words.logprob(token, logprob) for token, logprob in piece.top],
        )
        for piece in _written(pieces, words)
    ]
    return ChatLogprobs(content=content)


def text_logprobs(
    pieces: Sequence[Piece], words: Words, offset: int, alternatives: bool, by_id: bool = False
) -> TextLogprobs:
    """The older form; ``offset`` is where the text of ``pieces`` begins in the answer; ``by_id`` names tokens so."""
    name = f"{BY_ID}{{}}".format if by_id else words.__getitem__
    found = TextLogprobs(tokens=[], token_logprobs=[], top_logprobs=[] if alternatives else None, text_offset=[])
    for piece in _written(pieces, words):
        found.tokens.append(name(piece.token))
        found.token_logprobs.append(_finite(piece.logprob or 0.0))
        found.text_offset.append(offset)
        offset += len(words[piece.token])
        if found.top_logprobs is not None:
            found.top_logprobs.append({name(token): _finite(logprob) for token, logprob in piece.top})
    return found


def _written(pieces: Sequence[Piece], words: Words) -> list[Piece]:
    ended = [piece.token == NO_TOKEN or (piece.finish == "stop" and piece.token in words.special) for piece in pieces]
    return [piece for piece, end in zip(pieces, ended, strict=True) if not end]


def _finite(logprob: float) -> float:
    """JSON has no infinity; OpenAI's smallest number stands for it."""
    return max(logprob, -9999.0)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
