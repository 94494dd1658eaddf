"""Answers as server-sent events, and answers whose client may go away before they are there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from pydantic import BaseModel
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from mogu.serve.errors import ApiError

PING_SECONDS = 15
"""Between two comments that keep a silent stream open."""

Found = TypeVar("Found")


class ClientGone(Exception):
    """Nobody waits for this answer."""


class Events(EventSourceResponse):
    """A stream that ends with ``data: [DONE]``; ``ended`` is called whichever way it ends."""

    def __init__(self, chunks: AsyncIterator[BaseModel | ApiError], ended: Callable[[], None]) -> None:
        super().__init__(_events(chunks), ping=PING_SECONDS, sep="\n")
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all, until the client goes away."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended()


async def _events(chunks: AsyncIterator[BaseModel | ApiError]) -> AsyncIterator[ServerSentEvent]:
    async for chunk in chunks:
        if isinstance(chunk, ApiError):
            yield ServerSentEvent(json.dumps(chunk.body()), sep="\n")
        else:
            yield ServerSentEvent(chunk.model_dump_json(exclude_unset=True), sep="\n")
    yield ServerSentEvent("[DONE]", sep="\n")


async def while_connected(request: Request, work: Awaitable[Found]) -> Found:
    """What ``work`` gives, if the client waits for it.

    Raises:
        ClientGone: It went away; ``work`` is cancelled.
        Exception: Of ``work``.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _gone(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
