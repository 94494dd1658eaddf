"""What a training run will take: parameters, memory, steps and time, tried on two real steps of each stage.

Nothing is written to the run folder, and the model is of no use afterwards.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from mogu.adapter.model import decoder_layers, mogu_layers, set_stage
from mogu.data.rows import Row
from mogu.models import default_device, empty_base, parameter_dtype, parse_dtype
from mogu.offload import available_memory, budget, is_offloaded, least_bytes, placement
from mogu.progress import Progress
from mogu.quantization import quantization_of, quantized_bytes, saved_quantization, stored_bytes
from mogu.recipe import Recipe, routed_layers
from mogu.train.batches import Encoder
from mogu.train.check import check_data
from mogu.train.fit import fit_routers, lay_out
from mogu.train.layers import random_layers, sampled
from mogu.train.memory import Forwards
from mogu.train.run import RESPONDERS, Run
from mogu.train.selection import RESPONDER_TOKENS, responder_rows, validation_groups

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STEPS = 2
"""Real steps of each stage that are tried."""
_FIT_ROWS = 24
"""Rows of each label on which a fit is tried."""
_ADAPTER_BYTES = 4
"""The adapter is float32 whatever the base is; its gradients are too, and AdamW keeps two more numbers for each."""


@dataclass(frozen=True)
class StageEstimate:
    """One stage of training; sizes in bytes."""

    stage: str
    trainable: int
    """Parameters that learn."""
    steps: int
    """Optimizer steps; of the balance, shifts to try; of a fit, one."""
    rows_per_step: int
    rows_per_forward: int
    seconds_per_step: float | None
    """``None``: not tried, because it does not fit."""
    checks: int
    """Validations on the way, at most."""
    seconds_per_check: float | None
    gradients: int
    optimizer: int
    activations: int
    """What a forward of the longest rows keeps for its backward pass; of a fit, what its forward holds."""

    @property
    def seconds(self) -> float | None:
        """At most so long; training may stop at an earlier checkpoint."""
        if self.seconds_per_step is None or (self.checks and self.seconds_per_check is None):
            return None
        return self.steps * self.seconds_per_step + self.checks * (self.seconds_per_check or 0.0)

    @property
    def memory(self) -> int:
        """Besides the weights."""
        return self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class Estimate:
    """A whole run; sizes in bytes."""

    model: str
    parameters: int
    """Of the base."""
    dtype: str
    """Of its parameters, or how it is quantized."""
    device: str
    weights: int
    """Base and adapter; of a base whose layers stream, what is on the device at a time."""
    available: int
    """Memory of the device that a run can have, weights included."""
    layers: tuple[int, ...]
    """Routed decoder layers."""
    depth: int
    """Decoder layers of the base."""
    stages: tuple[StageEstimate, ...]
    """Empty if not even the weights fit."""
    lighter: dict[str, int] = field(default_factory=dict)
    """What the base's weights would be otherwise, by the option that makes them so; empty if one is taken."""

    @property
    def memory(self) -> int:
        """Of the stage that takes most."""
        return self.weights + max((stage.memory for stage in self.stages), default=0)

    @property
    def fits(self) -> bool:
        """Whether the machine has as much."""
        return self.memory <= self.available

    @property
    def seconds(self) -> float | None:
        """At most so long, without loading and evaluation; ``None`` if a stage could not be tried."""
        times = [stage.seconds for stage in self.stages]
        known = [one for one in times if one is not None]
        return sum(known) if times and len(known) == len(times) else None


def weigh(
    model: str, *, dtype: str | None, device: str | None, quantize: str | None, offload: str | None = None
) -> Estimate:
    """The weights alone, without loading them: whether to load them at all.

    Raises:
        ModelError: The model's configuration cannot be read.
        ConfigError: An unknown dtype, or an offload that leaves no room for one layer.
    """
    base, place = empty_base(model), default_device(device)
    kind = parameter_dtype(base, parse_dtype(dtype, quantize, place))
    quantize = quantize or saved_quantization(base.config)
    weights = quantized_bytes(base, quantize, kind.itemsize)
    if offload is not None:
        places = placement(base, kind.itemsize, place, budget(offload, place))
        weights = min(weights, _resident(base, places, place, kind.itemsize))
    return Estimate(
        model=model,
        parameters=sum(p.numel() for p in base.parameters()),
        dtype=quantize or str(kind).removeprefix("torch."),
        device=place,
        weights=weights,
        available=available_memory(place),
        layers=(),
        depth=base.config.get_text_config().num_hidden_layers,
        stages=(),
        lighter={} if quantize or offload else _lighter(base, kind.itemsize),
    )


def _lighter(base: PreTrainedModel, itemsize: int) -> dict[str, int]:
    ways = {f"--quantize {bits}": quantized_bytes(base, bits, 2) for bits in ("8bit", "4bit")}
    return {**ways, "--offload auto": least_bytes(base, itemsize)}


def _resident(base: PreTrainedModel, places: dict[str, str], device: str, itemsize: int) -> int:
    """Bytes on the device while the largest of the layers elsewhere passes through."""
    sizes = {name: sum(p.numel() for p in base.get_submodule(name).parameters()) * itemsize for name in places}
    streaming = max((sizes[name] for name, place in places.items() if place != device), default=0)
    tied = sum(sizes.values()) - itemsize * sum(p.numel() for p in base.parameters())
    return sum(sizes[name] for name, place in places.items() if place == device) + streaming - tied


def estimate(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    recipe: Recipe,
    *,
    model_name: str,
    batch_size: int = 32,
    available: int | None = None,
    progress: Progress | None = None,
) -> Estimate:
    """Try what :func:`mogu.train.run.train` would do: two steps of each stage, and a few validation answers.

    Before a stage is tried, its memory is foretold from a forward of its shortest row; if it does not fit, it is not
    tried.

    Args:
        base: The base model; it is wrapped in place, and its adapter is of no use afterwards.
        tokenizer: Its tokenizer.
        rows: A built data set.
        recipe: Every number of the run.
        model_name: What the user calls the base.
        batch_size: Prompts at a time while validating.
        available: Bytes that the run may take, weights included; ``None`` is what is free now, and the weights.
        progress: Told what happens.

    Raises:
        TrainingError: As :func:`mogu.train.run.train`, where that can be known before.
    """
    check_data(base.config, tokenizer, rows, recipe)
    parameters, quantization = base.num_parameters(), quantization_of(base)
    plain = quantization is None and not is_offloaded(base)
    lighter = _lighter(base, base.dtype.itemsize) if plain else {}
    with tempfile.TemporaryDirectory(prefix="mogu-estimate.") as folder:
        run = _Rehearsal(base, tokenizer, rows, recipe, Path(folder), model_name, batch_size, progress or Progress())
        weights = sum(stored_bytes(t) for t in (*run.model.parameters(), *run.model.buffers())) + _passing(base)
        room = available_memory(base.device) + weights if available is None else available
        stages = run.rehearse(room - weights)
    return Estimate(
        model=model_name,
        parameters=parameters,
        dtype=quantization or str(base.dtype).removeprefix("torch."),
        device=str(base.device),
        weights=weights,
        available=room,
        layers=tuple(index for index, _ in mogu_layers(run.model)),
        depth=base.config.get_text_config().num_hidden_layers,
        stages=tuple(stages),
        lighter=lighter,
    )


def _passing(base: PreTrainedModel) -> int:
    """Bytes of the largest decoder layer whose weights wait elsewhere."""
    waiting = (
        sum(p.numel() * p.element_size() for p in layer.parameters() if p.is_meta)
        for layer in (decoder_layers(base) if is_offloaded(base) else [])
    )
    return max(waiting, default=0)


class _Tried(Exception):
    """Thrown where training would begin, when the steps were tried."""


class _Rehearsal(Run):
    """A run that tries a few steps of each stage instead of training it."""

    room = 0
    """Bytes that a stage may take besides the weights."""
    tried: StageEstimate
    """Of the stage that was tried last."""

    def rehearse(self, room: int) -> list[StageEstimate]:
        """All stages, one after the other."""
        self.room = room
        found = []
        for stage, text in RESPONDERS:
            self.progress.begin(stage, f"{text}: tries {STEPS} steps")
            with contextlib.suppress(_Tried):
                self._responder(stage, getattr(self.recipe, stage), "")
            found.append(self.tried)
            self.progress.end("")
        set_stage(self.model, "routed")
        self.progress.begin("routers", "routers and balance: tries them")
        if self.recipe.routers.start == "fit":
            found.append(self._try_fit())
        if self.recipe.routers.epochs > 0:
            with contextlib.suppress(_Tried):
                self._train_routers("", frozenset())
            found.append(self.tried)
        if len(self.recipe.balance.shifts) > 1:
            found.append(self._try_balance())
        self.progress.end("")
        return found

    def _layers(self, base: Any, folder: Path) -> list[int] | None:
        """Not probed for: the uppermost layers, as many as will be chosen."""
        shape, depth = self.recipe.adapter, base.config.get_text_config().num_hidden_layers
        if shape.layers == "range":
            return routed_layers(shape, depth)
        return list(range(depth - len(random_layers(depth, shape.layers_budget, 0)), depth))

    def _reporters(self, stage: str) -> list[TrainerCallback]:
        return []

    def _watch_start(self, watch: Any, file: Path) -> None:
        """Nothing is checked."""

    def _keep_lower(self, trainer: Any, rows: Sequence[Row], folder: Path, forward: Any) -> None:
        """The first pass over the rows, which is what is tried, computes all layers."""

    def _run_trainer(self, trainer: Any, folder: Path, watch: Any) -> None:
        self.tried = self._try_steps(trainer, folder.name.removesuffix(".work"), watch is not None)
        raise _Tried

    def _try_steps(self, trainer: Any, stage: str, checked: bool) -> StageEstimate:
        args = trainer.args
        steps, rows = args.max_steps, sorted(trainer.train_dataset.rows, key=_length)
        together = args.per_device_train_batch_size
        longest = trainer.data_collator(rows[-together:])["input_ids"].numel()
        trainable = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        learning = 3 * _ADAPTER_BYTES * trainable
        forwards = Forwards(trainer)
        self.model.train()
        shortest = trainer.data_collator(rows[:1])
        trainer.compute_loss(self.model, {name: tensor.to(self.model.device) for name, tensor in shortest.items()})
        seconds = None
        if learning + forwards.kept(longest) <= self.room:
            watch = _Stopwatch()
            trainer.add_callback(watch)
            args.max_steps, args.save_strategy = min(STEPS, steps), "no"
            trainer.train()
            seconds = sum(watch.seconds) / len(watch.seconds)
        check = None
        if checked and seconds is not None:
            check = _timed(lambda: self.ask.answers(responder_rows(self.rows), RESPONDER_TOKENS))
        return StageEstimate(
            stage=stage,
            trainable=trainable,
            steps=steps,
            rows_per_step=together * args.gradient_accumulation_steps,
            rows_per_forward=together,
            seconds_per_step=seconds,
            checks=-(-steps // args.save_steps) if checked else 0,
            seconds_per_check=check,
            gradients=_ADAPTER_BYTES * trainable,
            optimizer=2 * _ADAPTER_BYTES * trainable,
            activations=forwards.kept(longest),
        )

    def _try_fit(self) -> StageEstimate:
        """A fit on some rows; one on all of them is about as much longer as there are more tokens."""
        recipe = self.recipe.routers
        encode = Encoder(self.tokenizer, self.recipe.template, recipe.answer_tokens)
        sample = [row for label in ("malicious", "benign") for row in self._pairs(label, _FIT_ROWS)]
        fitted = sampled(self.train_rows, recipe.fit_rows)
        tokens, width = self._fit_tokens(encode, fitted)
        config = self.model.config.get_text_config()
        inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
        memory = tokens * (6 * config.hidden_size + 3 * inner + width) * self.model.dtype.itemsize
        seconds = None
        if memory <= self.room:
            fit = {name: value for name, value in asdict(recipe).items() if name in _FIT_SETTINGS}
            seconds = _timed(lambda: fit_routers(self.model, encode, sample, **fit))
            seconds *= max(tokens / self._fit_tokens(encode, sample)[0], 1.0)
        return StageEstimate(
            stage="routers (fit)",
            trainable=sum(
                p.numel() for name, p in self.model.named_parameters() if p.requires_grad and "backbone" not in name
            ),
            steps=1,
            rows_per_step=len(fitted),
            rows_per_forward=len(fitted),
            seconds_per_step=seconds,
            checks=0,
            seconds_per_check=None,
            gradients=0,
            optimizer=0,
            activations=memory,
        )

    def _fit_tokens(self, encode: Encoder, rows: Sequence[Row]) -> tuple[int, int]:
        """Positions of a fitting pass over ``rows``, padding included, and those of one line of its batch."""
        routers = self.recipe.routers
        layout, _ = lay_out(self.model, encode, rows, turns=routers.turns, system_prompts=routers.system_prompts)
        return layout.size, layout.inputs["input_ids"].shape[1]

    def _try_balance(self) -> StageEstimate:
        """Some answers; each shift asks every prompt for its head, and for the whole answer where the head is new."""
        recipe = self.recipe.balance
        prompts = sum(map(len, validation_groups(self.rows, recipe.prompts).values()))
        sample = responder_rows(self.rows)
        tokens = self.recipe.adapter.routed_tokens + recipe.new_tokens
        seconds = _timed(lambda: self.ask.answers(sample, tokens)) * prompts / len(sample)
        return StageEstimate(
            stage="balance",
            trainable=0,
            steps=len(recipe.shifts),
            rows_per_step=prompts,
            rows_per_forward=min(self.ask.batch_size, prompts),
            seconds_per_step=seconds,
            checks=0,
            seconds_per_check=None,
            gradients=0,
            optimizer=0,
            activations=0,
        )


_FIT_SETTINGS = ("l2", "borderline_weight", "sharpness", "turns", "system_prompts")


class _Stopwatch(TrainerCallback):
    """Seconds of each optimizer step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the forwards of a step."""
        self._start = _now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the optimizer's turn."""
        self.seconds.append(_now() - self._start)


def _timed(work: Any) -> float:
    start = _now()
    work()
    return _now() - start


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _length(row: Row) -> int:
    return len(row.instruction) + max(len(row.glad), len(row.unwill))
