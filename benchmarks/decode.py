"""Measure decoding with the embedded model: python benchmarks/decode.py [--quick] [--json FILE]

Greedy answers of 128 tokens to prompts of the built-in instructions' words, with routers and responders of random
numbers. The published procedure holds a second model whose attention output projections are routed by the three
published matrices, lets it read the whole sequence again for each of the first five tokens, and hands prompt and head
to the base's own ``generate``. Every contender lives in a process of its own; they take turns, one answer at a time, so
that ratios are of one run. Memory is the peak of the process above what its libraries take.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from _machine import machine

NEW = 128
"""New tokens of an answer."""
ROUTED = 5
"""m, of which so many are routed."""
SHORT_ROUNDS, SHORT_NEW = 12, 10
"""Short answers of every contender, and their tokens: times of the first token and of a head step differ by less than
long answers drift."""
UPPER = 0.45
"""Share of the depth below which the contender ``upper`` routes nothing; as in the default recipe."""


class Case(NamedTuple):
    """A batch of prompts of one length."""

    batch: int
    prompt: int

    def __str__(self) -> str:
        return f"batch {self.batch}, prompt {self.prompt}"


@dataclass(frozen=True)
class Contender:
    """One way to decode."""

    text: str
    layers_from: float = 0.0
    quick: tuple[Case, ...] = ()
    """Cases that ``--quick`` takes it through."""


SHORT, BATCH, LONG = Case(1, 64), Case(8, 64), Case(1, 1024)
"""What the bars speak of."""
CASES = (SHORT, BATCH, *(Case(batch, prompt) for batch in (1, 8, 32) for prompt in (32, 256, 1024)))
CONTENDERS = {
    "base": Contender("the plain base's generate", quick=(SHORT, BATCH, LONG)),
    "ours": Contender("ours, every layer routed", quick=(SHORT, BATCH, LONG)),
    "upper": Contender("ours, layers from 45% of the depth (recipe default)", UPPER, quick=(LONG,)),
    "routed": Contender("ours, every layer routed, no hand-over", quick=(SHORT,)),
    "published": Contender("two models, no cache in the head, three matrices a router", quick=(SHORT, LONG)),
    "safedecoding": Contender("the base, 2 tokens in contrast with a LoRA expert"),
}


# one contender, in a process of its own

Decode = Callable[[Any, Any, int], None]
"""Answers (rows, tokens), streaming to the second, with so many new tokens."""


class Ticks:
    """A streamer that notes when each token came; the first entry is the prompt's."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing."""


def work(name: str) -> None:
    """Answer the cases that come on stdin, one a line, on stdout."""
    import torch

    import mogu.decode.contrast  # with all libraries, so that what they take does not count
    import mogu.decode.handover  # noqa: F401
    from mogu.models import load_base

    torch.manual_seed(0)
    before = _memory()
    model, tokenizer = load_base("smollm2")
    model.generation_config.eos_token_id = None  # every answer has as many tokens
    words = _words(tokenizer)
    decode = {"base": base, "published": published, "safedecoding": safedecoding}.get(name, ours)(
        model, CONTENDERS[name], 10**6 if name == "routed" else ROUTED
    )
    print("ready", file=sys.stderr, flush=True)
    for line in sys.stdin:
        batch, prompt, warm, new = json.loads(line)
        ids = words[: batch * prompt].view(batch, prompt).to(model.device)
        if warm:
            decode(ids[:, :8], None, ROUTED + 1)
        _forget_peak()
        ticks, start, cpu = Ticks(), time.perf_counter(), time.process_time()
        with torch.no_grad():
            decode(ids, ticks, new)
        end, cpu = time.perf_counter(), time.process_time() - cpu
        steps = [after - before for before, after in pairwise(ticks.times[1:])]
        if new < NEW:
            short = {"first": ticks.times[1] - start}
            if name in ("routed", "base"):
                short["head_step"] = statistics.median(steps)
            print(json.dumps(short), flush=True)
            continue
        result = {
            "total": end - start,
            "cpu": cpu,
            "first": ticks.times[1] - start,
            "handover": steps[ROUTED - 1],
            "head_step": statistics.median(steps[: NEW - 1 if name in ("routed", "base") else ROUTED - 1]),
            "step": statistics.median(steps[ROUTED:]),
            "bytes": _memory("VmHWM") - before,
        }
        print(json.dumps(result), flush=True)


def _words(tokenizer: Any) -> Any:
    """Token ids, enough for the largest case."""
    import torch

    from mogu.data.sources import seed_instructions

    ids = tokenizer("\n".join(row.instruction for row in seed_instructions("benign")))["input_ids"]
    largest = max(case.batch * case.prompt for case in CASES)
    return torch.tensor(ids * (largest // len(ids) + 1))


def _memory(field: str = "VmRSS") -> int:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() if field == "VmHWM" else torch.cuda.memory_allocated()
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field + ":")).split()[1]) * 1024


def _forget_peak() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def base(model: Any, contender: Contender, routed_tokens: int) -> Decode:
    """``generate``, as it comes."""
    return lambda ids, streamer, new: model.generate(
        input_ids=ids, max_new_tokens=new, do_sample=False, streamer=streamer
    )


def ours(model: Any, contender: Contender, routed_tokens: int) -> Decode:
    """mogu, with folded routers as ``mogu.load`` gives them."""
    adapted = with_adapter(model, contender.layers_from, "folded")
    options = {"do_sample": False, "routed_tokens": routed_tokens}
    return lambda ids, streamer, new: adapted.generate(input_ids=ids, streamer=streamer, max_new_tokens=new, **options)


def with_adapter(model: Any, layers_from: float, router: str) -> Any:
    """The model with an adapter of the published shape and random numbers."""
    import torch
    from peft import get_peft_model

    from mogu.adapter.config import MoguConfig
    from mogu.recipe import AdapterRecipe, routed_layers

    layers = routed_layers(AdapterRecipe(layers_from=layers_from), model.config.num_hidden_layers)
    adapted = get_peft_model(model, MoguConfig(router=router, layers_to_transform=layers))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "mogu_" in name:
                parameter.normal_(std=0.02)
    return adapted.requires_grad_(False).eval()


def published(model: Any, contender: Contender, routed_tokens: int) -> Decode:
    """Two models; the routed one reads everything anew for each token of the head."""
    import torch

    routed = copy.deepcopy(model)
    for layer in routed.model.layers:
        layer.self_attn.o_proj = published_projection(layer.self_attn.o_proj)
    routed.requires_grad_(False)

    def decode(ids: Any, streamer: Any, new: int) -> None:
        options = {"do_sample": False, "attention_mask": torch.ones_like(ids)}
        head = routed.generate(
            input_ids=ids, max_new_tokens=min(routed_tokens, new), use_cache=False, streamer=streamer, **options
        )
        if new <= routed_tokens:
            return
        if streamer is not None:
            prompt = len(streamer.times)
        options["attention_mask"] = torch.ones_like(head)
        model.generate(input_ids=head, max_new_tokens=new - routed_tokens, streamer=streamer, **options)
        if streamer is not None:
            del streamer.times[prompt]  # the base's prompt

    return decode


def published_projection(plain: Any, r: int = 8, width: int = 512, scale: float = 2.0) -> Any:
    """``plain`` with two LoRA responders and two routers of three matrices, one product after the other."""
    import torch
    from torch import nn

    d_in, d_out = plain.in_features, plain.out_features

    class Projection(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain = plain
            self.down = nn.ModuleList(nn.Linear(d_in, r, bias=False) for _ in range(2))
            self.up = nn.ModuleList(nn.Linear(r, d_out, bias=False) for _ in range(2))
            self.routers = nn.ModuleList(
                nn.Sequential(nn.Linear(d_in, width, bias=False), nn.Linear(width, d_in), nn.Linear(d_in, 1))
                for _ in range(2)
            )

        def forward(self, x: Any) -> Any:
            y = self.plain(x)
            parts = [
                torch.sigmoid(router(x)) * (y + up(down(x)) * scale)
                for router, down, up in zip(self.routers, self.down, self.up, strict=True)
            ]
            return parts[0] + parts[1]

    return Projection()


def safedecoding(model: Any, contender: Contender, routed_tokens: int) -> Decode:
    """The contrast with an expert of rank 16 on the attention, as its authors have it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LogitsProcessorList

    from mogu.decode.contrast import ContrastProcessor
    from mogu.defend.overlay import Overlay

    def wrap(plain: Any) -> Any:
        return get_peft_model(plain, LoraConfig(r=16, lora_alpha=64, init_lora_weights=False, task_type="CAUSAL_LM"))

    expert = Overlay(model, wrap)

    def decode(ids: Any, streamer: Any, new: int) -> None:
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        contrast = ContrastProcessor(model, expert.installed, inputs, tokens=2, alpha=3.0, common=5)
        processors = LogitsProcessorList([contrast])
        options = {"max_new_tokens": new, "do_sample": False, "streamer": streamer}
        model.generate(**inputs, logits_processor=processors, **options)

    return decode


# all of them


@contextmanager
def workers(names: Sequence[str]) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """A process for each contender."""
    running: dict[str, subprocess.Popen[str]] = {}
    try:
        for name in names:
            command = [sys.executable, __file__, "--one", name]
            running[name] = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            said = []
            for line in running[name].stderr:  # one after the other: no two load at a time
                if line.strip() == "ready":
                    break
                said.append(line)
            else:
                sys.exit(f"{name} failed:\n{''.join(said)[-2000:]}")
        yield running
    finally:
        for process in running.values():
            process.stdin.close()
            process.wait()


def measure(names: Sequence[str], cases: Sequence[Case], rounds: int, quick: bool) -> dict[str, dict[str, Any]]:
    """By ``contender/case``: the answers' figures, summed up."""
    found: dict[str, list[dict[str, float]]] = {}
    warm: set[str] = set()
    with workers(names) as running:

        def ask(name: str, case: Case, new: int) -> dict[str, float]:
            running[name].stdin.write(json.dumps([*case, name not in warm, new]) + "\n")
            running[name].stdin.flush()
            warm.add(name)
            line = running[name].stdout.readline()
            if not line:
                sys.exit(f"{name}, {case} failed:\n{running[name].stderr.read()[-2000:]}")
            return json.loads(line)

        for case in cases:
            there = [name for name in names if not quick or case in CONTENDERS[name].quick]
            for round_ in range(1 if quick and case == LONG else rounds):
                for name in there if round_ % 2 == 0 else reversed(there):  # a machine that slows down favours nobody
                    if quick and round_ and name in ("published", "routed"):
                        continue
                    found.setdefault(f"{name}/{case}", []).append(one := ask(name, case, NEW))
                    print(f"turn {round_ + 1}/{rounds}, {case}: {name} {one['total']:.2f} s", file=sys.stderr)
            if case == SHORT:
                shorts: dict[str, list[dict[str, float]]] = {name: [] for name in there}
                for round_ in range(SHORT_ROUNDS):
                    for name in there if round_ % 2 == 0 else reversed(there):
                        shorts[name].append(ask(name, case, SHORT_NEW if name in ("routed", "base") else 2))
                for name, each in shorts.items():
                    for figure in each[0]:
                        for one in found[f"{name}/{case}"]:
                            one[figure] = statistics.median(short[figure] for short in each)
    return {key: summary(results, key) for key, results in found.items()}


def summary(results: Sequence[dict[str, float]], key: str) -> dict[str, Any]:
    batch = int(key.split("batch ")[1].split(",")[0])
    middle = {name: statistics.median(one[name] for one in results) for name in results[0] if name != "bytes"}
    totals = [one["total"] for one in results]
    return {
        **middle,
        "least": min(totals),
        "most": max(totals),
        "speed": batch * NEW / middle["total"],
        "megabytes": max(one["bytes"] for one in results) / 1e6,
    }


UNITS = {
    **{
        "total": "s",
        "cpu": "processor seconds",
        "first": "s to the first token",
        "handover": "s between tokens 5 and 6",
    },
    **{"head_step": "s a token of the head", "step": "s a later token", "least": "s", "most": "s", "speed": "tokens/s"},
    "megabytes": "MB above the libraries",
}


def bars(found: dict[str, dict[str, Any]], depth: int) -> list[dict[str, Any]]:
    """The ratios that were promised, and whether they are reached."""

    def of(name: str, case: Case, what: str) -> float:
        return float(found[f"{name}/{case}"][what])

    def over(name: str, case: Case, what: str) -> float:
        return of(name, case, what) / of("base", case, what)

    made: list[dict[str, Any]] = []

    def add(name: str, value: float, bar: float, at_least: bool = False) -> None:
        met = value >= bar if at_least else value <= bar
        made.append({"name": name, "value": value, "unit": "ratio", "bar": bar, "at_least": at_least, "met": met})

    add(f"{SHORT}: ours over base, total time", over("ours", SHORT, "total"), 1.03)
    add(f"{BATCH}: ours over base, total time", over("ours", BATCH, "total"), 1.08)
    add(f"{SHORT}: ours over base, time to first token", over("ours", SHORT, "first"), 1.05)
    add(f"{SHORT}: ours over base, peak memory", over("ours", SHORT, "megabytes"), 1.02)
    prefill = of("base", LONG, "first") / of("base", LONG, "total")
    share = 1 - round(UPPER * depth) / depth
    add(f"{LONG}: ours over base, total time", over("ours", LONG, "total"), 1.05 * (1 + prefill))
    add(f"{LONG}: upper over base, total time", over("upper", LONG, "total"), 1.05 * (1 + prefill * share))
    speed = of("published", LONG, "total") / of("ours", LONG, "total")
    add(f"{LONG}: published over ours, total time", speed, 1.6, at_least=True)
    add(f"{SHORT}: routed step over base step", over("routed", SHORT, "head_step"), 1.05)
    for case in (SHORT, LONG):
        add(f"{case}: published over base, total time", over("published", case, "total"), float("nan"))
    add(f"{SHORT}: published over base, time to first token", over("published", SHORT, "first"), float("nan"))
    add(f"{SHORT}: published over base, peak memory", over("published", SHORT, "megabytes"), float("nan"))
    for one in made:
        if one["bar"] != one["bar"]:  # for comparison only
            for key in ("bar", "at_least", "met"):
                del one[key]
    return made


def table(found: dict[str, dict[str, Any]], ratios: Sequence[dict[str, Any]]) -> Iterator[str]:
    heads = f"{'total s':>8} {'(range)':>15} {'x':>5} {'first s':>8} {'x':>5} {'hand-over s':>11} {'head ms':>8}"
    yield f"{'':<34} {heads} {'step ms':>8} {'x':>5} {'tok/s':>6} {'MB':>6} {'x':>5}"
    for key, one in found.items():
        plain = found[f"base/{key.split('/')[1]}"]
        x = {what: one[what] / plain[what] for what in ("total", "first", "step", "megabytes")}
        range_ = f"({one['least']:.2f} - {one['most']:.2f})"
        yield (
            f"{key:<34} {one['total']:>8.2f} {range_:>15} {x['total']:>5.2f} {one['first']:>8.3f} {x['first']:>5.2f} "
            f"{one['handover']:>11.3f} {one['head_step'] * 1e3:>8.1f} {one['step'] * 1e3:>8.1f} {x['step']:>5.2f} "
            f"{one['speed']:>6.1f} {one['megabytes']:>6.0f} {x['megabytes']:>5.2f}"
        )
    for name in dict.fromkeys(key.split("/")[0] for key in found):
        yield f"{name}: {CONTENDERS[name].text}"
    for one in ratios:
        verdict = ""
        if "bar" in one:
            sign, met = ">=" if one["at_least"] else "<=", "reached" if one["met"] else "NOT reached"
            verdict = f" (bar {sign} {one['bar']:.3f}: {met})"
        yield f"{one['name']}: {one['value']:.3f}{verdict}"


def write_json(file: Path, found: dict[str, dict[str, Any]], ratios: list[dict[str, Any]], settings: Any) -> None:
    figures = [
        {"name": f"{key}/{name}", "value": round(value, 5), "unit": UNITS[name]}
        for key, one in found.items()
        for name, value in one.items()
    ]
    content = {"benchmark": "decode", "machine": machine(), "settings": settings, "figures": figures, "ratios": ratios}
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="only what the bars speak of: under 5 minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to FILE")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, metavar="NAME", help="these, beside the base")
    parser.add_argument("--case", nargs=2, type=int, metavar=("BATCH", "PROMPT"), help="only this one")
    parser.add_argument("--rounds", type=int, help="turns of every contender (default 3, with --quick 2)")
    parser.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        work(args.one)
        return
    rounds = args.rounds or (2 if args.quick else 3)
    names = (
        ["base", *(args.only or [])]
        if args.only
        else [n for n, one in CONTENDERS.items() if one.quick or not args.quick]
    )
    cases = [Case(*args.case)] if args.case else (SHORT, BATCH, LONG) if args.quick else CASES
    found = measure(list(dict.fromkeys(names)), cases, rounds, args.quick)
    ratios = [] if args.only or args.case else bars(found, depth=30)
    print(*table(found, ratios), sep="\n")
    if args.json:
        settings = {"new_tokens": NEW, "routed_tokens": ROUTED, "rounds": rounds, "upper_from": UPPER}
        write_json(args.json, found, ratios, settings)


if __name__ == "__main__":
    main()
