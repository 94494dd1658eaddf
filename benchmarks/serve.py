"""Measure serving with the embedded model: python benchmarks/serve.py [--quick] [--soak N] [--json FILE]

Clients ask the engine in this process for greedy answers of equal length at once: each asks again as soon as its answer
is complete. The same engine serves routed answers (adapters of random numbers, on every layer or on the upper ones as
in the default recipe) and, with ``routed_tokens=0``, the plain base; contenders take turns, so ratios are of one run.
``--soak`` sends many short requests of mixed length to a tiny model, cancels a tenth of them, and compares every greedy
answer with the one that it has alone.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _machine import machine

CLIENTS, PROMPT, NEW, ROUTED = 16, 64, 64, 5
UPPER = 0.45
"""Share of the depth below which nothing is routed in the default recipe."""


@dataclass
class Answer:
    """What a client saw."""

    asked: float
    first: float = 0.0
    done: float = 0.0
    tokens: tuple[int, ...] = ()
    error: Exception | None = None


class Client:
    """A listener that notes when tokens come."""

    def __init__(self) -> None:
        self.answer = Answer(time.perf_counter())
        self.over = threading.Event()
        self._tokens: list[int] = []

    def __call__(self, what: Any) -> None:
        if isinstance(what, Exception):
            self.answer.error = what
            self.over.set()
        elif hasattr(what, "token"):
            self._tokens.append(what.token)
            now = time.perf_counter()
            self.answer.first = self.answer.first or now
            if what.finish:
                self.answer.done, self.answer.tokens = now, tuple(self._tokens)
                self.over.set()


def ask(engine: Any, ids: Sequence[int], new: int, routed_tokens: int | None) -> Answer:
    """One answer, waited for."""
    from mogu.serve.requests import Prompt, Routing, Sampling

    client = Client()
    routing = Routing(routed_tokens=routed_tokens)
    engine.submit(Prompt(tuple(ids), Sampling(max_tokens=new, temperature=0), routing), client)
    client.over.wait()
    return client.answer


def crowd(engine: Any, prompts: Sequence[Sequence[int]], clients: int, routed_tokens: int | None) -> dict[str, float]:
    """So many clients at once, until all prompts are answered."""
    engine.prefixes.forget()
    answers: list[Answer] = []
    left = iter(prompts)
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                ids = next(left, None)
            if ids is None:
                return
            answer = ask(engine, ids, NEW, routed_tokens)
            with lock:
                answers.append(answer)

    start, cpu = time.perf_counter(), time.process_time()
    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = time.perf_counter() - start
    firsts = sorted(answer.first - answer.asked for answer in answers if not answer.error)
    return {
        "speed": sum(len(answer.tokens) for answer in answers) / total,
        "total": total,
        "cpu": time.process_time() - cpu,
        "first_p50": statistics.median(firsts),
        "first_p95": firsts[min(int(0.95 * len(firsts)), len(firsts) - 1)],
        "failed": sum(answer.error is not None for answer in answers),
    }


def embedded(layers_from: float) -> tuple[Any, Any]:
    """The embedded model with an adapter of the published shape and random numbers."""
    import torch
    from peft import get_peft_model

    import mogu  # noqa: F401
    from mogu.adapter.config import MoguConfig
    from mogu.models import load_base
    from mogu.recipe import AdapterRecipe, routed_layers

    torch.manual_seed(0)
    model, tokenizer = load_base("smollm2")
    model.generation_config.eos_token_id = None  # every answer has as many tokens
    layers = routed_layers(AdapterRecipe(layers_from=layers_from), model.config.num_hidden_layers)
    adapted = get_peft_model(model, MoguConfig(router="folded", layers_to_transform=layers))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "mogu_" in name:
                parameter.normal_(std=0.02)
    return adapted.requires_grad_(False).eval(), tokenizer


def words(tokenizer: Any, count: int, length: int) -> list[list[int]]:
    """Prompts of so many tokens that have no beginning in common."""
    from mogu.data.sources import seed_instructions

    ids = tokenizer("\n".join(row.instruction for row in seed_instructions("benign")))["input_ids"]
    return [ids[n * length : (n + 1) * length] for n in range(count)]


def conversations(tokenizer: Any, count: int, length: int) -> list[list[int]]:
    """Prompts of about so many tokens in the model's own template, with its system prompt."""
    from mogu.chat import prompt_ids

    empty = len(prompt_ids(tokenizer, "a")) - 1
    texts = [tokenizer.decode(ids) for ids in words(tokenizer, count, length - empty)]
    return [prompt_ids(tokenizer, text) for text in texts]


def measure(quick: bool, rounds: int) -> dict[str, dict[str, float]]:
    """Figures by contender."""
    from mogu.serve.engine import LocalEngine

    found: dict[str, list[dict[str, float]]] = {}
    kinds = {"upper": UPPER} if quick else {"upper": UPPER, "every layer": 0.0}
    for kind, layers_from in kinds.items():
        model, tokenizer = embedded(layers_from)
        with LocalEngine(model, tokenizer, rows=CLIENTS, kv_tokens=CLIENTS * 512) as engine:
            many = words(tokenizer, 2 * CLIENTS, PROMPT)
            chats = conversations(tokenizer, 2 * CLIENTS, PROMPT)
            ask(engine, many[0][:8], 8, None)
            for round_ in range(rounds):
                cases = [
                    (f"{kind}: 16 clients, routed", many, CLIENTS, None),
                    (f"{kind}: 16 clients, base", many, CLIENTS, 0),
                    (f"{kind}: 16 clients, routed, with a system prompt", chats, CLIENTS, None),
                    (f"{kind}: 16 clients, base, with a system prompt", chats, CLIENTS, 0),
                    (f"{kind}: 1 client, routed", many[: 2 if quick else 4], 1, None),
                    (f"{kind}: 1 client, base", many[: 2 if quick else 4], 1, 0),
                ]
                for name, prompts, clients, routed_tokens in cases:
                    one = crowd(engine, prompts, clients, routed_tokens)
                    found.setdefault(name, []).append(one)
                    print(f"turn {round_ + 1}/{rounds}, {name}: {one['speed']:.1f} tokens/s", file=sys.stderr)
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
        bar = 0.9 if kind == "upper" else None
        add(f"{kind}: routed over base, 16 clients", speed["16 clients, routed"] / speed["16 clients, base"], bar)
        shared = ", with a system prompt"
        ratio = speed["16 clients, routed" + shared] / speed["16 clients, base" + shared]
        add(f"{kind}: routed over base, 16 clients{shared}", ratio, None)
        bar = 4.0 if kind == "upper" else None
        add(f"{kind}: 16 clients over 1, routed", speed["16 clients, routed"] / speed["1 client, routed"], bar)
        add(f"{kind}: 16 clients over 1, base", speed["16 clients, base"] / speed["1 client, base"], None)
    failed = sum(one["failed"] for one in found.values())
    made.append({"name": "failed requests", "value": failed, "unit": "requests"})
    made[-1] |= {"bar": 0, "at_least": False, "met": failed == 0}
    return made


# many requests to a tiny model


def soak(requests: int, seed: int = 0) -> list[dict[str, Any]]:
    """Mixed lengths, a tenth cancelled; memory by quarter, and answers compared with those of one request at a time."""
    from mogu.serve.engine import LocalEngine
    from mogu.serve.requests import Prompt, Routing, Sampling

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import tiny

    generator = random.Random(seed)
    kinds = [
        (generator.choices(range(3, tiny.VOCABULARY), k=generator.randint(1, 40)), generator.randint(1, 24), routing)
        for routing in (Routing(), Routing(routed_tokens=0), Routing(dial=1.0), Routing(handover="all"))
        for _ in range(10)
    ]
    wrong, answered, cancelled, memory = 0, 0, 0, []
    with LocalEngine(
        tiny.adapted("llama", layers_to_transform=[1, 2]), tiny.tokenizer(), rows=8, kv_tokens=512, prefill_tokens=32
    ) as engine:

        def send(kind: tuple[list[int], int, Any]) -> tuple[Client, Any]:
            client = Client()
            sampling = Sampling(max_tokens=kind[1], temperature=0)
            return client, engine.submit(Prompt(tuple(kind[0]), sampling, kind[2]), client)

        alone = []
        for kind in kinds:
            client, _ = send(kind)
            client.over.wait()
            alone.append(client.answer.tokens)
        open_: list[tuple[int, Client]] = []
        for number in range(requests):
            index = generator.randrange(len(kinds))
            client, ticket = send(kinds[index])
            if generator.random() < 0.1:
                time.sleep(generator.random() * 0.02)
                ticket.cancel()
                cancelled += 1
            else:
                open_.append((index, client))
            while len(open_) >= 24 or (number == requests - 1 and open_):
                index, client = open_.pop(0)
                client.over.wait()
                answered += 1
                wrong += client.answer.error is not None or client.answer.tokens != alone[index]
            if number % max(requests // 40, 1) == 0:
                memory.append(_memory())
        held = engine.load().kv_tokens - engine.prefixes.tokens
    quarter = max(len(memory) // 4, 1)
    growth = statistics.mean(memory[-quarter:]) / statistics.mean(memory[quarter : 2 * quarter] or memory)
    return [
        {"name": "soak: answered", "value": answered, "unit": "requests"},
        {"name": "soak: cancelled", "value": cancelled, "unit": "requests"},
        {"name": "soak: answers unlike those alone", "value": wrong, "unit": "requests"}
        | {"bar": 0, "at_least": False, "met": wrong == 0},
        {"name": "soak: tokens held at the end", "value": held, "unit": "tokens"}
        | {"bar": 0, "at_least": False, "met": held == 0},
        {"name": "soak: memory, last quarter over second", "value": growth, "unit": "ratio"}
        | {"bar": 1.05, "at_least": False, "met": growth <= 1.05},
    ]


def _memory() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) * 1024


UNITS = {
    "speed": "tokens/s",
    "total": "s",
    "cpu": "processor seconds",
    "first_p50": "s to the first token, median",
    "first_p95": "s to the first token, 95th percentile",
    "failed": "requests",
}


def table(found: dict[str, dict[str, float]], ratios: Sequence[dict[str, Any]]) -> Iterator[str]:
    if found:
        yield f"{'':<55} {'tokens/s':>9} {'first p50 s':>12} {'p95':>7} {'failed':>7}"
    for name, one in found.items():
        times = f"{one['first_p50']:>12.3f} {one['first_p95']:>7.3f}"
        yield f"{name:<55} {one['speed']:>9.1f} {times} {one['failed']:>7.0f}"
    for one in ratios:
        verdict = ""
        if "bar" in one:
            sign, met = ">=" if one["at_least"] else "<=", "reached" if one["met"] else "NOT reached"
            verdict = f" (bar {sign} {one['bar']}: {met})"
        yield f"{one['name']}: {one['value']:.3f}{verdict}"


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
        settings = {"clients": CLIENTS, "prompt": PROMPT, "new_tokens": NEW, "routed_tokens": ROUTED, "rounds": rounds}
        content = {"benchmark": "serve", "machine": machine(), "settings": settings}
        content |= {"figures": figures, "ratios": ratios}
        args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
