"""API keys: who has none of them is told so before anything of the request is read."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from hashlib import sha256

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from mogu.serve.errors import ApiError
from mogu.serve.limits import refuse

GUARDED = ("/v1/", "/metrics", "/playground/settings")
"""Paths that need a key, where there are keys."""


class Keys:
    """Known keys; only their digests are kept, so that all have one length and none can be told by accident."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accept(self, key: str) -> bool:
        """Whether ``key`` is known; takes the same time whichever it is."""
        digest = sha256(key.encode("utf-8", "surrogateescape")).digest()
        return sum([hmac.compare_digest(digest, known) for known in self._digests]) > 0


class Authenticate:
    """ASGI middleware: ``Authorization: Bearer KEY`` on every path of :data:`GUARDED`."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self.app, self.keys = app, Keys(keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what has a key."""
        if scope["type"] != "http" or not self.keys or not scope["path"].startswith(GUARDED):
            return await self.app(scope, receive, send)
        kind, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self.keys.accept(key.strip()):
            return await self.app(scope, receive, send)
        said = "Incorrect API key provided" if key else "You didn't provide an API key: Authorization: Bearer YOUR_KEY"
        error = ApiError(401, said, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        await refuse(error, scope, receive, send)
