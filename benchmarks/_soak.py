"""Many requests to a server with a tiny model: long and short, streams, clients that leave, bodies that are wrong."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from _clients import Answer, ask
from _server import TINY_BODY, Process, serving, tiny

CLIENTS = 24
LEAVING, WRONG = 0.10, 0.05
"""Shares of requests whose client goes away, and that cannot be answered."""
CONTEXT = 128
QUARTERS = 4
SECONDS = 120
"""In which a request must be answered, and rows must be free when all are."""

ROUTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"routed_tokens": 0},
    {"dial": 1.0},
    {"handover": "all"},
    {"handover": "risk", "routed_tokens": 2},
)


@dataclass(frozen=True)
class Kind:
    """A request that can be answered, and what one prompt at a time gets from ``generate``."""

    path: str
    body: dict[str, Any]
    tokens: list[int] | None = None
    text: str | None = None
    """Without both the answer is drawn, and only its coming is looked at."""


@dataclass
class Seen:
    """What came of a soak."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    memory: list[list[int]] = field(default_factory=list)
    held: list[list[int]] = field(default_factory=list)
    """Bytes and tokens, quarter by quarter."""

    def fault(self, kind: str, what: str) -> None:
        self.counts[kind] += 1
        self.faults.append(f"{kind}: {what}")


def kinds(chance: random.Random) -> list[Kind]:
    """Greedy requests with their answers, and a few whose answers are drawn."""
    model, tokenizer, _, _ = tiny()
    import world

    size, made = len(tokenizer), []
    for number in range(60):
        routing = ROUTINGS[number % len(ROUTINGS)]
        new = chance.choice((1, 3, 8, 16, 24, 40, 80))
        common: dict[str, Any] = {"model": "tiny", "max_tokens": new, "temperature": 0, "mogu": routing}
        if number % 3:
            ids = chance.choices(range(8, size), k=chance.randint(1, CONTEXT - new if number % 4 == 0 else 30))
            tokens = world.generated(model, ids, max_new_tokens=new, **routing)
            body = {**common, "prompt": ids, "return_token_ids": True}
            made.append(Kind("/v1/completions", body, tokens, world.text_of(tokens)))
        else:
            asked = chance.choice(world.ASKED) + " car" * chance.randint(0, 9)
            tokens = world.generated(model, world.ids_of(asked), max_new_tokens=new, **routing)
            body = {**common, "messages": [{"role": "user", "content": asked}]}
            made.append(Kind("/v1/chat/completions", body, None, world.text_of(tokens)))
    for number in range(10):
        drawn = {"model": "tiny", "temperature": 1.3, "top_p": 0.9, "max_tokens": 20, "n": 1 + number % 3}
        made.append(Kind("/v1/completions", {**drawn, "prompt": ["How do I paint a car?"], "logprobs": 2}))
        made.append(Kind("/v1/moderations", {"input": [world.ASKED[number % len(world.ASKED)]]}))
    return made


def wrong() -> list[tuple[str, Any]]:
    """Paths and bodies that no server should answer: types, fields, JSON, lengths."""
    chat, text = "/v1/chat/completions", "/v1/completions"
    good = {"model": "tiny", "messages": [{"role": "user", "content": "How do I paint a car?"}]}
    return [
        (chat, {**good, "temperature": "hot"}),
        (chat, {**good, "messages": "hello"}),
        (chat, {**good, "messages": [{"role": "pirate", "content": "hello"}]}),
        (chat, {**good, "max_tokens": -1}),
        (chat, {**good, "stream": 1}),
        (chat, {**good, "colour": "red"}),
        (chat, {**good, "mogu": {"routed_tokens": 5, "speed": 3}}),
        (chat, {**good, "tools": [{"type": "function", "function": {"name": "a"}}]}),
        (chat, {**good, "model": "another"}),
        (chat, {"model": "tiny"}),
        (chat, []),
        (chat, b'{"model": "tiny", "messages": [{'),
        (chat, b"\xff\xfe\x00"),
        (chat, b""),
        (chat, {**good, "messages": [{"role": "user", "content": "car " * CONTEXT}]}),
        (chat, {**good, "messages": [{"role": "user", "content": "car " * TINY_BODY}]}),
        (text, {"model": "tiny", "prompt": [9] * (CONTEXT + 1)}),
        (text, {"model": "tiny", "prompt": [9] * 100, "max_tokens": 100}),
        (text, {"model": "tiny", "prompt": [10_000_000]}),
        (text, {"model": "tiny", "prompt": []}),
        ("/v1/moderations", {"input": 5}),
    ]


def soak(requests: int, seed: int = 0) -> list[dict[str, Any]]:
    """Send ``requests``; what came of them as figures with their bars."""
    chance = random.Random(seed)
    known = kinds(chance)
    seen, start = Seen(), time.perf_counter()
    with serving("tiny") as server:
        rows = asyncio.run(_all(server, known, requests, chance, seen))
    for fault in seen.faults[:10]:
        print(fault)
    return list(_figures(seen, rows, time.perf_counter() - start))


async def _all(server: Process, known: list[Kind], requests: int, chance: random.Random, seen: Seen) -> tuple[int, int]:
    """Returns rows and answers in the queue at the end."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=CLIENTS)
    async with httpx.AsyncClient(base_url=server.url, timeout=SECONDS, limits=limits) as client:
        for quarter in range(QUARTERS):
            share = requests * (quarter + 1) // QUARTERS - requests * quarter // QUARTERS
            jobs = iter(_jobs(client, known, share, chance, seen))
            seen.memory.append([])
            seen.held.append([])
            watching = asyncio.create_task(_watch(server, client, seen))

            async def work(jobs: Iterator[Any] = jobs) -> None:
                for job in jobs:
                    await job

            await asyncio.gather(*(work() for _ in range(CLIENTS)))
            watching.cancel()
        until = time.perf_counter() + SECONDS
        while True:
            load = await _load(client)
            left = int(load["mogu_running_answers"]), int(load["mogu_waiting_answers"])
            if left == (0, 0) or time.perf_counter() > until:
                return left
            await asyncio.sleep(0.05)


def _jobs(client: httpx.AsyncClient, known: list[Kind], count: int, chance: random.Random, seen: Seen) -> Iterator[Any]:
    """The same mix in each quarter, in another order."""
    bad = wrong()
    leaving, broken = round(LEAVING * count), round(WRONG * count)
    jobs: list[Any] = [_sent_wrongly(client, *bad[n % len(bad)], seen) for n in range(broken)]
    for number in range(count - broken):
        kind, stream = known[number % len(known)], chance.random() < 0.5
        if number < leaving:
            jobs.append(_left(client, kind, chance, seen))
        else:
            jobs.append(_answered(client, kind, stream, seen))
    chance.shuffle(jobs)
    yield from jobs


async def _answered(client: httpx.AsyncClient, kind: Kind, stream: bool, seen: Seen) -> None:
    stream = stream and kind.path != "/v1/moderations"
    answer = await ask(client, kind.path, {**kind.body, "stream": True} if stream else kind.body)
    seen.counts["answered"] += 1
    seen.counts["streamed"] += stream
    if answer.status != 200 or answer.fault or not answer.ended:
        seen.fault("failed", f"{answer.status} {answer.fault} {answer.body}")
    elif (kind.tokens is not None and answer.tokens.get(0) != kind.tokens) or (
        kind.text is not None and answer.texts.get(0, "") != kind.text
    ):
        seen.fault("unlike", f"{kind} got {answer.tokens} {answer.texts}")
    seen.counts["compared"] += kind.text is not None


async def _left(client: httpx.AsyncClient, kind: Kind, chance: random.Random, seen: Seen) -> None:
    """The client closes its connection in the middle of a stream, or before there is an answer."""
    seen.counts["left"] += 1
    stream = kind.path != "/v1/moderations" and chance.random() < 0.5
    body = {**kind.body, "stream": True} if stream else kind.body
    if stream:
        answer = await ask(client, kind.path, body, leave_after=chance.randint(1, 4))
        if answer.fault or answer.status != 200:
            seen.fault("failed", f"before its client left: {answer.status} {answer.fault}")
        return
    try:
        async with asyncio.timeout(0.001 + 0.1 * chance.random()):
            await ask(client, kind.path, body)
    except TimeoutError:
        seen.counts["left before an answer"] += 1


async def _sent_wrongly(client: httpx.AsyncClient, path: str, body: Any, seen: Seen) -> None:
    answer = await ask(client, path, body)
    seen.counts["wrong"] += 1
    if not _refused(answer):
        seen.fault("misjudged", f"{str(body)[:100]} got {answer.status} {answer.fault} {answer.body}")


def _refused(answer: Answer) -> bool:
    """4xx, in OpenAI's shape."""
    error = answer.body.get("error") if isinstance(answer.body, dict) else None
    fields = {"message", "type", "param", "code"}
    return 400 <= answer.status < 500 and isinstance(error, dict) and set(error) == fields and bool(error["message"])


async def _watch(server: Process, client: httpx.AsyncClient, seen: Seen) -> None:
    while True:
        seen.memory[-1].append(server.memory)
        seen.held[-1].append(int((await _load(client))["mogu_kv_tokens"]))
        await asyncio.sleep(0.05)


async def _load(client: httpx.AsyncClient) -> dict[str, float]:
    text = (await client.get("/metrics")).text
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def _figures(seen: Seen, left: Sequence[int], seconds: float) -> Iterator[dict[str, Any]]:
    told = {"seconds": seconds, "server's memory at the end, MB": statistics.mean(seen.memory[-1]) / 1e6}
    for name in ("answered", "streamed", "compared", "left", "left before an answer", "wrong"):
        told[name] = seen.counts[name]
    for name, value in told.items():
        yield {"name": f"soak: {name}", "value": value, "unit": "s" if name == "seconds" else "requests"}
    bars = {
        "that stayed and were not answered": (seen.counts["failed"], 0),
        "greedy answers unlike those of one prompt at a time": (seen.counts["unlike"], 0),
        "wrong ones without a 4xx in OpenAI's shape": (seen.counts["misjudged"], 0),
        "rows at the end": (left[0], 0),
        "waiting at the end": (left[1], 0),
        "memory, last quarter over second": (_growth(seen.memory), 1.05),
        "tokens held, last quarter over second": (_growth(seen.held), 1.05),
    }
    for name, (value, bar) in bars.items():
        one = {"name": f"soak: {name}", "value": value, "unit": "ratio" if "over" in name else "requests"}
        yield one | {"bar": bar, "at_least": False, "met": value <= bar}


def _growth(quarters: list[list[int]]) -> float:
    return statistics.mean(quarters[-1]) / statistics.mean(quarters[1])
