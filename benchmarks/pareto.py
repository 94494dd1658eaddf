"""v1, v2 and what lies between, on the same prompts: python benchmarks/pareto.py [--work DIR] [--quick] [--json FILE]

Every variant is trained on the embedded model from the same rows of a seed, in a folder of its own, and answers the
same held-out prompts: malicious, benign and borderline seeds, and any --suite. Behind the routed head an answer is the
plain base's, so one whose head was seen before is not written again. What is finished in --work is not done again, so
that variants (--only) and seeds may be run one by one, and a last call reads them all.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from _machine import machine
from _pareto import BASE, V1, V2, bad, bars, records, table

study = import_module("study")  # the program beside this one
Change = dict[str, dict[str, Any]]
RESPONDERS = ("glad", "unwill")
_ALL: Change = {"adapter": {"layers": "range", "layers_from": 0.0}}
_FIT_ONLY: Change = {"routers": {"epochs": 0}, "backbone": {"modules": ()}}
_NO_LORA: Change = {"backbone": {"modules": ()}}
VARIANTS: dict[str, tuple[str, str, Change]] = {
    BASE: ("the model as it is", "", {}),
    V1: ("every layer, routers fitted (quickstart with layers_from 0)", "quickstart", _ALL),
    "upper": ("the upper layers, routers fitted (quickstart)", "quickstart", {}),
    V2: ("probed layers, routers trained with a backbone LoRA (quickstart-v2)", "quickstart-v2", {}),
    "probe-fit": ("probed layers, routers fitted", "quickstart-v2", _FIT_ONLY),
    "random-fit": (
        "as many layers by chance, routers fitted",
        "quickstart-v2",
        {"adapter": {"layers": "random"}, **_FIT_ONLY},
    ),
    "all-rows": ("as v2, routers fitted on all rows", "quickstart-v2", {"routers": {"fit_rows": None}}),
    "probe-trained": ("probed layers, routers trained, no backbone LoRA", "quickstart-v2", _NO_LORA),
    "random-lora": (
        "as many layers by chance, routers trained with a LoRA",
        "quickstart-v2",
        {"adapter": {"layers": "random"}},
    ),
    "all-lora": ("every layer, routers trained with a backbone LoRA", "quickstart-v2", _ALL),
}
DIALLED = (V2, "all-rows")
"""Variants that answer at more positions of the safety dial: one point each says little about two axes."""
PREFILLED = "held-out malicious, prefilled"
UNASKED = ("probe-fit", "random-fit")
"""Variants that only say how well the layers that they route tell what is asked."""
LIKE = dict.fromkeys(("probe-fit", "all-rows", "probe-trained"), V2)
"""Variants with the layers and the responders of another one, which are trained once; their seconds count for both."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    rows: int = 120
    """Training rows of each kind."""
    prompts: int = 48
    """Validation prompts of each kind for balance and risk."""
    held_out: int = 40
    """Held-out prompts of each kind."""
    limit: int | None = None
    """Instructions of each kind and split that data are built from."""
    new_tokens: int = 20
    prefill: int = 10
    """Tokens of an affirmative answer that stand behind the prompts of the prefilled suite."""


QUICK = Sizes(rows=16, prompts=6, held_out=8, limit=20, new_tokens=16)
QUICK_SAYS = (
    "16 rows of each kind show that all of it works; training times, layers and rates of a full size are others "
    "(docs/v2.md)"
)


def recipe_of(name: str, seed: int, sizes: Sizes) -> Any:
    """The recipe of a variant; harm categories that no router sees are the same for all variants of a seed."""
    from mogu.recipe import load_recipe

    _, shipped, change = VARIANTS[name]
    recipe = dataclasses.replace(load_recipe(shipped), name=name, seed=seed)
    shifts = (0.0,) if name in UNASKED else (-2.4, -1.6, -0.8, 0.0, 0.8, 1.6)
    balance = {"shifts": shifts, "prompts": sizes.prompts, "new_tokens": 16}
    sections = {"balance": balance, "routers": {"hold_out": 0.2}}
    for section, values in change.items():
        sections[section] = {**sections.get(section, {}), **values}
    changed = {section: dataclasses.replace(getattr(recipe, section), **own) for section, own in sections.items()}
    return dataclasses.replace(recipe, **changed)  # at once: some fields only go together


def suites_of(everything: Sequence[Any], sizes: Sizes, more: str | None) -> dict[str, tuple[str, list[Any]]]:
    """By name, the kind and the prompts: held-out seeds, malicious ones again with a prefilled answer, and the user's
    suites.
    """
    from mogu.data.rows import Row
    from mogu.evaluate.suites import gather, parse_suites
    from mogu.harden import held_out

    found = {
        f"held-out {kind}": (kind, [one.instruction for one in group])
        for kind, group in held_out(everything, sizes.held_out).items()
    }
    found[PREFILLED] = ("jailbreak", found["held-out malicious"][1])
    for one in gather(parse_suites(more)) if more else []:
        found[one.suite.name] = (one.suite.kind, [row["instruction"] for row in one.rows])
    return {
        name: (
            kind,
            [
                Row(f"{name}/{index}", text, "malicious" if bad(kind) else "benign", name, "test")
                for index, text in enumerate(texts)
            ],
        )
        for name, (kind, texts) in found.items()
    }


def train_one(
    base: Any, tokenizer: Any, rows: Sequence[Any], recipe: Any, out: Path, sizes: Sizes, before: Mapping[str, float]
) -> tuple[Any, dict[str, float], dict[str, float]]:
    """The routed model, the figures, and the seconds of each step; begun anew if it was interrupted, so that times are
    whole. ``before`` are the seconds of the steps that were taken over.
    """
    from safetensors.torch import load_file

    from mogu.adapter.model import active_config, dialled, mogu_layers
    from mogu.train.batches import Encoder
    from mogu.train.drift import Drift
    from mogu.train.run import train
    from mogu.train.selection import Respondent, held_out, separation, validation_groups
    from mogu.train.trainers import forward_parameters

    timed = timer()
    known = [row for row in rows if row.split == "train"]
    few = [row for group in validation_groups(rows, sizes.prompts).values() for row in group]
    trained = train(base, tokenizer, [*known, *few], recipe, out, model_name="smollm2", track=(), progress=timed)
    seconds = {**before, **timed.seconds}
    routed = [index for index, _ in mogu_layers(trained.model)]
    depth = base.config.num_hidden_layers
    ask = Respondent(trained.model, tokenizer, None, 32)
    encode = Encoder(tokenizer, None, recipe.routers.answer_tokens)
    m, accepts = recipe.adapter.routed_tokens, forward_parameters(trained.model)
    tensors = load_file(out / "adapter" / "adapter_model.safetensors")
    shift = active_config(trained.model).shift
    with dialled(trained.model, -shift):  # under another shift the same logits would be weighed otherwise
        auroc = separation(ask, rows, held_out(rows, recipe.routers.hold_out, recipe.seed))
    figures = {
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "layers": len(routed),
        "reread": (depth - routed[0]) / depth,
        "train_seconds": sum(seconds.get(step, 0.0) for step in ("layers", *RESPONDERS, "routers")),
        "all_seconds": sum(seconds.values()),
        "auroc": auroc,
        "kl": Drift(trained.model, encode, known, first=m, accepts=accepts, count=24)(),
        "shift": shift,
    }
    return trained.model, {name: value for name, value in figures.items() if value is not None}, seconds


def timer() -> Any:
    """A progress that keeps the CPU seconds of each step in ``seconds``: other programs do not count."""
    from mogu.progress import Progress

    class Timer(Progress):
        def __init__(self) -> None:
            self.seconds: dict[str, float] = {}
            self.step, self.start = "", 0.0

        def begin(self, step: str, text: str) -> None:
            self.step, self.start = step, time.process_time()

        def end(self, text: str) -> None:
            self.seconds[self.step] = self.seconds.get(self.step, 0.0) + time.process_time() - self.start

    return Timer()


def taken_over(out: Path, other: Path) -> dict[str, float]:
    """Begin a run with the layer probe and the responders of another one; their seconds, none if it is not there."""
    kept = other.parents[1] / "found" / f"{other.name}.json"
    if not kept.is_file() or not (other / "stages").is_dir():
        return {}
    (out / "stages").mkdir(parents=True)
    for name in ("layers.json", *(f"{stage}.{kind}" for stage in RESPONDERS for kind in ("json", "safetensors"))):
        shutil.copy(other / "stages" / name, out / "stages" / name)
    seconds = json.loads(kept.read_text(encoding="utf-8"))["seconds"]
    return {step: seconds[step] for step in ("layers", *RESPONDERS) if step in seconds}


def handovers(model: Any, times: int = 3) -> list[float]:
    """CPU milliseconds from the end of the head to the first token of the tail, after one that does not count."""
    import torch
    from transformers import LogitsProcessor, LogitsProcessorList

    ids = torch.arange(256, device=model.device)[None] + 100
    seen: list[float] = []

    class Stamp(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            seen.append(time.process_time())
            return scores

    gaps = []
    for _ in range(times + 1):  # the first one tries whether lower layers may be kept
        seen.clear()
        left: list[float] = []
        model.generate(
            input_ids=ids,
            max_new_tokens=7,
            min_new_tokens=7,
            do_sample=False,
            logits_processor=LogitsProcessorList([Stamp()]),
            on_handover=lambda _, left=left: left.append(time.process_time()),
        )
        gaps.append(1000 * (next(stamp for stamp in seen if stamp > left[0]) - left[0]))
    return gaps[1:]


@dataclasses.dataclass
class Study:
    """What all variants and seeds share."""

    work: Path
    sizes: Sizes
    everything: Sequence[Any]
    suites: Mapping[str, tuple[str, list[Any]]]
    tokenizer: Any
    base: Any
    known: dict[tuple[str, str], str]
    """Labels of answers by prompt and routed head."""

    @property
    def known_file(self) -> Path:
        """Where they are kept."""
        return self.work / f"known-{str(self.base.dtype).removeprefix('torch.')}-{self.sizes.new_tokens}.json"

    def record(self, name: str, seed: int, dials: Sequence[float]) -> dict[str, Any]:
        """Figures and answers of a variant and seed, from disk if they are there."""
        from mogu.data.rows import write_text

        out = self.work / "runs" / f"{name}-{seed}"
        recipe = None if name == BASE else recipe_of(name, seed, self.sizes)
        kept = self.work / "found" / f"{out.name}.json"
        inputs = {
            "recipe": None if recipe is None else recipe.to_yaml(),
            "sizes": dataclasses.asdict(self.sizes),
            "dtype": str(self.base.dtype),
            "suites": {suite: [kind, len(rows)] for suite, (kind, rows) in self.suites.items()},
        }
        record = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
        if record.get("inputs") != inputs:
            record = {"inputs": inputs, **self.made(name, seed, recipe, out)}
            write_text(kept, json.dumps(record))
        missing = [dial for dial in dials if f"{dial:+g}" not in record.get("dial", {})] if recipe is not None else []
        if missing:
            record["dial"] = {**record.get("dial", {}), **self.dialled(out / "adapter", missing)}
            write_text(kept, json.dumps(record))
        self.known = {**labels_of(self.known_file), **self.known}  # others may work in the same folder
        write_text(self.known_file, json.dumps([[*key, label] for key, label in self.known.items()]))
        return record

    def made(self, name: str, seed: int, recipe: Any, out: Path) -> dict[str, Any]:
        """Train, measure, and answer."""
        figures: dict[str, float] = {}
        seconds: dict[str, float] = {}
        model = self.base
        if recipe is not None:
            rows = study.rows_of(self.everything, seed, self.sizes.rows)
            shutil.rmtree(out, ignore_errors=True)
            before = taken_over(out, self.work / "runs" / f"{LIKE[name]}-{seed}") if name in LIKE else {}
            model, figures, seconds = train_one(self.base, self.tokenizer, rows, recipe, out, self.sizes, before)
        labels = {} if name in UNASKED else self.answers(model)
        if recipe is not None:
            self.base = model.unload()
        return {"figures": figures, "seconds": seconds, "answers": labels}

    def answers(self, model: Any) -> dict[str, dict[str, str]]:
        """Labels by suite and prompt."""
        from mogu.train.selection import Respondent, labels_by_head

        ask = Respondent(model, self.tokenizer, None, 32)
        rows = [row for name, (_, group) in self.suites.items() if name != PREFILLED for row in group]
        if hasattr(model, "peft_config"):
            labels = labels_by_head(ask, rows, self.sizes.new_tokens, self.known)
        else:
            labels = dict(zip((row.id for row in rows), ask.labels(rows, self.sizes.new_tokens), strict=True))
        labels |= self.prefilled_labels(model)
        return {name: {row.id: labels[row.id] for row in group} for name, (_, group) in self.suites.items()}

    def prefilled_labels(self, model: Any) -> dict[str, str]:
        """Labels of what follows an affirmative beginning that stands there already, by prompt."""
        import torch

        from mogu.chat import pad_prompts, prompt_ids, response_ids
        from mogu.data.answers import affirmation_for
        from mogu.judge import label_response
        from mogu.respond import as_text

        rows, found = self.suites[PREFILLED][1], {}
        for group in (rows[start : start + 32] for start in range(0, len(rows), 32)):
            ids = []
            for row in group:
                begun = response_ids(self.tokenizer, affirmation_for(row.instruction), end_of_turn=False)
                ids.append([*prompt_ids(self.tokenizer, row.instruction), *begun[: self.sizes.prefill]])
            batch = pad_prompts(self.tokenizer, ids, model.device)
            with torch.inference_mode():
                output = model.generate(**batch, do_sample=False, max_new_tokens=self.sizes.new_tokens)
            for row, new in zip(group, output[:, batch["input_ids"].shape[1] :], strict=True):
                found[row.id] = label_response(row.instruction, as_text(self.tokenizer, new))
        return found

    def time_handovers(self, found: Mapping[str, Mapping[int, Any]], rounds: int = 3) -> None:
        """Into the figures of every variant that answers, the median of its hand-overs; all take turns."""
        from mogu.adapter import store

        runs = [(name, seed) for name, by_seed in found.items() if name not in (BASE, *UNASKED) for seed in by_seed]
        gaps: dict[tuple[str, int], list[float]] = {run: [] for run in runs}
        for name, seed in runs * rounds:
            model = store.attach(self.base, self.work / "runs" / f"{name}-{seed}" / "adapter").eval()
            gaps[name, seed] += handovers(model)
            self.base = model.unload()
        for (name, seed), each in gaps.items():
            found[name][seed]["figures"]["handover_ms"] = statistics.median(each)

    def dialled(self, adapter: Path, dials: Sequence[float]) -> dict[str, Any]:
        """The same at positions of the safety dial."""
        from mogu.adapter import store
        from mogu.adapter.model import dialled

        model, found = store.attach(self.base, adapter), {}
        for dial in dials:
            with dialled(model, dial):
                found[f"{dial:+g}"] = self.answers(model)
        self.base = model.unload()
        return found


def labels_of(file: Path) -> dict[tuple[str, str], str]:
    """Labels by prompt and routed head, none if ``file`` is not there."""
    if not file.is_file():
        return {}
    return {(row, head): label for row, head, label in json.loads(file.read_text(encoding="utf-8"))}


def measure(
    work: Path,
    names: Sequence[str],
    seeds: Sequence[int],
    sizes: Sizes,
    more: str | None,
    dtype: str,
    dials: Sequence[float],
) -> dict[str, Any]:
    """By variant and seed, figures and answers; the base has one seed. A variant at a dial is one of its own."""
    from mogu.data.build import build, choose_instructions
    from mogu.models import load_base

    base, tokenizer = load_base("smollm2", dtype=dtype)
    instructions = choose_instructions("seeds", "seeds", sizes.limit)
    everything = build(base, tokenizer, instructions, work / "data", model_name="smollm2", answer_tokens=8)
    one = Study(work, sizes, everything, suites_of(everything, sizes, more), tokenizer, base, {})
    one.known = labels_of(one.known_file)
    found: dict[str, Any] = {name: {} for name in names}
    for seed, name in ((seed, name) for seed in seeds for name in names if name != BASE or seed == seeds[0]):
        found[name][seed] = record = one.record(name, seed, dials if name in DIALLED else ())
        says = " ".join(f"{key} {value:.4g}" for key, value in record["figures"].items())
        print(f"{name}, seed {seed}: {says}", file=sys.stderr, flush=True)
    one.time_handovers(found)
    for name in [name for name in names if name in DIALLED]:
        for dial in (f"{dial:+g}" for dial in dials):
            found[f"{name}@{dial}"] = {
                seed: {"inputs": record["inputs"], "figures": {}, "answers": record["dial"][dial]}
                for seed, record in found[name].items()
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="where runs and answers are kept (default runs/pareto[-quick])"
    )
    parser.add_argument("--only", metavar="NAME,NAME", help=f"these variants: {', '.join(VARIANTS)}")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="so many seeds, from 0 (default 3)")
    parser.add_argument(
        "--suite", metavar="SUITE", help="more prompts, as for mogu evaluate: files or names, by commas"
    )
    parser.add_argument("--rows", type=int, default=Sizes.rows, help="training rows of each kind")
    parser.add_argument("--held-out", type=int, default=Sizes.held_out, help="held-out prompts of each kind")
    parser.add_argument("--dtype", default="fastest", help="of the base, as for mogu train (default fastest)")
    parser.add_argument(
        "--dial", default="", metavar="D,D", help=f"answers of {', '.join(DIALLED)} also at these positions of the dial"
    )
    parser.add_argument("--quick", action="store_true", help="base, v1 and v2, one seed, few rows: under 5 minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to FILE")
    args = parser.parse_args()
    names = (
        [name.strip() for name in args.only.split(",")] if args.only else [BASE, V1, V2] if args.quick else [*VARIANTS]
    )
    if strange := [name for name in names if name not in VARIANTS]:
        parser.error(f"unknown variant {strange[0]!r}; choose from {', '.join(VARIANTS)}")
    sizes = QUICK if args.quick else Sizes(args.rows, held_out=args.held_out)
    dials = [float(dial) for dial in args.dial.split(",") if dial]
    work = args.work or Path("runs/pareto-quick" if args.quick else "runs/pareto")
    found = measure(work, names, range(1 if args.quick else args.seeds), sizes, args.suite, args.dtype, dials)
    print("\n".join(table(found)))
    print()
    judged = list(bars(found))
    for bar in judged:
        limit = "".join(f", {key.replace('_', ' ')} {bar[key]:.2f}" for key in ("at_most", "at_least") if key in bar)
        limit += f", {bar['note']}" if "note" in bar else ""
        spread = f" ({bar['low']:+.2f} to {bar['high']:+.2f})" if "low" in bar else ""
        print(f"{bar['name']}: {bar['value']:.3f}{spread}{limit}")
    if args.quick:
        print(f"\n{QUICK_SAYS}")
    if args.json:
        content = {
            "benchmark": "pareto",
            **({"note": QUICK_SAYS} if args.quick else {}),
            "machine": machine(),
            "settings": {
                **dataclasses.asdict(sizes),
                "seeds": 1 if args.quick else args.seeds,
                "suite": args.suite,
                "dtype": args.dtype,
            },
            "variants": {name: VARIANTS[name][0] for name in names},
            "figures": records(found),
            "bars": judged,
        }
        args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
