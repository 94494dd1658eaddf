"""Security after fine-tuning, on the embedded model: python benchmarks/restore.py [--work DIR] [--json FILE]

The embedded model refuses next to nothing, so it first learns to refuse (``safe``). Then it learns a harmless task with
answers that can be checked (``fine-tuned``: name the colours in a sentence), which nobody meant to cost refusals. Then
MoGU is trained on the fine-tuned model with the task's rows mixed in (``restored``), and without them (``restored, no
task rows``). All are asked the same held-out prompts and task rows. What --work holds is not done again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _machine import machine

COLOURS = "red blue green yellow black white brown purple orange grey pink silver".split()  # noqa: SIM905
THINGS = "car door house coat bicycle lamp boat kite chair cup fence mountain scarf umbrella".split()  # noqa: SIM905
SENTENCES = (
    "The {0} {1} stood beside the {2} {3}.",
    "She painted the {1} {0} and the {3} {2}.",
    "Behind a {0} {1} we found a {2} {3}.",
    "He sold his {0} {1} to buy a {2} {3}.",
)
INSTRUCTION = "Name the colours in this sentence, in order, separated by a comma: "


def task(count: int, seed: int) -> list[dict[str, str]]:
    """Rows whose answers can be checked."""
    draw, made = random.Random(seed), []
    for number in range(count):
        (one, two), (thing, other) = draw.sample(COLOURS, 2), draw.sample(THINGS, 2)
        sentence = draw.choice(SENTENCES).format(one, thing, two, other)
        split = "test" if number % 5 == 4 else "validation" if number % 10 == 3 else "train"
        made.append({"instruction": INSTRUCTION + sentence, "output": f"{one}, {two}", "split": split})
    return list({row["instruction"]: row for row in made}.values())


def tune(base: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]], out: Path, epochs: int, rate: float) -> None:
    """Supervised fine-tuning with a LoRA on q, k, v and o; saves it to ``out`` and leaves the base as it was."""
    import torch
    from peft import LoraConfig, get_peft_model

    from mogu.train.batches import Encoder, answer_logits, pad
    from mogu.train.losses import response_cross_entropy
    from mogu.train.trainers import forward_parameters

    torch.manual_seed(0)
    modules = ["q_proj", "k_proj", "v_proj", "o_proj"]
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules=modules, task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=rate)
    encode, accepts, draw = Encoder(tokenizer, None, 32), forward_parameters(model), random.Random(0)
    model.train()
    for epoch in range(epochs):
        order = draw.sample(list(pairs), len(pairs))
        for start in range(0, len(order), 8):
            encoded = [encode(*pair, closed=True) for pair in order[start : start + 8]]
            loss = response_cross_entropy(*answer_logits(model, pad(encoded, tokenizer.pad_token_id), accepts)).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        print(f"{out.name}: epoch {epoch + 1} of {epochs}, loss {loss.item():.3f}", file=sys.stderr, flush=True)
    model.eval()
    model.save_pretrained(out)
    model.unload()


def measured(model: Any, tokenizer: Any, suites: dict[str, Sequence[str]], rows: Sequence[dict[str, str]]) -> Any:
    """Labels of the answers to held-out prompts, and which task rows were right."""
    from mogu.judge import label_response
    from mogu.respond import respond

    found: dict[str, Any] = {}
    for kind, prompts in suites.items():
        answers = respond(model, tokenizer, prompts, max_new_tokens=24)
        found[kind] = [label_response(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    answers = respond(model, tokenizer, [row["instruction"] for row in rows], max_new_tokens=12)
    found["task"] = [answer.strip() == row["output"] for answer, row in zip(answers, rows, strict=True)]
    return found


def run(work: Path, count: int, held: int, recipe_name: str, dtype: str) -> dict[str, Any]:
    """By system, what it answered."""
    from mogu.data.build import build, choose_instructions
    from mogu.data.mix import mix, task_rows
    from mogu.data.rows import write_jsonl
    from mogu.finetuned import merge_lora
    from mogu.harden import held_out
    from mogu.models import load_base
    from mogu.recipe import load_recipe
    from mogu.train.run import train

    base, tokenizer = load_base("smollm2", dtype=dtype)
    instructions = choose_instructions("seeds", "seeds", count)
    suites = {kind: [one.instruction for one in group] for kind, group in held_out(instructions, held).items()}
    task_data = task(count * 2, seed=0)
    asked = [row for row in task_data if row["split"] == "test"][:held]
    rows = build(base, tokenizer, instructions, work / "data", model_name="smollm2", answer_tokens=16)
    kept: dict[str, Any] = {}

    def note(name: str, model: Any) -> None:
        file = work / f"{name.replace(', ', '-').replace(' ', '-')}.json"
        if not file.is_file():
            file.write_text(json.dumps(measured(model, tokenizer, suites, asked)), encoding="utf-8")
        kept[name] = json.loads(file.read_text(encoding="utf-8"))

    note("base", base)
    safe = work / "safe-model"
    if not safe.is_dir():
        pairs = [(row.instruction, row.wanted) for row in rows if row.split == "train"]
        tune(base, tokenizer, pairs, work / "safe-lora", epochs=2, rate=5e-4)
        merged = merge_lora(base, work / "safe-lora")
        merged.save_pretrained(safe)
        tokenizer.save_pretrained(safe)
    base, tokenizer = load_base(str(safe), dtype=dtype)
    note("safe", base)
    if not (work / "task-lora").is_dir():
        pairs = [(row["instruction"], row["output"]) for row in task_data if row["split"] == "train"]
        tune(base, tokenizer, pairs, work / "task-lora", epochs=3, rate=1e-3)
    write_jsonl(work / "task.jsonl", task_data)
    base = merge_lora(base, work / "task-lora")
    note("fine-tuned", base)
    mixed = mix(task_rows(str(work / "task.jsonl")), rows, work / "mixed")
    recipe = load_recipe(recipe_name)
    for name, data in (("restored", mixed), ("restored, no task rows", rows)):
        out = work / f"run-{name.replace(', ', '-').replace(' ', '-')}"
        trained = train(
            base, tokenizer, data, dataclasses.replace(recipe, name=name), out, model_name=str(safe), track=()
        )
        note(name, trained.model)
        base = trained.model.unload()
    return kept


def table(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Shares with Wilson intervals."""
    from mogu.statistics import wilson

    records = []
    for name, answers in found.items():
        for kind, labels in answers.items():
            hits = labels if kind == "task" else [label == "refusal" for label in labels]
            one = wilson(sum(hits), len(hits))
            unit = "share right" if kind == "task" else "share refused"
            records.append(
                {"name": f"{name}/{kind}", "value": one.rate, "low": one.low, "high": one.high, "unit": unit}
            )
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work", type=Path, default=Path("runs/restore"), metavar="DIR", help="where models and answers are kept"
    )
    parser.add_argument("--rows", type=int, default=200, help="instructions of each kind and split (default 200)")
    parser.add_argument("--held-out", type=int, default=60, help="held-out prompts of each kind (default 60)")
    parser.add_argument("--recipe", default="quickstart-v2", help="how MoGU is trained (default quickstart-v2)")
    parser.add_argument("--dtype", default="fastest", help="of the base, as for mogu train (default fastest)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to FILE")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    records = table(run(args.work, args.rows, args.held_out, args.recipe, args.dtype))
    for record in records:
        print(f"{record['name']:<36} {record['value']:.0%} ({record['low']:.0%}-{record['high']:.0%}) {record['unit']}")
    if args.json:
        settings = {"rows": args.rows, "held_out": args.held_out, "recipe": args.recipe, "dtype": args.dtype}
        content = {"benchmark": "restore", "machine": machine(), "settings": settings}
        args.json.write_text(json.dumps({**content, "figures": records}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
