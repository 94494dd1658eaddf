"""Harden a chat model in one call: data, the three stages of training, evaluation, report."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mogu import processes
from mogu.adapter.model import active_config, mogu_layers
from mogu.data.build import build, choose_instructions
from mogu.data.rows import Instruction, Row, write_text
from mogu.defend import Target, create
from mogu.errors import ConfigError
from mogu.evaluate.report import write_report
from mogu.evaluate.run import WORK, Options, evaluate, stored_batch_size
from mogu.evaluate.suites import Prompts, Suite, spread
from mogu.models import load_base
from mogu.progress import Progress
from mogu.quantization import check_trainable
from mogu.recipe import RECIPE_FILE, Recipe
from mogu.respond import good_batch_size
from mogu.search import require_optuna
from mogu.train.card import model_card
from mogu.train.run import train
from mogu.versions import versions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
        search=change(recipe.search, checkpoints=(), on_target=0.0, first_prompts=1, broken=1.0),
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
    offload: str | None = None,
    track: tuple[str, ...] | None = None,
    search: int | None = None,
    pick: str = "balance",
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
        quantize: As for :func:`mogu.models.load_base`.
        offload: As for :func:`mogu.models.load_base`.
        track: As for :func:`mogu.train.run.train`.
        search: Vary the recipe in so many trials first, and train the one that is picked (:mod:`mogu.search`).
        pick: Which of them: as for :func:`mogu.search.choice.pick`.
        progress: Told what happens.

    Returns:
        The summary that the report draws.

    Raises:
        MoguError: Whatever the user can mend, in one line.
    """
    processes.need_whole("hardening")
    if search is not None and processes.count() > 1:
        raise ConfigError(
            "--search works in one process; search without a launcher, then train the picked recipe with it"
        )
    out, progress = Path(out), progress or Progress()
    timed = _Timed(progress)
    with timed.step("model", f"model: loads {model}") as said:
        instructions = choose_instructions(benign, malicious, recipe.data.limit)
        # From this file mogu runs knows a run folder.
        processes.from_main(lambda: write_text(out / RECIPE_FILE, recipe.to_yaml()))
        base, tokenizer = load_base(model, dtype=dtype, device=device, quantize=quantize, offload=offload)
        check_trainable(base)
        texts = [one.instruction for one in instructions]
        batch_size = processes.from_main(lambda: good_batch_size(base, tokenizer, texts, template=recipe.template))
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
    searched: dict[str, Any] = {}
    if search is not None:
        options = {"trials": search, "rule": pick, "model_name": model, "batch_size": batch_size, "track": track or ()}
        base, recipe, searched = _search(base, tokenizer, rows, recipe, out, timed, **options)
    trained = train(
        base, tokenizer, rows, recipe, out, model_name=model, batch_size=batch_size, track=track, progress=timed
    )
    adapter = active_config(trained.model)
    layers = [index for index, _ in mogu_layers(trained.model)]
    target = Target(
        model=trained.model.unload(),
        tokenizer=tokenizer,
        name=model,
        workspace=out / "evaluation" / WORK / "learnt",
        template=recipe.template,
        adapter=trained.adapter,
        batch_size=processes.from_main(lambda: stored_batch_size(out / "evaluation")) or batch_size,
    )
    loaded = {"model": model, "dtype": str(base.dtype).removeprefix("torch."), "quantize": quantize}
    found = _evaluate(target, held_out(rows, recipe.evaluation.prompts), recipe, loaded, out / "evaluation", timed)
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
            "shift": adapter.shift,
            "layers": layers,
            **{key: found["settings"][key] for key in ("new_tokens", "decoding")},
        },
        "seconds": timed.seconds,
        "selection": trained.selection,
        **searched,
        **{key: found[key] for key in ("defenses", "suites", "flips", "examples", "cost", "routers")},
    }
    processes.from_main(lambda: _write(summary, trained.adapter, recipe, out))
    return summary


def _write(summary: dict[str, Any], adapter: Path, recipe: Recipe, out: Path) -> None:
    write_text(out / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    write_report(summary, out / "report.html")
    record = json.loads((adapter / "mogu.json").read_text(encoding="utf-8"))
    write_text(adapter / "README.md", model_card(recipe, record, summary))


def _search(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    recipe: Recipe,
    out: Path,
    timed: _Timed,
    **options: Any,
) -> tuple[PreTrainedModel, Recipe, dict[str, Any]]:
    """The base as it was, the recipe that was picked, and what the summary says of the search."""
    require_optuna()
    from mogu.search.run import search

    start = time.monotonic()
    found = search(base, tokenizer, rows, recipe, out, progress=timed.inner, **options)
    timed.seconds["search"] = round(time.monotonic() - start, 1)
    return found.base, found.recipe, {"search": found.summary}


def _evaluate(
    target: Target,
    prompts: dict[str, list[Instruction]],
    recipe: Recipe,
    loaded: dict[str, Any],
    out: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Held-out prompts to the base and to MoGU; what is there of another adapter or recipe is done again."""
    suites = []
    for kind, group in prompts.items():
        rows = [{"id": one.id, "instruction": one.instruction, "category": one.category} for one in group]
        suites.append(Prompts(Suite(f"held-out {kind}", kind), rows))
    pipelines = [create("none", target), create("mogu", target)]
    options = Options(recipe.evaluation.new_tokens, measures=False, fresh=True)
    return evaluate(pipelines, suites, out, settings=loaded, options=options, progress=progress)


def held_out(rows: Sequence[Instruction], count: int) -> dict[str, list[Instruction]]:
    """At most ``count`` test instructions of each kind, evenly spaced; kinds without any are left out."""
    test = [row for row in rows if row.split == "test"]
    groups = {
        "malicious": [r for r in test if r.label == "malicious"],
        "benign": [r for r in test if r.label == "benign" and not r.borderline],
        "borderline": [r for r in test if r.borderline],
    }
    return {kind: spread(group, count) for kind, group in groups.items() if group}


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


def _machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} CPU cores, {platform.machine()}, {torch.get_num_threads()} threads"
