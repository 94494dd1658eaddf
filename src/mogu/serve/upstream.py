"""A client of the engine elsewhere that continues answers: any server with OpenAI's ``/v1/completions``.

It is sent token ids, so that nothing is formatted or tokenized twice, and asked for token ids (``return_token_ids`` of
vLLM and of our own server). Engines that do not know this field tell text only.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from mogu.errors import ConfigError
from mogu.serve.choices import BY_ID
from mogu.serve.errors import TailError, queue_full
from mogu.serve.requests import Finish, Sampling

_CONNECT_SECONDS = 10.0
_LOOK_SECONDS = 30.0
_IDLE_SECONDS = 2.0
"""Less than servers keep a connection open, so that none is used that is just being closed."""
_FINISHES: dict[str | None, Finish | None] = {None: None, "stop": "stop", "length": "length"}
_NO_IDS = "tells no token ids, so logprobs cannot be told"
_ROUTED = "routes answers itself; it must serve the plain base"


@dataclass(frozen=True)
class Token:
    """One new token."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Delta:
    """What one event of a stream tells."""

    text: str
    tokens: tuple[Token, ...] | None
    """``None``: the engine tells text only."""
    finish: Finish | None


class Upstream:
    """One engine elsewhere.

    Args:
        url: Where its API begins, ``http://HOST:PORT/v1``.
        model: What it calls the plain base; ``None``: the one model that it serves.
        key: Its API key.

    Raises:
        ConfigError: The URL is none.
    """

    def __init__(self, url: str, model: str | None = None, key: str | None = None) -> None:
        try:
            good = httpx.URL(url).scheme in ("http", "https") and bool(httpx.URL(url).host)
        except httpx.InvalidURL:
            good = False
        if not good:
            raise ConfigError(f"{url!r} is no URL of an engine; it looks like http://localhost:8001/v1")
        self.url, self.model = url.rstrip("/"), model
        self.context: int | None = None
        """Most tokens of prompt and answer together, if it tells."""
        self._name: str | None = None
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(None, connect=_CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=None, keepalive_expiry=_IDLE_SECONDS),
        )

    async def look(self) -> str:
        """What the model is called there; asked for once.

        Raises:
            ApiError: As :meth:`go_on`.
        """
        if self._name is None:
            try:
                reply = await self._client.get(f"{self.url}/models", timeout=_LOOK_SECONDS)
            except httpx.HTTPError as error:
                raise TailError("cannot be reached", away=True) from error
            if reply.status_code != 404 or self.model is None:
                _check(reply.status_code, reply.content, reply.headers)
            self._name = self._found(reply)
        return self._name

    def _found(self, reply: httpx.Response) -> str:
        try:
            served = {str(one["id"]): one for one in reply.json()["data"]}
        except (ValueError, LookupError, TypeError) as error:
            if self.model is not None:
                return self.model  # a server without a list
            raise TailError("tells no models; does its URL end in /v1?") from error
        name = self.model if self.model is not None else next(iter(served)) if len(served) == 1 else None
        if name not in served:
            told = ", ".join(served)[:200] or "none"
            raise TailError(f"does not serve {name!r}, but {told}" if name else f"serves several models: {told}")
        longest = served[name].get("max_model_len")
        self.context = longest if isinstance(longest, int) else None
        return name

    async def go_on(self, ids: Sequence[int], sampling: Sampling) -> AsyncGenerator[Delta, None]:
        """What follows ``ids``, until its ``finish``. Closing the iterator closes the connection, which ends it there.

        Raises:
            ApiError: It cannot be reached, refuses, is busy (429), or broke off.
        """
        body = {"model": await self.look(), "prompt": list(ids), **fields(sampling)}
        try:
            async with self._client.stream("POST", f"{self.url}/completions", json=body) as reply:
                if reply.status_code != 200:
                    _check(reply.status_code, await reply.aread(), reply.headers)
                async for event in _events(reply):
                    for delta in _deltas(event, sampling):
                        yield delta
                        if delta.finish is not None:
                            return
        except httpx.TransportError as error:
            away = isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout))
            raise TailError("cannot be reached" if away else "broke off", away=away) from error
        raise TailError("broke off")

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()


def fields(sampling: Sampling) -> dict[str, Any]:
    """A request for one continuation; what is left to an engine's own defaults elsewhere is said here, too."""
    told: dict[str, Any] = {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "stream": True,
        "return_token_ids": True,
    }
    if sampling.seed is not None:
        told["seed"] = sampling.seed
    if sampling.stop:
        told["stop"] = list(sampling.stop)
    if sampling.logprobs is not None:
        told |= {"logprobs": sampling.logprobs, "return_tokens_as_token_ids": True}
    return told


def _check(status: int, content: bytes, headers: Mapping[str, str]) -> None:
    """Raise unless ``status`` is that of an answer."""
    if status == 200:
        return
    if status == 429:
        seconds = headers.get("retry-after", "")
        raise queue_full(min(int(seconds[:4]), 600) if seconds.isdecimal() else 1)
    if status in (401, 403):
        raise TailError("does not accept this server's API key")
    try:
        told = json.loads(content)
        said = str((told.get("error") or told)["message"])[:200]
    except (ValueError, LookupError, TypeError, AttributeError):
        said = ""
    raise TailError(f"answered with status {status}{said and f': {said}'}")


async def _events(reply: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The JSON objects of a stream. Lines end at line feeds alone: texts may hold other separators."""
    rest = b""
    async for part in reply.aiter_bytes():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            data = line.removeprefix(b"data:").strip()
            if data == b"[DONE]":
                return
            try:
                event = json.loads(data)
            except ValueError as error:
                raise TailError("sent something that is no JSON") from error
            if not isinstance(event, dict):
                raise TailError("sent something that is no answer")
            yield event


def _deltas(event: Mapping[str, Any], sampling: Sampling) -> list[Delta]:
    error = event.get("error")
    if error:
        said = error.get("message") if isinstance(error, dict) else error
        raise TailError(f"failed: {str(said)[:200]}")
    try:
        return [_delta(choice, sampling) for choice in event.get("choices") or []]
    except (LookupError, TypeError, ValueError, AttributeError) as wrong:
        raise TailError("sent something that is no answer") from wrong


def _delta(choice: Mapping[str, Any], sampling: Sampling) -> Delta:
    if (choice.get("mogu") or {}).get("glad") is not None:
        raise TailError(_ROUTED)
    reason = choice.get("finish_reason")
    if reason not in _FINISHES:
        raise TailError(f"gave the answer up ({str(reason)[:40]})")
    text, ids = choice.get("text") or "", choice.get("token_ids")
    if ids is None:
        if text and sampling.logprobs is not None:
            raise TailError(_NO_IDS)
        return Delta(str(text), () if not text else None, _FINISHES[reason])
    return Delta(str(text), tuple(_tokens(ids, choice.get("logprobs") or {}, sampling)), _FINISHES[reason])


def _tokens(ids: Sequence[int], logprobs: Mapping[str, Any], sampling: Sampling) -> list[Token]:
    """With what is told of each; of an end-of-turn token that may be nothing."""
    values, tops = logprobs.get("token_logprobs") or [], logprobs.get("top_logprobs") or []
    found = []
    for place, token in enumerate(ids):
        value = values[place] if place < len(values) else None
        top = tops[place] if place < len(tops) and sampling.logprobs else None
        best = sorted((top or {}).items(), key=lambda one: -one[1])[: sampling.logprobs or 0]
        if any(not name.startswith(BY_ID) for name, _ in best):
            raise TailError(_NO_IDS)
        named = tuple((int(name.removeprefix(BY_ID)), float(logprob)) for name, logprob in best)
        found.append(Token(int(token), None if value is None else float(value), named))
    return found
