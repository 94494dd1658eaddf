"""Which layers a run routes: the hidden states of a base's layers, probed; the table that a run folder keeps."""

from __future__ import annotations

import inspect
import json
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mogu import processes
from mogu.adapter.model import layers_with_projection
from mogu.chat import pad_prompts, prompt_ids
from mogu.data.rows import Row, write_text
from mogu.prefix import fits, pad_after, prefilled
from mogu.progress import Progress
from mogu.recipe import Recipe, routed_layers
from mogu.respond import by_length, shared_beginning
from mogu.train.lower import reserve
from mogu.train.probe import L2, Choice, Score, choose_layers, held_out_parts, score

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STATES = ("projection, last", "projection, mean", "residual, last", "residual, mean")
"""What is probed: the attention output projection's input, which routers read, and the residual stream that enters the
layer; at the last prompt token, and the mean over the instruction."""
LAYERS_FILE = "layers.json"
CHOOSING = STATES[0]
"""The states by which layers are chosen, all that a training run probes: routers decide about the first token there."""


@dataclass(frozen=True)
class Probed:
    """What a probe of all layers found."""

    rows: dict[str, int]
    """How many of each kind."""
    held_out: list[str]
    """Ways of holding out: ``categories``, ``sources``, or only ``rows``."""
    l2: float
    scores: dict[str, list[Score]]
    """By kind of states (:data:`STATES`), of each layer from the first up."""

    def choice(self, budget: float) -> Choice:
        """The layers to route, of a share of all."""
        return choose_layers([one.log_loss for one in self.scores[CHOOSING]], budget)

    def record(self, budget: float) -> dict[str, Any]:
        """Ready for JSON, with the choice."""
        return {
            "rows": self.rows,
            "held_out": self.held_out,
            "l2": self.l2,
            "chosen_by": CHOOSING,
            "budget": budget,
            "chosen": asdict(self.choice(budget)),
            "scores": {name: [asdict(one) for one in each] for name, each in self.scores.items()},
        }


def probe_layers(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    *,
    batch_size: int = 32,
    template: str | None = None,
    states: Sequence[str] = STATES,
    l2: float = L2,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Probed:
    """Probe every layer of a base on the training rows.

    Args:
        base: The base model, without an adapter.
        tokenizer: Its tokenizer.
        rows: A built data set; validation and test rows are not looked at.
        batch_size: Prompts at a time.
        template: As for :func:`mogu.chat.prompt_ids`.
        states: Which of :data:`STATES`.
        l2: As for :func:`mogu.train.probe.score`.
        limit: At most so many rows of each kind (:func:`sampled`); default: all.
        progress: Called with (layers scored, layers in all).

    Raises:
        TrainingError: Only one label in the training rows.
        AdapterError: The architecture's attention output projection is not known.
        OSError: There is no room for the states on disk.
    """
    rows = sampled([row for row in rows if row.split == "train"], limit)
    parts = held_out_parts(rows)
    with _read(base, tokenizer, rows, batch_size, template, states) as found:
        depth = len(found[states[0]])
        scores: dict[str, list[Score]] = {name: [] for name in states}
        for layer in range(depth):
            for name in states:
                scores[name].append(score(found[name][layer].float(), rows, parts, l2))
            if progress is not None:
                progress(layer + 1, depth)
    kinds = ["borderline" if row.borderline else row.label for row in rows]
    return Probed({kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}, list(parts), l2, scores)


def sampled(rows: Sequence[Row], limit: int | None) -> list[Row]:
    """At most so many malicious, benign and borderline rows, evenly spaced; the twins of malicious ones come first."""
    if limit is None:
        return list(rows)
    malicious = _spaced([row for row in rows if row.label == "malicious"], limit)
    ids = {row.id for row in malicious}
    borderline = sorted((row for row in rows if row.borderline), key=lambda row: row.twin not in ids)
    benign = _spaced([row for row in rows if row.label == "benign" and not row.borderline], limit)
    return [*malicious, *benign, *borderline[:limit]]


def _spaced(rows: Sequence[Row], count: int) -> list[Row]:
    return [rows[index * len(rows) // count] for index in range(count)] if len(rows) > count else list(rows)


@contextmanager
def _read(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    batch_size: int,
    template: str | None,
    states: Sequence[str],
) -> Iterator[dict[str, list[torch.Tensor]]]:
    """By kind, the states (rows, width) of each layer, in files that go when the block ends."""
    layers = layers_with_projection(base)
    ids = [prompt_ids(tokenizer, row.instruction, template=template) for row in rows]
    begin, end = _common(ids), _common([one[::-1] for one in ids])
    shared = shared_beginning(base, tokenizer, ids, template)
    with tempfile.TemporaryDirectory(prefix="mogu-probe.") as folder:
        reader = _Reader(Path(folder), layers, len(rows), states)
        with torch.inference_mode(), reader.listening():
            for indices in by_length(ids, batch_size):
                group = [ids[index] for index in indices]
                read = len(shared) if shared and fits(shared, group) else 0
                if read:
                    batch = pad_after(tokenizer, shared, group, base.device)
                else:
                    batch = pad_prompts(tokenizer, group, base.device)
                options: dict[str, Any] = {"use_cache": False}
                if read:
                    reader.indices = []
                    cache = prefilled(base, batch["input_ids"][:1, :read], len(group))
                    options = {"past_key_values": cache, "use_cache": True}
                reader.indices = indices
                last = batch["input_ids"].shape[1] - read - end
                lengths = torch.tensor([len(one) - begin - end for one in group], device=base.device)
                reader.span = ((last - lengths).clamp(max=last - 1), last)
                base.base_model(**_inputs(base, batch, read), **options)
        yield reader.found


def _inputs(base: PreTrainedModel, batch: dict[str, torch.Tensor], read: int) -> dict[str, torch.Tensor]:
    """A batch without the first ``read`` columns, which a cache holds; positions, if the base takes them."""
    mask = batch["attention_mask"]
    made = {"input_ids": batch["input_ids"][:, read:], "attention_mask": mask}
    if "position_ids" in inspect.signature(base.forward).parameters:
        made["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, read:]
    return made


def _common(ids: Sequence[Sequence[int]]) -> int:
    """With so many equal tokens all begin."""
    return next((n for n, column in enumerate(zip(*ids, strict=False)) if len(set(column)) > 1), min(map(len, ids)))


class _Reader:
    """Writes what enters each layer and its projection to files, prompt by prompt."""

    def __init__(
        self, folder: Path, layers: Sequence[tuple[nn.Module, nn.Module]], count: int, states: Sequence[str]
    ) -> None:
        self.folder, self.layers, self.count = folder, layers, count
        self.found: dict[str, list[torch.Tensor]] = {name: [] for name in states}
        self.indices: list[int] = []
        """Rows of the batch that is read; none: what is read does not count."""
        self.span: tuple[torch.Tensor, int] = (torch.empty(0), 0)
        """The first column of the instruction of each row, and the one after its last, of all rows."""

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Around the forwards."""
        handles = []
        for number, (layer, projection) in enumerate(self.layers):
            for kind, module in (("projection", projection), ("residual", layer)):
                if any(name.startswith(kind) for name in self.found):
                    hook = self._hook(kind, number)
                    handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, kind: str, number: int) -> Callable[..., None]:
        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not self.indices:
                return
            x = args[0] if args else kwargs["hidden_states"]
            columns = torch.arange(x.shape[1], device=x.device)[None]
            inside = ((columns >= self.span[0][:, None]) & (columns < self.span[1])).to(x.dtype)
            mean = (x * inside[:, :, None]).sum(dim=1) / inside.sum(dim=1, keepdim=True)
            for place, values in (("last", x[:, -1]), ("mean", mean)):
                if (name := f"{kind}, {place}") in self.found:
                    self._file(name, number, values)[self.indices] = values.cpu()

        return keep

    def _file(self, name: str, number: int, values: torch.Tensor) -> torch.Tensor:
        each = self.found[name]
        if number == len(each):
            size = self.count * values.shape[1]
            file = self.folder / f"{len(list(self.folder.iterdir()))}.states"
            reserve(file, size * values.dtype.itemsize)
            made = torch.from_file(str(file), shared=True, size=size, dtype=values.dtype)
            each.append(made.view(self.count, values.shape[1]))
        return each[number]


def random_layers(depth: int, budget: float, seed: int) -> tuple[int, ...]:
    """As many layers as a probe would choose, drawn by chance: what a choice must beat."""
    k = min(max(round(budget * depth), 1), depth)
    return tuple(sorted(random.Random(seed).sample(range(depth), k)))


def routed_by(
    recipe: Recipe,
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    folder: Path,
    *,
    inputs: Sequence[Any],
    batch_size: int,
    progress: Progress,
) -> list[int] | None:
    """Indices of the layers that a run routes; ``None`` for all of them.

    A probe's table is kept in ``FOLDER/layers.json``, and read from there by a run that goes on.

    Args:
        recipe: Says how they are found.
        base: The base model, without an adapter.
        tokenizer: Its tokenizer.
        rows: A built data set.
        folder: Where the table lies.
        inputs: What it depends on besides the recipe.
        batch_size: Prompts at a time.
        progress: Told what happens.
    """
    shape = recipe.adapter
    depth = base.config.get_text_config().num_hidden_layers
    if shape.layers == "range":
        return routed_layers(shape, depth)
    if shape.layers == "random":
        return list(random_layers(depth, shape.layers_budget, recipe.seed))
    inputs, file = [*inputs, recipe.template, L2, shape.probe_rows], folder / LAYERS_FILE
    scores = processes.from_main(lambda: _known(file, inputs))
    if scores is None:
        progress.begin("layers", "layers: probes every layer of the base for what is asked")

        def probe() -> list[float]:
            found = probe_layers(
                base,
                tokenizer,
                rows,
                batch_size=batch_size,
                template=recipe.template,
                states=(CHOOSING,),
                limit=shape.probe_rows,
                progress=progress.update,
            )
            write_text(file, json.dumps({"inputs": inputs, **found.record(shape.layers_budget)}, indent=1) + "\n")
            return [one.log_loss for one in found.scores[CHOOSING]]

        scores = processes.from_main(probe)
        progress.end(f"{depth} layers")
    return list(choose_layers(scores, shape.layers_budget).layers)


def _known(file: Path, inputs: Sequence[Any]) -> list[float] | None:
    """Log-losses of an earlier probe of the same base and data."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if record["inputs"] != json.loads(json.dumps(inputs)):
            return None
        return [float(one["log_loss"]) for one in record["scores"][CHOOSING]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
