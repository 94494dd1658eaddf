"""What no request may do: be too long, dawdle, or come while the server shuts down. And what is noted of each."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mogu.serve import logs
from mogu.serve.errors import ApiError, internal, shutting_down

API = "/v1/"


async def refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with ``error``, and note its code."""
    if (note := scope.get("mogu.note")) is not None:
        note.more["error"] = error.code
    await JSONResponse(error.body(), error.status, headers=error.headers)(scope, receive, send)


class Limit:
    """ASGI middleware: bodies of at most ``max_body`` bytes, all there in ``timeout`` seconds; nothing of the API while
    ``draining()``."""

    def __init__(self, app: ASGIApp, max_body: int, timeout: float, draining: Callable[[], bool]) -> None:
        self.app, self.max_body, self.timeout, self.draining = app, max_body, timeout, draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what keeps to the limits."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if self.draining() and scope["path"].startswith(API):
            return await refuse(shutting_down(), scope, receive, send)
        length = Headers(scope=scope).get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > self.max_body:
            error = ApiError(413, self._too_large(), code="request_too_large", headers={"Connection": "close"})
            return await refuse(error, scope, receive, send)
        await self.app(scope, self._counted(receive), send)

    def _too_large(self) -> str:
        return f"The request is longer than {self.max_body} bytes"

    def _counted(self, receive: Receive) -> Receive:
        deadline = asyncio.get_running_loop().time() + self.timeout
        taken, whole = 0, False

        async def counted() -> Message:
            nonlocal taken, whole
            if whole:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, "The body did not arrive in time", {"Connection": "close"}) from None
            taken += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if taken > self.max_body:
                raise HTTPException(413, self._too_large(), {"Connection": "close"})
            return message

        return counted


class Observe:
    """ASGI middleware, the outermost: a request id for each request, a log line and ``done`` at its end, and an answer
    in OpenAI's shape where something of ours fails.

    ``done`` gets path, status (0: the client went away first), and the note; ``running`` counts requests of the API.
    """

    def __init__(self, app: ASGIApp, begun: Callable[[], None], done: Callable[[str, int, logs.Note], None]) -> None:
        self.app, self.begun, self.done = app, begun, done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on everything."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        loop = asyncio.get_running_loop()
        note = logs.Note(logs.request_id(Headers(scope=scope).get("x-request-id")), loop.time())
        scope["mogu.note"] = note
        status = 0

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = note.request_id
            await send(message)

        path = scope["path"]
        if path.startswith(API):
            self.begun()
        try:
            await self.app(scope, receive, told)
        except Exception as error:
            logs.tell("error", logging.ERROR, error, request_id=note.request_id, path=path)
            if status == 0:
                await refuse(internal(), scope, receive, told)
        finally:
            seconds = round(loop.time() - note.arrived, 4)
            about = {"request_id": note.request_id, "method": scope["method"], "path": path, "status": status}
            logs.tell("request", **about, seconds=seconds, **note.more)
            self.done(path, status, note)
