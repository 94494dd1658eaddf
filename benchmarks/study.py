"""Compare ways to train on the embedded model, over seeds: python benchmarks/study.py [--work DIR] [--json FILE]

Every variant changes one thing of the recipe `quickstart`. A seed draws the training rows, the validation prompts, the
harm categories that the routers never see, the initialisation and the order; all variants of a seed share these, so
that differences are taken within seeds. An interrupted study goes on. A minute or two for each variant and seed, and
seeds may run beside each other in one --work folder, once its data are built; a last call reads them all.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _machine import machine

Change = dict[str, dict[str, Any]]
_TRAINED = {"epochs": 1, "rows": 200, "batch_size": 8, "accumulation": 1, "select": "last"}
VARIANTS: dict[str, tuple[str, Change]] = {
    "default": ("log ratio; fitted on routed states, weighted tokens, standardised, l2 0.001, sharpness 4", {}),
    "ratio": (
        "responders: the published ratio",
        {"glad": {"loss": "ratio"}, "unwill": {"loss": "ratio"}},
    ),
    "ratio, slower": (
        "responders: the published ratio at a third of the rate",
        {"glad": {"loss": "ratio", "learning_rate": 3e-4}, "unwill": {"loss": "ratio", "learning_rate": 3e-4}},
    ),
    "equal tokens": ("fit: instruction, template and answer tokens alike", {"routers": {"fit_tokens": "equal"}}),
    "template tokens": (
        "fit: only the template's tokens after the instruction",
        {"routers": {"fit_tokens": "template"}},
    ),
    "base states": ("fit: on the plain base's states", {"routers": {"fit_states": "base"}}),
    "not standardised": ("fit: ridge on the weights as they are", {"routers": {"standardise": False}}),
    "l2 0.01": ("fit: ten times the ridge", {"routers": {"l2": 1e-2}}),
    "l2 0.0001": ("fit: a tenth of the ridge", {"routers": {"l2": 1e-4}}),
    "sharpness 1": ("fit: logits as fitted", {"routers": {"sharpness": 1.0}}),
    "then squared": (
        "fit, then end to end: squared penalty",
        {"routers": {**_TRAINED, "learning_rate": 1e-4, "penalty": "squared"}},
    ),
    "then l1": ("fit, then end to end: L1 penalty", {"routers": {**_TRAINED, "learning_rate": 1e-4, "penalty": "l1"}}),
    "random, squared": (
        "random start, end to end: squared penalty",
        {"routers": {**_TRAINED, "start": "random", "learning_rate": 5e-4, "penalty": "squared"}},
    ),
    "random, l1": (
        "random start, end to end: L1 penalty",
        {"routers": {**_TRAINED, "start": "random", "learning_rate": 5e-4, "penalty": "l1"}},
    ),
}
FIGURES = {
    "benefit": "malicious refused − benign − borderline − degenerate",
    "malicious": "share refused",
    "benign": "share refused",
    "borderline": "share refused",
    "degenerate": "share",
    "auroc": "held-out categories",
    "kl": "nats per token on benign",
    "glad_pairs": "pairs until on target",
    "unwill_pairs": "pairs until on target",
    "train_seconds": "seconds of glad, unwill and routers",
}
_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Two-sided 95% quantile of Student's t, by the number of seeds."""


def recipe_of(change: Change, seed: int, prompts: int) -> Any:
    """The recipe `quickstart` with one change, and a quicker balance."""
    from mogu.recipe import load_recipe

    recipe = load_recipe("quickstart")
    balance = dataclasses.replace(recipe.balance, shifts=(-0.8, 0.0), prompts=prompts, new_tokens=10)
    routers = dataclasses.replace(recipe.routers, hold_out=0.2)
    recipe = dataclasses.replace(recipe, seed=seed, balance=balance, routers=routers)
    for section, values in change.items():
        recipe = dataclasses.replace(recipe, **{section: dataclasses.replace(getattr(recipe, section), **values)})
    return recipe


def rows_of(everything: Sequence[Any], seed: int, count: int) -> list[Any]:
    """At most ``count`` training rows of each kind, twins together, and all validation rows, both in another order."""
    draw = random.Random(seed)
    by_id = {row.id: row for row in everything}
    train = [row for row in everything if row.split == "train"]
    malicious = _drawn(draw, [row for row in train if row.label == "malicious"], count)
    twins = [by_id[row.twin] for row in malicious if row.twin in by_id and by_id[row.twin].split == "train"]
    benign = _drawn(draw, [row for row in train if row.label == "benign" and not row.borderline], count)
    validation = [row for row in everything if row.split == "validation"]
    draw.shuffle(validation)
    chosen = [*malicious, *twins[:count], *benign]
    draw.shuffle(chosen)
    return [*chosen, *validation]


def _drawn(draw: random.Random, rows: Sequence[Any], count: int) -> list[Any]:
    return draw.sample(rows, min(count, len(rows)))


def run_one(base: Any, tokenizer: Any, rows: Sequence[Any], recipe: Any, out: Path) -> tuple[Any, dict[str, Any]]:
    """Train; the base without its adapter, and the figures."""
    from mogu.harden import _Timed
    from mogu.progress import Progress
    from mogu.train.batches import Encoder
    from mogu.train.drift import Drift
    from mogu.train.run import train
    from mogu.train.selection import Respondent, held_out, separation
    from mogu.train.trainers import forward_parameters

    timed = _Timed(Progress())
    trained = train(base, tokenizer, rows, recipe, out, model_name="smollm2", track=(), progress=timed)
    chosen = next(trial for trial in trained.selection["balance"] if trial["chosen"])
    ask = Respondent(trained.model, tokenizer, None, 32)
    encode = Encoder(tokenizer, None, recipe.routers.answer_tokens)
    known = [row for row in rows if row.split == "train"]
    m = recipe.adapter.routed_tokens
    drift = Drift(trained.model, encode, known, first=m, accepts=forward_parameters(trained.model), count=48)
    rates = {kind: chosen[f"{kind}_refused"] for kind in ("malicious", "benign", "borderline")}
    figures = {
        "benefit": rates["malicious"] - rates["benign"] - rates["borderline"] - chosen["degenerate"],
        **rates,
        "degenerate": chosen["degenerate"],
        "shift": chosen["shift"],
        "auroc": separation(ask, rows, held_out(rows, recipe.routers.hold_out, recipe.seed)),
        "kl": drift(),
        **{
            f"{stage}_pairs": next(c["pairs"] for c in trained.selection[stage] if c["chosen"])
            for stage in ("glad", "unwill")
        },
        "train_seconds": sum(timed.seconds.get(step, 0.0) for step in ("glad", "unwill", "routers")),
    }
    return trained.model.unload(), figures


def study(work: Path, names: Sequence[str], seeds: Sequence[int], count: int, prompts: int) -> dict[str, Any]:
    """By variant, the figures of every seed; what ``work`` holds of the same settings is not run again."""
    from mogu.data.build import build, choose_instructions
    from mogu.models import load_base

    base, tokenizer = load_base("smollm2")
    instructions = choose_instructions("seeds", "seeds", None)
    everything = build(base, tokenizer, instructions, work / "data", model_name="smollm2", answer_tokens=16)
    found: dict[str, Any] = {name: {} for name in names}
    for number, (seed, name) in enumerate(((s, n) for s in seeds for n in names), 1):
        recipe = recipe_of(VARIANTS[name][1], seed, prompts)
        kept = work / "found" / f"{seed}-{name.replace(' ', '_').replace(',', '')}.json"
        inputs = {"recipe": recipe.to_yaml(), "rows": count}
        record = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
        if record.get("inputs") != inputs:
            losses = "ratio" if "ratio" in name else "log"  # the responders of a folder are trained once
            out = work / f"seed{seed}-{losses}{'-slower' if 'slower' in name else ''}"
            base, figures = run_one(base, tokenizer, rows_of(everything, seed, count), recipe, out)
            record = {"inputs": inputs, "figures": figures}
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(record), encoding="utf-8")
        found[name][seed] = record["figures"]
        says = " ".join(f"{key} {value:.3g}" for key, value in record["figures"].items() if value is not None)
        print(f"{number}/{len(seeds) * len(names)} seed {seed}, {name}: {says}", file=sys.stderr)
    return found


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95% Student interval."""
    if len(values) < 2:
        return values[0], math.inf
    return statistics.mean(values), _T.get(len(values), 2.262) * statistics.stdev(values) / math.sqrt(len(values))


def table(found: Mapping[str, Mapping[int, Mapping[str, float]]], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """One record for each variant and figure: mean and interval, and those of the difference from the default."""
    records = []
    for name, by_seed in found.items():
        for figure, unit in FIGURES.items():
            values = [by_seed[seed][figure] for seed in seeds]
            if any(value is None for value in values):
                continue
            mean, half = interval(values)
            record = {"name": f"{name}/{figure}", "value": round(mean, 4), "half_width": round(half, 4), "unit": unit}
            if name != "default" and "default" in found:
                base = [found["default"][seed][figure] for seed in seeds]
                change, within = interval([a - b for a, b in zip(values, base, strict=True)])
                record |= {"from_default": round(change, 4), "from_default_half_width": round(within, 4)}
            records.append(record)
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work", type=Path, default=Path("runs/study"), metavar="DIR", help="where runs and figures are kept"
    )
    parser.add_argument("--only", nargs="+", choices=VARIANTS, metavar="NAME", help="these, beside the default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=120, help="training rows of each kind (default 120)")
    parser.add_argument("--prompts", type=int, default=24, help="validation prompts of each kind (default 24)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to FILE")
    args = parser.parse_args()
    names = list(dict.fromkeys(("default", *(args.only or VARIANTS))))
    found = study(args.work, names, args.seeds, args.rows, args.prompts)
    records = table(found, args.seeds)
    by_name = {record["name"]: record for record in records}
    shown = [figure for figure in FIGURES if figure != "train_seconds"]
    print(f"{'':<18}" + "".join(f"{figure:>20}" for figure in shown))
    for name in names:
        cells = [by_name.get(f"{name}/{figure}") for figure in shown]
        print(
            f"{name:<18}" + "".join("" if c is None else f"{c['value']:>12.3f} ±{c['half_width']:<6.3f}" for c in cells)
        )
    for name in names[1:]:
        change = by_name[f"{name}/benefit"]
        print(
            f"{name}: benefit {change['from_default']:+.3f} ±{change['from_default_half_width']:.3f} from the default"
        )
    if args.json:
        settings = {"seeds": args.seeds, "rows": args.rows, "prompts": args.prompts}
        content = {"benchmark": "study", "machine": machine(), "settings": settings, "figures": records}
        args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
