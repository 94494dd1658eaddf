"""One request for completions, from its plan to the last byte."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mogu.serve import logs
from mogu.serve.answers import Answers, Event, answer
from mogu.serve.choices import Choice
from mogu.serve.errors import ApiError
from mogu.serve.plans import Plan
from mogu.serve.requests import Piece
from mogu.serve.schemas import ChatRequest, CompletionRequest
from mogu.serve.state import State
from mogu.serve.stream import ClientGone, Events, while_connected
from mogu.serve.writing import Body, ChatWriter, TextWriter, Writer

CLIENT_GONE = 499
"""Status of an answer that nobody waits for, as nginx writes it into its log."""


async def complete(state: State, request: Request, body: ChatRequest | CompletionRequest) -> Response:
    """Answer ``body``, at once or as a stream.

    Raises:
        ApiError: What the client is told instead.
    """
    make: Callable[[], Plan]
    if isinstance(body, ChatRequest):
        make = lambda: state.planner.chat(body)  # noqa: E731
    else:
        make = lambda: state.planner.completions(body)  # noqa: E731
    plan = await asyncio.to_thread(state.planned, make)
    kind = ChatWriter if isinstance(body, ChatRequest) else TextWriter
    job = Job(state, request.scope["mogu.note"], plan, kind(plan, state.served, state.words, int(time.time())))
    return await job.run(request)


class Job:
    """The answers to one request in the making, and what is counted and noted of them."""

    def __init__(self, state: State, note: logs.Note, plan: Plan, writer: Writer) -> None:
        self.state, self.note, self.plan, self.writer = state, note, plan, writer
        self.choices = [Choice(index, prompt) for index, prompt in enumerate(plan.prompts)]
        self._held: list[list[Piece]] = [[] for _ in self.choices]
        self._offsets = [0 for _ in self.choices]
        self._over = False
        note.more |= {"prompt_tokens": plan.prompt_tokens, "stream": plan.stream}
        if state.settings.log_prompts:
            note.more["prompt"] = list(dict.fromkeys(plan.instructions))

    async def run(self, request: Request) -> Response:
        """The response; a stream begins when the first prompt was read, so that what fails before has a status."""
        settings = self.state.settings
        answers: Answers | None = None
        try:
            deadline = self.note.arrived + settings.timeout
            answers = answer(self.state.engine, self.plan.prompts, deadline=deadline, timeout=settings.timeout)
            if self.plan.stream:
                first = await while_connected(request, answers.next())
                return Events(self._chunks(answers, first), lambda: self._ended(answers))
            await while_connected(request, self._collect(answers))
        except ClientGone:
            self._ended(answers)
            return Response(status_code=CLIENT_GONE)
        except Exception as error:
            raise self._failed(error) from error
        finally:
            if answers is not None and not self.plan.stream:
                answers.cancel()
        self._complete()
        return _json(self.writer.whole(self.choices))

    async def _collect(self, answers: Answers) -> None:
        while answers.open:
            self._take(*await answers.next())

    async def _chunks(self, answers: Answers, first: tuple[int, Event]) -> AsyncIterator[Body | ApiError]:
        index, event = first
        try:
            while True:
                self._take(index, event)
                for chunk in self._told(index, event):
                    yield chunk
                if not answers.open:
                    break
                index, event = await answers.next()
        except Exception as error:
            yield self._failed(error)
            return
        self._complete()
        if self.plan.include_usage:
            yield self.writer.count(self.choices)

    def _take(self, index: int, event: Event) -> None:
        choice, metrics = self.choices[index], self.state.metrics
        if isinstance(event, Piece):
            if "first_token" not in self.note.more:
                seconds = asyncio.get_running_loop().time() - self.note.arrived
                self.note.more["first_token"] = round(seconds, 4)
                metrics.first.observe(seconds)
        elif index == 0:
            metrics.opened(event)
        choice.add(event)

    def _told(self, index: int, event: Event) -> list[Body]:
        choice, held = self.choices[index], self._held[index]
        if not isinstance(event, Piece):
            return [self.writer.begin(choice)]
        held.append(event)
        chunks: list[Body] = []
        told = self.plan.trace or self.plan.token_ids or choice.prompt.sampling.logprobs is not None
        if any(piece.text for piece in held) or (event.finish is not None and told):
            chunks.append(self.writer.go_on(choice, held, self._offsets[index]))
            self._offsets[index] = len(choice.text)
            self._held[index] = []
        return [*chunks, self.writer.end(choice)] if event.finish is not None else chunks

    def _complete(self) -> None:
        self._over = True
        state, loop = self.state, asyncio.get_running_loop()
        for choice, instruction in zip(self.choices, self.plan.instructions, strict=True):
            state.metrics.answered(instruction, choice.text, choice.finish or "stop")
        self._count()
        state.metrics.prompt_tokens.inc(self.plan.prompt_tokens)
        state.metrics.took(loop.time() - self.note.arrived)
        if state.settings.log_prompts:
            self.note.more["answer"] = [choice.text for choice in self.choices]

    def _count(self) -> None:
        """What was written, completely or not."""
        tokens, routed = sum(len(choice.pieces) for choice in self.choices), sum(c.routed for c in self.choices)
        self.state.metrics.completion_tokens.inc(tokens)
        self.state.metrics.routed_tokens.inc(routed)
        opening = self.choices[0].opening
        told: dict[str, Any] = {"completion_tokens": tokens, "routed_tokens": routed}
        told["risk"] = None if opening is None or opening.risk is None else round(opening.risk, 4)
        self.note.more |= {**told, "finish": [choice.finish for choice in self.choices]}

    def _failed(self, error: Exception) -> ApiError:
        self._over = True
        self._count()
        told = self.state.told(error)
        self.note.more["error"] = told.code
        if told.status == 500:
            logs.tell("error", logging.ERROR, error, request_id=self.note.request_id)
        return told

    def _ended(self, answers: Answers | None) -> None:
        """The client got all, or went away."""
        if answers is not None:
            answers.cancel()
        if not self._over:
            self._over = True
            self._count()
            self.note.more["disconnected"] = True
            self.state.metrics.disconnects.inc()


def _json(body: Body) -> Response:
    return Response(body.model_dump_json(exclude_unset=True), media_type="application/json")
