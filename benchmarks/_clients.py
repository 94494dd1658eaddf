"""What a client of a server sees of one request."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass
class Answer:
    """Of one request; times in seconds of one clock."""

    asked: float = field(default_factory=time.perf_counter)
    first: float = 0.0
    """When the first text came."""
    done: float = 0.0
    status: int = 0
    body: Any = None
    """Of an answer that is no stream."""
    texts: dict[int, str] = field(default_factory=dict)
    """Of each choice, put together."""
    tokens: dict[int, list[int]] = field(default_factory=dict)
    """Their ids, where asked for."""
    usage: dict[str, int] = field(default_factory=dict)
    ended: bool = False
    """Whether the stream ended as streams do."""
    fault: str = ""
    """What went wrong on the way."""


async def ask(client: httpx.AsyncClient, path: str, body: Any, *, leave_after: int | None = None) -> Answer:
    """Send ``body`` (bytes as they are) and take the answer; ``leave_after`` so many events, close the connection."""
    answer = Answer()
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    try:
        async with client.stream("POST", path, content=content, headers=headers) as response:
            answer.status = response.status_code
            if response.headers["content-type"].startswith("text/event-stream"):
                await _take_events(response, answer, leave_after)
            else:
                _take_whole(json.loads(await response.aread()), answer)
    except (httpx.HTTPError, ValueError, KeyError) as error:
        answer.fault = f"{type(error).__name__}: {error}"
    answer.done = time.perf_counter()
    return answer


async def _take_events(response: httpx.Response, answer: Answer, leave_after: int | None) -> None:
    events = 0
    async for line in response.aiter_lines():
        if not line.startswith("data: "):
            continue
        if line == "data: [DONE]":
            answer.ended = True
            continue
        event = json.loads(line.removeprefix("data: "))
        if "error" in event:
            answer.fault = str(event["error"])
            continue
        _take_choices(event, answer)
        events += 1
        if leave_after is not None and events >= leave_after:
            return


def _take_whole(body: Any, answer: Answer) -> None:
    answer.body = body
    if answer.status == 200:
        _take_choices(body, answer)
        answer.ended = True


def _take_choices(event: dict[str, Any], answer: Answer) -> None:
    for choice in event.get("choices", ()):
        said = choice.get("message") or choice.get("delta") or choice
        text = said.get("content") or said.get("text") or ""
        if text and not answer.first:
            answer.first = time.perf_counter()
        index = choice["index"]
        answer.texts[index] = answer.texts.get(index, "") + text
        answer.tokens.setdefault(index, []).extend(choice.get("token_ids") or ())
    answer.usage = event.get("usage") or answer.usage
