"""From choices to what OpenAI's API says of them: whole answers, and the chunks of streams."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mogu.serve import replies
from mogu.serve.choices import Choice, Words, chat_logprobs, text_logprobs, trace_of, usage
from mogu.serve.plans import Plan
from mogu.serve.requests import NO_TOKEN, Piece
from mogu.serve.settings import Served

Body = replies.ChatCompletion | replies.ChatChunk | replies.Completion


class Writer(Protocol):
    """One of the two endpoints' shapes."""

    def whole(self, choices: Sequence[Choice]) -> Body:
        """The complete answer."""

    def begin(self, choice: Choice) -> Body:
        """The first chunk: the prompt was read."""

    def go_on(self, choice: Choice, pieces: Sequence[Piece], offset: int) -> Body:
        """A chunk with ``pieces``, whose text begins at ``offset`` of the answer's."""

    def end(self, choice: Choice) -> Body:
        """The last chunk of a choice."""

    def count(self, choices: Sequence[Choice]) -> Body:
        """The chunk with the usage."""


@dataclass(frozen=True)
class _Common:
    plan: Plan
    served: Served
    words: Words
    created: int
    """Unix time."""
    name: str = field(default_factory=lambda: uuid.uuid4().hex)

    def head(self, prefix: str, **more: Any) -> dict[str, Any]:
        told: dict[str, Any] = {"id": f"{prefix}-{self.name}", "created": self.created, "model": self.served.name}
        return {**told, "system_fingerprint": self.served.fingerprint, **more}

    def chunk(self, **more: Any) -> dict[str, Any]:
        return {"usage": None, **more} if self.plan.include_usage else more

    def report(self, choice: Choice) -> replies.Report:
        return choice.report(self.words, self.served.layers, self.plan.trace)

    def traced(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """What a chunk tells of the routers, where a trace was asked for."""
        if not self.plan.trace:
            return {}
        answer = [trace_of(piece, self.words) for piece in pieces if piece.token != NO_TOKEN]
        return {"mogu": replies.Report.model_validate({"trace": replies.Trace.model_validate({"answer": answer})})}

    def wants_logprobs(self, choice: Choice) -> bool:
        return choice.prompt.sampling.logprobs is not None


class ChatWriter(_Common):
    """``chat.completion`` and ``chat.completion.chunk``."""

    def whole(self, choices: Sequence[Choice]) -> replies.ChatCompletion:
        """The complete answer."""
        made = []
        for choice in choices:
            logprobs = chat_logprobs(choice.pieces, self.words) if self.wants_logprobs(choice) else None
            made.append(
                replies.ChatChoice(
                    index=choice.index,
                    message=replies.Said(role="assistant", content=choice.text, refusal=None),
                    logprobs=logprobs,
                    finish_reason=choice.finish or "stop",
                    mogu=self.report(choice),
                )
            )
        told: dict[str, Any] = {"usage": usage(self.plan.prompt_tokens, choices), "mogu": made[0].mogu}
        return replies.ChatCompletion(**self.head("chatcmpl", object="chat.completion"), choices=made, **told)

    def begin(self, choice: Choice) -> replies.ChatChunk:
        """The role, and what the routers made of the prompt."""
        delta = replies.Delta(role="assistant", content="", refusal=None)
        return self._chunk(choice, delta, mogu=self.report(choice))

    def go_on(self, choice: Choice, pieces: Sequence[Piece], offset: int) -> replies.ChatChunk:
        """New text."""
        delta = replies.Delta(content="".join(piece.text for piece in pieces))
        logprobs = chat_logprobs(pieces, self.words) if self.wants_logprobs(choice) else None
        return self._chunk(choice, delta, logprobs, **self.traced(pieces))

    def end(self, choice: Choice) -> replies.ChatChunk:
        """Why the answer ended, and how it was guarded."""
        return self._chunk(choice, replies.Delta(), finish=choice.finish, mogu=self.report(choice))

    def count(self, choices: Sequence[Choice]) -> replies.ChatChunk:
        """The usage."""
        told: dict[str, Any] = {"choices": [], "usage": usage(self.plan.prompt_tokens, choices)}
        return replies.ChatChunk(**self.head("chatcmpl", object="chat.completion.chunk"), **told)

    def _chunk(
        self, choice: Choice, delta: replies.Delta, logprobs: Any = None, finish: Any = None, **more: Any
    ) -> replies.ChatChunk:
        made = replies.ChatChunkChoice(index=choice.index, delta=delta, logprobs=logprobs, finish_reason=finish)
        head = self.head("chatcmpl", object="chat.completion.chunk")
        return replies.ChatChunk(**head, choices=[made], **self.chunk(**more))


class TextWriter(_Common):
    """``text_completion``."""

    def whole(self, choices: Sequence[Choice]) -> replies.Completion:
        """The complete answer."""
        made = [
            self._choice(choice, choice.text, choice.pieces, 0, choice.finish, mogu=self.report(choice))
            for choice in choices
        ]
        told: dict[str, Any] = {"usage": usage(self.plan.prompt_tokens, choices), "mogu": made[0].mogu}
        return replies.Completion(**self.head("cmpl", object="text_completion"), choices=made, **told)

    def begin(self, choice: Choice) -> replies.Completion:
        """What the routers made of the prompt."""
        return self._chunk(self._choice(choice, "", None, 0, None), mogu=self.report(choice))

    def go_on(self, choice: Choice, pieces: Sequence[Piece], offset: int) -> replies.Completion:
        """New text."""
        text = "".join(piece.text for piece in pieces)
        return self._chunk(self._choice(choice, text, pieces, offset, None), **self.traced(pieces))

    def end(self, choice: Choice) -> replies.Completion:
        """Why the answer ended, and how it was guarded."""
        return self._chunk(self._choice(choice, "", None, 0, choice.finish), mogu=self.report(choice))

    def count(self, choices: Sequence[Choice]) -> replies.Completion:
        """The usage."""
        told: dict[str, Any] = {"choices": [], "usage": usage(self.plan.prompt_tokens, choices)}
        return replies.Completion(**self.head("cmpl", object="text_completion"), **told)

    def _choice(
        self, choice: Choice, text: str, pieces: Sequence[Piece] | None, offset: int, finish: Any, **more: Any
    ) -> replies.TextChoice:
        asked, logprobs = choice.prompt.sampling.logprobs, None
        if asked is not None and pieces is not None:
            logprobs = text_logprobs(pieces, self.words, offset, asked > 0, self.plan.named_by_id)
        if self.plan.token_ids:
            more["token_ids"] = [piece.token for piece in pieces or () if piece.token != NO_TOKEN]
        return replies.TextChoice(index=choice.index, text=text, logprobs=logprobs, finish_reason=finish, **more)

    def _chunk(self, made: replies.TextChoice, **more: Any) -> replies.Completion:
        return replies.Completion(**self.head("cmpl", object="text_completion"), choices=[made], **self.chunk(**more))
