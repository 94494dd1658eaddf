"""An estimate for people: tables, totals, and what to change where it does not fit."""

from __future__ import annotations

import math

from mogu.recipe import Recipe
from mogu.train.estimate import Estimate, StageEstimate


def text_table(found: Estimate) -> list[list[str]]:
    """Header, and a row for each stage."""
    header = [
        "stage",
        "trainable",
        "steps",
        "rows/step",
        "s/step",
        "time at most",
        "gradients",
        "optimizer",
        "activations",
    ]
    return [header, *(_row(stage) for stage in found.stages)]


def _row(stage: StageEstimate) -> list[str]:
    return [
        stage.stage,
        count(stage.trainable),
        str(stage.steps),
        str(stage.rows_per_step),
        "–" if stage.seconds_per_step is None else f"{stage.seconds_per_step:.2f}",
        "–" if stage.seconds is None else duration(stage.seconds),
        *(size(part) for part in (stage.gradients, stage.optimizer, stage.activations)),
    ]


def conclusion(found: Estimate, recipe: Recipe) -> list[str]:
    """Lines under the table: the base, memory, time, and advice where memory does not suffice."""
    layers = f"; {len(found.layers)} of {found.depth} layers routed" if found.layers else ""
    lines = [
        f"base:   {found.model}, {count(found.parameters)} parameters, {found.dtype} on {found.device}{layers}",
        f"memory: {size(found.memory)} at the peak, {size(found.weights)} of it weights; "
        f"{size(found.available)} available",
    ]
    if found.seconds is not None:
        lines.append(f"time:   {duration(found.seconds)} at most, without loading the model and building data")
    if not found.fits:
        lines += ["", "It does not fit. Alone or together:", *(f"  {line}" for line in advice(found, recipe))]
    return lines


def advice(found: Estimate, recipe: Recipe) -> list[str]:
    """What lowers the peak of memory, with what it would then be about."""
    options: list[tuple[str, int]] = []
    worst = max(found.stages, key=lambda stage: stage.memory, default=None)
    rest = found.memory - (worst.activations if worst else 0)
    section = getattr(recipe, worst.stage, None) if worst else None
    if worst is not None and section is not None and section.batch_size > 1:
        name, forwards = worst.stage, section.batch_size * section.accumulation
        options.append(
            (
                f"recipe: {name}.batch_size: 1 and {name}.accumulation: {forwards}, the same steps in smaller forwards",
                rest + worst.activations // section.batch_size,
            )
        )
    if worst is not None and worst.stage == "routers (fit)":
        options.append(("recipe: data.limit, half as many rows", rest + worst.activations // 2))
    if worst is not None and worst.gradients and found.layers:
        options += _cheaper_graph(found, recipe, worst, rest)
    if worst is not None and worst.gradients and found.layers and (below := found.layers[0] / found.depth) < 0.5:
        share = 0.5 / (1 - below)
        options.append(
            (
                "recipe: adapter.layers_from: 0.5, nothing is kept below the first routed layer",
                rest + round(worst.activations * share),
            )
        )
    if found.dtype == "float32":
        options.append(("--dtype bfloat16, half the weights", found.memory - found.weights // 2))
    for option, weights in found.lighter.items():
        if weights < found.weights:
            options.append((f"{option}{_EFFECTS[option]}", found.memory - found.weights + weights))
    options.append(("a smaller model, or a machine with more memory", 0))
    return [f"{text}: about {size(memory)}" if memory else text for text, memory in options]


_EFFECTS = {
    "--quantize 8bit": "",
    "--quantize 4bit": "",
    "--offload auto": ", layers wait in main memory or on disk; slower",
}


def _cheaper_graph(found: Estimate, recipe: Recipe, worst: StageEstimate, rest: int) -> list[tuple[str, int]]:
    """Ways to keep less of a forward for its backward pass; what they leave is a rule of thumb."""
    options, graph = [], found.depth - found.layers[0]
    if not recipe.compute.gradient_checkpointing and graph > 2:
        options.append(
            (
                "recipe: compute.gradient_checkpointing: true, layers computed again in backward; slower",
                rest + 2 * worst.activations // graph,
            )
        )
    if not recipe.compute.bf16 and found.dtype == "float32":
        options.append(("recipe: compute.bf16: true, products in bfloat16", rest + 2 * worst.activations // 3))
    return options


def count(number: int) -> str:
    """Parameters, short: 134.5 M.

    >>> count(950), count(184320), count(134515008)
    ('950', '184.3 k', '134.5 M')
    """
    for unit, factor in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return str(number)


def size(number: int) -> str:
    """Bytes, short: 1.5 GiB.

    >>> size(0), size(1536), size(5 * 2**30)
    ('0', '1.5 KiB', '5.0 GiB')
    """
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return str(number)


def duration(seconds: float) -> str:
    """Seconds, short: 12 min.

    >>> duration(4.2), duration(700), duration(9000)
    ('5 s', '12 min', '2 h 30 min')
    """
    whole = max(math.ceil(seconds), 1)
    if whole < 90:
        return f"{whole} s"
    minutes = -(-whole // 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
