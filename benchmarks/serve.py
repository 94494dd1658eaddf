"""Measure serving over HTTP: python benchmarks/serve.py [--quick] [--soak N] [--json FILE]

A server process with the embedded model, and clients in this process, which ask for streams of greedy answers of equal
length at once: each asks again as soon as its answer is complete. The same engine serves routed answers (adapters of
random numbers, on the upper layers as in the default recipe or on every layer) and, with ``routed_tokens`` 0, the
plain base; contenders take turns, so ratios are of one run. Prompts are random tokens, new ones in each turn: what was
read once would be read faster.

``--soak`` sends many requests to a tiny model behind the same server: mixed lengths, streamed or not, a tenth whose
client goes away, a twentieth that cannot be answered; greedy answers are compared with those of one prompt at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
from _clients import Answer, ask
from _machine import machine
from _server import CLIENTS, Process, serving
from _soak import soak

PROMPT, COMMON, NEW = 64, 32, 64
"""Tokens of a prompt, of these in common where prompts have a beginning in common, and of an answer."""
UPPER = 0.45
"""Share of the depth below which nothing is routed in the default recipe."""
VOCABULARY = 49_000
SHARED = ", with a system prompt"


def prompts(chance: random.Random, count: int, common: int) -> list[list[int]]:
    """Of random tokens, the first ``common`` the same in all."""
    beginning = chance.choices(range(VOCABULARY), k=common)
    return [beginning + chance.choices(range(VOCABULARY), k=PROMPT - common) for _ in range(count)]


async def crowd(server: Process, asked: Sequence[Sequence[int]], clients: int, plain: bool) -> dict[str, float]:
    """So many clients at once, until all prompts are answered."""
    common = {"model": "smollm2", "max_tokens": NEW, "temperature": 0, "stream": True}
    common |= {"stream_options": {"include_usage": True}} | ({"mogu": {"routed_tokens": 0}} if plain else {})
    answers: list[Answer] = []
    left = iter(asked)
    async with httpx.AsyncClient(base_url=server.url, timeout=600) as client:

        async def work() -> None:
            for ids in left:
                answers.append(await ask(client, "/v1/completions", {**common, "prompt": list(ids)}))

        start, own, theirs = time.perf_counter(), time.process_time(), server.cpu
        await asyncio.gather(*(work() for _ in range(clients)))
        total = time.perf_counter() - start
    good = [answer for answer in answers if answer.ended and answer.usage.get("completion_tokens") == NEW]
    firsts = sorted(answer.first - answer.asked for answer in good)
    return {
        "speed": len(good) * NEW / total,
        "total": total,
        "server_cpu": server.cpu - theirs,
        "client_cpu": time.process_time() - own,
        "first_p50": statistics.median(firsts),
        "first_p95": firsts[min(int(0.95 * len(firsts)), len(firsts) - 1)],
        "failed": len(answers) - len(good),
    }


def measure(quick: bool, rounds: int) -> dict[str, dict[str, float]]:
    """Figures by contender."""
    found: dict[str, list[dict[str, float]]] = {}
    chance = random.Random(0)
    alone = 2 if quick else 4
    kinds = {"upper": UPPER} if quick else {"upper": UPPER, "every layer": 0.0}
    for kind, layers_from in kinds.items():
        with serving(str(layers_from)) as server:
            asyncio.run(crowd(server, prompts(chance, 2, 0), 2, False))  # so that nothing is done for the first time
            for turn in range(rounds):
                for case, count, clients, common in (
                    (f"{CLIENTS} clients", 2 * CLIENTS, CLIENTS, 0),
                    (f"{CLIENTS} clients{SHARED}", 2 * CLIENTS, CLIENTS, COMMON),
                    ("1 client", alone, 1, 0),
                ):
                    for who in ("routed", "base") if turn % 2 == 0 else ("base", "routed"):
                        name = f"{kind}: {case}, {who}"
                        asked = prompts(chance, count, common)
                        one = asyncio.run(crowd(server, asked, clients, who == "base"))
                        one["memory"] = server.memory / 1e6
                        found.setdefault(name, []).append(one)
                        print(f"turn {turn + 1}/{rounds}, {name}: {one['speed']:.1f} tokens/s", file=sys.stderr)
    return {name: {key: statistics.median(o[key] for o in each) for key in each[0]} for name, each in found.items()}


def bars(found: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """The ratios that were promised, and whether they are reached."""
    made: list[dict[str, Any]] = []

    def add(name: str, value: float, bar: float | None, at_least: bool = True) -> None:
        one: dict[str, Any] = {"name": name, "value": value, "unit": "ratio"}
        if bar is not None:
            met = value >= bar if at_least else value <= bar
            one |= {"bar": bar, "at_least": at_least, "met": met}
        made.append(one)

    for kind in dict.fromkeys(name.split(":")[0] for name in found):
        speed = {name.split(": ")[1]: one["speed"] for name, one in found.items() if name.startswith(kind + ":")}
        promised = kind == "upper"
        many = f"{CLIENTS} clients"
        ratio = speed[f"{many}, routed"] / speed[f"{many}, base"]
        add(f"{kind}: routed over base, {many}", ratio, 0.9 if promised else None)
        ratio = speed[f"{many}{SHARED}, routed"] / speed[f"{many}{SHARED}, base"]
        add(f"{kind}: routed over base, {many}{SHARED}", ratio, None)
        ratio = speed[f"{many}, routed"] / speed["1 client, routed"]
        add(f"{kind}: {many} over 1, routed", ratio, 4.0 if promised else None)
        add(f"{kind}: {many} over 1, base", speed[f"{many}, base"] / speed["1 client, base"], None)
    failed = sum(one["failed"] for one in found.values())
    made.append({"name": "failed requests", "value": failed, "unit": "requests"})
    made[-1] |= {"bar": 0, "at_least": False, "met": failed == 0}
    return made


UNITS = {
    "speed": "tokens/s",
    "total": "s",
    "server_cpu": "processor seconds of the server",
    "client_cpu": "processor seconds of all clients",
    "first_p50": "s to the first text, median",
    "first_p95": "s to the first text, 95th percentile",
    "failed": "requests",
    "memory": "MB of the server",
}


def table(found: dict[str, dict[str, float]], ratios: Sequence[dict[str, Any]]) -> Iterator[str]:
    if found:
        yield f"{'':<55} {'tokens/s':>9} {'first p50 s':>12} {'p95':>7} {'failed':>7} {'cpu s':>7} {'clients':>8}"
    for name, one in found.items():
        times = f"{one['first_p50']:>12.3f} {one['first_p95']:>7.3f}"
        spent = f"{one['server_cpu']:>7.1f} {one['client_cpu']:>8.1f}"
        yield f"{name:<55} {one['speed']:>9.1f} {times} {one['failed']:>7.0f} {spent}"
    for one in ratios:
        verdict = ""
        if "bar" in one:
            sign, met = ">=" if one["at_least"] else "<=", "reached" if one["met"] else "NOT reached"
            verdict = f" (bar {sign} {one['bar']}: {met})"
        value = f"{one['value']:.3f}" if one["unit"] == "ratio" else f"{one['value']:.0f}"
        yield f"{one['name']}: {value}{verdict}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="only what the bars speak of: under 5 minutes")
    parser.add_argument("--soak", type=int, metavar="N", help="only so many requests to a tiny model")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to FILE")
    parser.add_argument("--rounds", type=int, help="turns of every contender (default 3, with --quick 2)")
    args = parser.parse_args()
    rounds = args.rounds or (2 if args.quick else 3)
    found = {} if args.soak else measure(args.quick, rounds)
    ratios = soak(args.soak) if args.soak else bars(found)
    print(*table(found, ratios), sep="\n")
    if args.json:
        figures = [
            {"name": f"{key}/{name}", "value": round(value, 5), "unit": UNITS[name]}
            for key, one in found.items()
            for name, value in one.items()
        ]
        settings = {"requests": args.soak} if args.soak else {"clients": CLIENTS, "prompt": PROMPT, "new_tokens": NEW}
        settings |= {} if args.soak else {"common": COMMON, "rounds": rounds}
        content = {"benchmark": "serve", "machine": machine(), "settings": settings}
        content |= {"figures": figures, "ratios": ratios}
        args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
