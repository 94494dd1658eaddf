"""Measure a responder's training step on the embedded model: python benchmarks/train.py [--quick] [--json FILE]

A step learns the glad responder (every layer, as published) from 16 pairs: built-in malicious instructions, our
affirmative first sentence against our refusal. The published procedure puts one answer at a time through the model and
holds the graphs of all 32 until the one backward of the step. The floor is a forward and backward over just as many
tokens as the pairs have different ones, in rows of equal length, without a mask. A step
that trains routers end to end, with a backbone LoRA held to the base, learns from as many rows, half of them benign.
Every contender runs in a process of its own, the contenders take turns, and memory is the peak above the loaded model.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _machine import machine

PAIRS = 16
"""Per optimizer step."""
ANSWER_TOKENS = 32
"""At most; as in the default recipe."""
DTYPES = ("float32", "bf16", "bf16-base")
"""The base in float32; the same under autocast (the recipe's ``compute.bf16``); the base loaded in bfloat16."""


@dataclass(frozen=True)
class Contender:
    """One way to compute a step."""

    text: str
    kind: str = "ours"
    """``published``, ``floor``, or mogu's trainer of a responder (``ours``) or of the routers (``routers``)."""
    batch: int = 4
    """Pairs in one forward and backward."""
    layers_from: float = 0.0
    compute: dict[str, bool] = field(default_factory=dict)
    """Fields of the recipe's ``compute``."""


CONTENDERS = {
    "published": Contender("one answer at a time, one backward for all", "published", 1),
    "doubled": Contender("ours, two rows for each pair, 8 pairs at a time", batch=8, compute={"pack": False}),
    "packed": Contender("ours, packed, 4 pairs at a time"),
    "floor": Contender("as many tokens, no mask, 4 rows at a time", "floor"),
    "floor-16": Contender("the same, all 16 rows at a time", "floor", 16),
    "packed-1": Contender("ours, packed, 1 pair at a time", batch=1),
    "packed-2": Contender("ours, packed, 2 pairs at a time", batch=2),
    "packed-8": Contender("ours, packed, 8 pairs at a time", batch=8),
    "packed-16": Contender("ours, packed, 16 pairs at a time", batch=16),
    "checkpointed": Contender("ours, packed, gradient checkpointing", compute={"gradient_checkpointing": True}),
    "upper": Contender("ours, packed, layers from 45% of the depth (recipe default)", layers_from=0.45),
    "routers": Contender("routers and backbone LoRA, packed, 8 rows at a time", "routers", 8, 0.5),
    "routers-rows": Contender("the same, a line for each row", "routers", 8, 0.5, {"pack": False}),
    "compiled": Contender("ours, packed, torch.compile", compute={"torch_compile": True}),
}
QUICK = ("published", "doubled", "packed", "floor")
FULL = tuple(name for name in CONTENDERS if name != "compiled")
BF16 = ("published", "packed", "floor", "floor-16")
"""Those that also run in bf16."""


# one contender, in a process of its own


class Clock:
    """When each step ended, and the peak of memory since the first began."""

    def __init__(self) -> None:
        import torch

        self.cuda = torch.cuda.is_available()
        self.ends: list[tuple[float, float]] = []

    def start(self) -> None:
        import torch

        gc.collect()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            self.before = _status("VmRSS")
        self.ends.append((time.perf_counter(), time.process_time()))

    def step(self) -> None:
        import torch

        if self.cuda:
            torch.cuda.synchronize()
        self.ends.append((time.perf_counter(), time.process_time()))

    def result(self) -> dict[str, Any]:
        """Seconds and seconds of processor time of every step but the first, and bytes."""
        import torch

        peak = torch.cuda.max_memory_allocated() if self.cuda else _status("VmHWM")
        steps = list(zip(self.ends[1:], self.ends[2:], strict=False))
        seconds, cpu = ([after[n] - before[n] for before, after in steps] for n in (0, 1))
        return {"seconds": seconds, "cpu": cpu, "bytes": peak - self.before}


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field + ":")).split()[1]) * 1024


def run_one(name: str, dtype: str, steps: int) -> dict[str, Any]:
    """One warm-up step and ``steps`` timed ones."""
    import torch
    from peft import get_peft_model

    from mogu.adapter.config import MoguConfig
    from mogu.adapter.model import set_stage
    from mogu.models import load_base
    from mogu.recipe import AdapterRecipe, routed_layers
    from mogu.train.batches import Encoder

    contender = CONTENDERS[name]
    torch.manual_seed(0)
    base, tokenizer = load_base("smollm2", dtype="bfloat16" if dtype == "bf16-base" else None)
    layers = routed_layers(AdapterRecipe(layers_from=contender.layers_from), base.config.num_hidden_layers)
    routers = contender.kind == "routers"
    backbone: dict[str, Any] = {"backbone_modules": ["q", "k", "v", "o"], "backbone_rank": 3} if routers else {}
    model = get_peft_model(base, MoguConfig(router="folded", layers_to_transform=layers, **backbone))
    set_stage(model, "routed" if routers else "glad")
    encode = Encoder(tokenizer, None, ANSWER_TOKENS)
    rows = pairs(("malicious", "benign") if routers else ("malicious",))
    with torch.no_grad():  # so that the weights, mapped from a file, are in memory before the measurement
        model(input_ids=torch.tensor([encode(rows[0].instruction, rows[0].glad, closed=False)[0]]).to(model.device))
    clock = Clock()
    step = {"published": published, "floor": floor, "ours": ours, "routers": ours}[contender.kind]
    shape = step(model, encode, rows, contender, dtype == "bf16", steps + 1, clock)
    return {**clock.result(), **shape}


def pairs(kinds: Sequence[str]) -> list[Any]:
    """The same 16 rows everywhere, as many of each kind, without any model's answers."""
    from mogu.data.answers import affirmation_for, refusal_for
    from mogu.data.rows import Row
    from mogu.data.sources import seed_instructions

    return [
        Row(**{**vars(one), "glad": affirmation_for(one.instruction), "unwill": refusal_for(one.instruction)})
        for kind in kinds
        for one in random.Random(0).sample(
            [one for one in seed_instructions(kind) if one.split == "train"], PAIRS // len(kinds)
        )
    ]


@contextmanager
def autocast(model: Any, bf16: bool) -> Iterator[None]:
    import torch

    with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=bf16):
        yield


def by_hand(model: Any, loss: Callable[[], Any], steps: int, clock: Clock) -> None:
    """Steps of AdamW; ``loss`` gives what the last backward of a step is to be taken of."""
    import torch

    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=5e-5, weight_decay=0.0)
    model.train()
    clock.start()
    for _ in range(steps):
        loss().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.step()


def published(
    model: Any, encode: Any, rows: Sequence[Any], _: Contender, bf16: bool, steps: int, clock: Clock
) -> dict[str, Any]:
    """As published: each answer in a forward of its own, with all logits; the ratios are summed, then one backward."""
    import torch

    from mogu.train.batches import encode_pair

    encoded = [encode_pair(encode, row, wants_refusal=False) for row in rows]

    def cross_entropy(prompt: list[int], answer: list[int]) -> Any:
        ids = torch.tensor([prompt + answer], device=model.device)
        with autocast(model, bf16):
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits[0, len(prompt) - 1 : -1].float(), ids[0, len(prompt) :])

    def loss() -> Any:
        ratios = [cross_entropy(*wanted) / cross_entropy(*unwanted) for wanted, unwanted in encoded]
        return torch.stack(ratios).mean()

    by_hand(model, loss, steps, clock)
    return {"tokens": sum(len(prompt) + len(answer) for pair in encoded for prompt, answer in pair), "padding": 0.0}


def floor(
    model: Any, encode: Any, rows: Sequence[Any], contender: Contender, bf16: bool, steps: int, clock: Clock
) -> dict[str, Any]:
    """The tokens of the packed rows, cut into rows of equal length; a cross-entropy where so many answer tokens are."""
    import torch

    from mogu.train.packing import PackedCollator

    alone = [PackedCollator(encode, wants_refusal=False)([row]) for row in rows]
    ids = torch.cat([batch["input_ids"][0] for batch in alone])
    width = -(-len(ids) // PAIRS)
    kept = -(-sum(int((batch["answers"] >= 0).sum()) for batch in alone) // PAIRS)
    ids = torch.cat([ids, ids[: width * PAIRS - len(ids)]]).view(PAIRS, width).to(model.device)

    def part(rows: Any) -> Any:
        with autocast(model, bf16):
            logits = model(input_ids=rows, logits_to_keep=kept, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), rows[:, -kept:].flatten())
        return loss * len(rows) / PAIRS

    def loss() -> Any:
        *before, last = ids.split(contender.batch)
        for rows in before:
            part(rows).backward()
        return part(last)

    by_hand(model, loss, steps, clock)
    return {"tokens": ids.numel(), "padding": 0.0}


def ours(
    model: Any, encode: Any, rows: Sequence[Any], contender: Contender, bf16: bool, steps: int, clock: Clock
) -> dict[str, Any]:
    """mogu's own trainer, with all that it does between steps."""
    from transformers import TrainerCallback

    from mogu.recipe import BackboneRecipe, ComputeRecipe, ResponderRecipe, RouterRecipe
    from mogu.train.batches import PairCollator, RouterCollator
    from mogu.train.packing import PackedCollator, PackedRouterCollator
    from mogu.train.trainers import ResponderTrainer, RouterTrainer, RowDataset, training_arguments

    compute = ComputeRecipe(**{"bf16": bf16, **contender.compute})
    trainer: Callable[..., Any]
    if contender.kind == "routers":
        collate = (PackedRouterCollator if compute.pack else RouterCollator)(encode)
        trainer = functools.partial(RouterTrainer, recipe=RouterRecipe(), backbone=BackboneRecipe(modules=("q",)))
    else:
        collate = (PackedCollator if compute.pack else PairCollator)(encode, wants_refusal=False)
        trainer = functools.partial(ResponderTrainer, recipe=ResponderRecipe())
    shapes = []

    def watched(rows: Sequence[Any]) -> Any:
        batch = collate(rows)
        real = batch["segments"] > 0 if compute.pack else batch["attention_mask"] > 0
        shapes.append((int(real.sum()), real.numel()))
        return batch

    class Timing(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            clock.start()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.step()

    with tempfile.TemporaryDirectory() as folder:
        trainer(
            model=model,
            args=training_arguments(
                Path(folder),
                learning_rate=5e-5,
                batch_size=contender.batch,
                accumulation=PAIRS // contender.batch,
                epochs=steps,
                max_steps=steps,
                save_steps=10**6,
                seed=0,
                quiet=True,
                use_cpu=model.device.type == "cpu",
                compute=compute,
            ),
            train_dataset=RowDataset(rows, collate.length),
            data_collator=watched,
            callbacks=[Timing()],
        ).train()
    tokens, columns = (sum(each) for each in zip(*shapes, strict=True))
    return {"tokens": tokens // steps, "padding": 1 - tokens / columns}


# all of them


def measure(names: Sequence[str], dtypes: Sequence[str], rounds: int, steps: int) -> dict[str, dict[str, Any]]:
    """By ``dtype/name``: pairs per second (median, least, most), processor seconds, peak megabytes, tokens, padding."""
    plan = [(d, name) for d in dtypes for name in names if d == "float32" or name in BF16 or len(dtypes) == 1]
    found: dict[str, list[dict[str, Any]]] = {f"{dtype}/{name}": [] for dtype, name in plan}
    for round_ in range(rounds):
        for number, (dtype, name) in enumerate(plan, 1):
            command = [sys.executable, __file__, "--one", name, "--dtype", dtype, "--steps", str(steps)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"\n{dtype}/{name} failed:\n{done.stderr[-2000:]}")
            result = json.loads(done.stdout.splitlines()[-1])
            found[f"{dtype}/{name}"].append(result)
            one = summary([result])
            place = f"turn {round_ + 1}/{rounds}, {number}/{len(plan)}"
            print(f"{place}: {dtype}/{name} {one['speed']:.2f} pairs/s, {one['megabytes']:.0f} MB", file=sys.stderr)
    return {key: summary(results) for key, results in found.items()}


def summary(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    speeds = [PAIRS / seconds for result in results for seconds in result["seconds"]]
    return {
        "speed": statistics.median(speeds),
        "cpu": statistics.median(seconds for result in results for seconds in result["cpu"]),
        "slowest": min(speeds),
        "fastest": max(speeds),
        "megabytes": max(result["bytes"] for result in results) / 1e6,
        "tokens": results[0]["tokens"],
        "padding": results[0]["padding"],
    }


def bars(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The ratios that were promised, and whether they are reached."""

    def ratio(name: str, value: float, bar: float, at_least: bool) -> dict[str, Any]:
        met = value >= bar if at_least else value <= bar
        return {"name": name, "value": round(value, 3), "unit": "ratio", "bar": bar, "at_least": at_least, "met": met}

    def quickest(dtype: str) -> float:
        return max(found[key]["speed"] for key in found if key.startswith(f"{dtype}/floor"))

    made = []
    for dtype in DTYPES:
        if f"{dtype}/packed" not in found:
            continue
        packed, old = found[f"{dtype}/packed"], found[f"{dtype}/published"]
        speed, memory = packed["speed"] / old["speed"], packed["megabytes"] / old["megabytes"]
        made.append(ratio(f"{dtype}: packed over published, pairs per second", speed, 2.2, True))
        made.append(ratio(f"{dtype}: packed over published, peak memory", memory, 0.5, False))
        made.append(ratio(f"{dtype}: packed over floor, seconds", quickest(dtype) / packed["speed"], 1.2, False))
        if dtype != "float32" and "float32/published" in found:
            speed = packed["speed"] / found["float32/published"]["speed"]
            made.append(ratio(f"{dtype}: packed over published in float32, pairs per second", speed, 3.0, True))
    return made


def table(found: dict[str, dict[str, Any]], ratios: Sequence[dict[str, Any]]) -> Iterator[str]:
    heads = f"{'':<22} {'pairs/s':>8} {'(range)':>15} {'x':>5} {'cpu s':>6} {'x':>5} {'MB':>6} {'x':>5}"
    yield f"{heads} {'tokens':>6} {'padding':>7}  what"
    for key, one in found.items():
        dtype, name = key.split("/")
        speed, cpu, memory = (one[what] / found[f"{dtype}/published"][what] for what in ("speed", "cpu", "megabytes"))
        range_, text = f"({one['slowest']:.2f} - {one['fastest']:.2f})", CONTENDERS[name].text
        yield (
            f"{key:<22} {one['speed']:>8.2f} {range_:>15} {speed:>5.2f} {one['cpu']:>6.2f} {cpu:>5.2f} "
            f"{one['megabytes']:>6.0f} {memory:>5.2f} {one['tokens']:>6} {one['padding']:>7.1%}  {text}"
        )
    for bar in ratios:
        sign, verdict = ">=" if bar["at_least"] else "<=", "reached" if bar["met"] else "NOT reached"
        yield f"{bar['name']}: {bar['value']:.2f} (bar {sign} {bar['bar']}: {verdict})"


def write_json(file: Path, found: dict[str, dict[str, Any]], ratios: list[dict[str, Any]], settings: Any) -> None:
    units = {"speed": "pairs/s", "slowest": "pairs/s", "fastest": "pairs/s", "megabytes": "MB above the model"}
    units |= {"cpu": "processor seconds per step", "tokens": "tokens per step", "padding": "share of columns"}
    figures = [
        {"name": f"{key}/{name}", "value": round(value, 4), "unit": units[name]}
        for key, one in found.items()
        for name, value in one.items()
    ]
    content = {"benchmark": "train", "machine": machine(), "settings": settings, "figures": figures, "ratios": ratios}
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="only what the bars speak of, once: under 5 minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to FILE")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, metavar="NAME", help="these, beside the published one")
    parser.add_argument("--rounds", type=int, default=3, help="turns of every contender (default 3)")
    parser.add_argument("--steps", type=int, default=2, help="timed steps in each turn (default 2)")
    parser.add_argument("--dtype", choices=DTYPES, help="only this one")
    parser.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run_one(args.one, args.dtype, args.steps)))
        return
    rounds, steps = (1, 1) if args.quick else (args.rounds, args.steps)
    names = QUICK if args.quick else ("published", *args.only) if args.only else FULL
    dtypes = [args.dtype] if args.dtype else DTYPES[:2] if args.quick else DTYPES
    found = measure(list(dict.fromkeys(names)), dtypes, rounds, steps)
    ratios = bars(found) if {"packed", "floor"} <= set(names) else []
    print(*table(found, ratios), sep="\n")
    if args.json:
        settings = {"pairs": PAIRS, "answer_tokens": ANSWER_TOKENS, "rounds": rounds, "steps": steps}
        write_json(args.json, found, ratios, settings)


if __name__ == "__main__":
    main()
