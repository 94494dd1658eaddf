"""Harden a chat model in one call: data, the three stages of training, evaluation, report."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mogu.adapter.model import active_config, mogu_layers, plain_base
from mogu.adapter.store import digest
from mogu.data.build import build, choose_instructions
from mogu.data.rows import Instruction, write_text
from mogu.evaluate.metrics import mcnemar
from mogu.evaluate.report import write_report
from mogu.evaluate.run import evaluate_suite, read_responses, router_statistics
from mogu.models import load_base
from mogu.progress import Progress
from mogu.recipe import Recipe
from mogu.respond import good_batch_size
from mogu.train.run import Trained, train
from mogu.versions import versions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EXAMPLES = 6
"""Example answers of each kind in the report."""


def fast_recipe(recipe: Recipe) -> Recipe:
    """A tiny version of ``recipe``: every part runs, nothing is learnt well. For tests and for trying things out."""
    change = dataclasses.replace
    responder = {"pairs": 4, "epochs": 1, "batch_size": 2, "accumulation": 1, "answer_tokens": 8, "checkpoint_pairs": 4}
    return change(
        recipe,
        data=change(recipe.data, limit=4, answer_tokens=8),
        glad=change(recipe.glad, **responder, checkpoint=None),
        unwill=change(recipe.unwill, **responder, checkpoint=None),
        routers=change(
            recipe.routers, epochs=min(recipe.routers.epochs, 1), rows=4, batch_size=2, accumulation=1, answer_tokens=8
        ),
        balance=change(recipe.balance, shifts=recipe.balance.shifts[:2], prompts=2, new_tokens=6),
        evaluation=change(recipe.evaluation, prompts=3, new_tokens=8),
    )


def harden(
    model: str,
    *,
    recipe: Recipe,
    out: str | Path,
    benign: str = "seeds",
    malicious: str = "seeds",
    dtype: str | None = None,
    device: str | None = None,
    quantize: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a MoGU adapter for ``model`` and measure it against the base on held-out prompts.

    Writes ``OUT/adapter``, ``OUT/report.html`` and ``OUT/summary.json``; all that came before (data, stages, responses)
    stays in ``OUT``, so that an interrupted run goes on where it stopped.

    Args:
        model: As for :func:`mogu.models.load_base`.
        recipe: Every number of the run.
        out: Run folder.
        benign: Source of benign instructions (see :func:`mogu.data.sources.load_instructions`).
        malicious: Source of malicious ones.
        dtype: Parameter dtype of the base.
        device: Where to run.
        quantize: ``"4bit"`` or ``"8bit"``.
        progress: Told what happens.

    Returns:
        The summary that the report draws.

    Raises:
        MoguError: Whatever the user can mend, in one line.
    """
    out, progress = Path(out), progress or Progress()
    timed = _Timed(progress)
    with timed.step("model", f"model: loads {model}") as said:
        instructions = choose_instructions(benign, malicious, recipe.data.limit)
        out.mkdir(parents=True, exist_ok=True)
        base, tokenizer = load_base(model, dtype=dtype, device=device, quantize=quantize)
        texts = [one.instruction for one in instructions]
        batch_size = good_batch_size(base, tokenizer, texts, template=recipe.template)
        said.append(f"batches of {batch_size}")
    with timed.step("data", "data: the model answers benign training instructions") as said:
        rows = build(
            base,
            tokenizer,
            instructions,
            out / "data",
            model_name=model,
            batch_size=batch_size,
            template=recipe.template,
            answer_tokens=recipe.data.answer_tokens,
            progress=progress.update,
        )
        said.append(f"{len(rows)} rows")
    trained = train(base, tokenizer, rows, recipe, out, model_name=model, batch_size=batch_size, progress=timed)
    prompts = held_out(rows, recipe.evaluation.prompts)
    loaded = {"model": model, "dtype": str(base.dtype).removeprefix("torch."), "quantize": quantize}
    _evaluate(trained, tokenizer, prompts, recipe, loaded, batch_size, out / "evaluation", timed)
    suites = [_suite(out / "evaluation", kind) for kind in prompts]
    routers = router_statistics(
        trained.model,
        tokenizer,
        {kind: [one.instruction for one in group] for kind, group in prompts.items()},
        batch_size=batch_size,
        template=recipe.template,
    )
    summary = {
        "title": f"MoGU on {model}",
        "model": model,
        "recipe": recipe.name,
        "seed": recipe.seed,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": _machine(),
        "versions": versions(),
        "settings": {
            "routed_tokens": recipe.adapter.routed_tokens,
            "shift": active_config(trained.model).shift,
            "layers": [index for index, _ in mogu_layers(trained.model)],
            "new_tokens": recipe.evaluation.new_tokens,
            "decoding": "greedy",
        },
        "seconds": timed.seconds,
        "suites": suites,
        "routers": routers,
        "selection": trained.selection,
        "examples": _examples(out / "evaluation", list(prompts)),
    }
    write_text(out / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    write_report(summary, out / "report.html")
    return summary


def _evaluate(
    trained: Trained,
    tokenizer: PreTrainedTokenizerBase,
    prompts: dict[str, list[Instruction]],
    recipe: Recipe,
    loaded: dict[str, Any],
    batch_size: int,
    out: Path,
    timed: _Timed,
) -> None:
    """Held-out prompts to the base and to MoGU, each system and kind in a folder of its own."""
    for system in ("base", "mogu"):
        settings = loaded if system == "base" else {**loaded, "adapter": digest(trained.adapter)}
        with timed.step(f"evaluate {system}", f"evaluation: {system} answers held-out prompts") as said:
            for kind, group in prompts.items():
                with plain_base(trained.model) if system == "base" else nullcontext():
                    evaluate_suite(
                        trained.model,
                        tokenizer,
                        [{"id": one.id, "instruction": one.instruction, "category": one.category} for one in group],
                        max_new_tokens=recipe.evaluation.new_tokens,
                        batch_size=batch_size,
                        template=recipe.template,
                        out=_fresh(out / system / kind, settings, recipe, len(group)),
                        settings=settings,
                        progress=timed,
                    )
            said.append(f"{sum(map(len, prompts.values()))} answers")


def held_out(rows: Sequence[Instruction], count: int) -> dict[str, list[Instruction]]:
    """At most ``count`` test instructions of each kind; kinds without any are left out."""
    test = [row for row in rows if row.split == "test"]
    groups = {
        "malicious": [r for r in test if r.label == "malicious"],
        "benign": [r for r in test if r.label == "benign" and not r.borderline],
        "borderline": [r for r in test if r.borderline],
    }
    return {kind: group[:count] for kind, group in groups.items() if group}


class _Timed(Progress):
    """Passes everything on, and keeps the seconds that each step took."""

    def __init__(self, inner: Progress) -> None:
        self.inner = inner
        self.seconds: dict[str, float] = {}
        self._step, self._start = "", 0.0

    def begin(self, step: str, text: str) -> None:
        """As :meth:`Progress.begin`."""
        self._step, self._start = step, time.monotonic()
        self.inner.begin(step, text)

    def update(self, done: int, total: int) -> None:
        """As :meth:`Progress.update`."""
        self.inner.update(done, total)

    def end(self, text: str) -> None:
        """As :meth:`Progress.end`."""
        self.seconds[self._step] = round(self.seconds.get(self._step, 0.0) + time.monotonic() - self._start, 1)
        self.inner.end(text)

    @contextmanager
    def step(self, name: str, text: str) -> Iterator[list[str]]:
        """One step; what is appended to the list inside becomes its closing words."""
        said: list[str] = []
        self.begin(name, text)
        yield said
        self.end(", ".join(said))


def _fresh(folder: Path, settings: dict[str, Any], recipe: Recipe, count: int) -> Path:
    """``folder``, emptied of the evaluation of another adapter, or under another recipe."""
    wanted = {**settings, "new_tokens": recipe.evaluation.new_tokens, "template": recipe.template}
    try:
        before = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        same = before["n"] == count and all(before["settings"].get(key) == value for key, value in wanted.items())
    except (OSError, ValueError, KeyError):
        return folder
    if not same:
        shutil.rmtree(folder)
    return folder


def _suite(folder: Path, kind: str) -> dict[str, Any]:
    labels, systems = {}, {}
    for system in ("base", "mogu"):
        summary = json.loads((folder / system / kind / "summary.json").read_text(encoding="utf-8"))
        systems[system] = {key: summary[key] for key in ("n", "counts", "rates")}
        labels[system] = [row["label"] for row in read_responses(folder / system / kind)]
    return {
        "name": f"held-out {kind}",
        "kind": kind,
        "systems": systems,
        "mcnemar": {
            label: mcnemar(labels["base"], labels["mogu"], label) for label in ("refusal", "complied", "degenerate")
        },
    }


def _examples(folder: Path, kinds: Sequence[str]) -> list[dict[str, Any]]:
    """The first answers of each kind, base and MoGU side by side."""
    examples = []
    for kind in kinds:
        pairs = zip(read_responses(folder / "base" / kind), read_responses(folder / "mogu" / kind), strict=True)
        for before, after in list(pairs)[:EXAMPLES]:
            examples.append(
                {
                    "kind": kind,
                    "instruction": before["instruction"],
                    "base": {"response": before["response"], "label": before["label"]},
                    "mogu": {"response": after["response"], "label": after["label"]},
                }
            )
    return examples


def _machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} CPU cores, {platform.machine()}, {torch.get_num_threads()} threads"
