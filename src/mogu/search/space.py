"""What a search varies, as data: settings around a recipe, and the recipe that given values make of it. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mogu.data.rows import Row
from mogu.recipe import Recipe, ResponderRecipe

Values = Mapping[str, float]
"""A trial's value of each setting, by name."""
_ROUTERS = {
    "sharpness": "sharpness",
    "l2": "l2",
    "borderline_weight": "borderline_weight",
    "router_rate": "learning_rate",
    "penalty_weight": "penalty_weight",
    "borderline": "borderline",
}
"""Settings that are factors of a field of the routers' recipe."""


@dataclass(frozen=True)
class Setting:
    """One thing that is varied."""

    name: str
    own: float
    """Its value in the recipe as it is."""
    choices: tuple[float, ...] = ()
    """Its values, if they are few."""
    low: float = 1.0
    high: float = 1.0
    """Else the range of a factor, on a logarithmic scale."""


def settings(recipe: Recipe, rows: Sequence[Row]) -> list[Setting]:
    """All that a search varies besides δ; what the recipe does not use, or holds fast, is left out.

    Args:
        recipe: Whose ``search`` says how far.
        rows: All rows: a responder cannot be taken after more pairs than it is trained on.
    """
    search, routers = recipe.search, recipe.routers
    found = [Setting("rate", 1.0, search.rates)]
    for stage, label in (("glad", "malicious"), ("unwill", "benign")):
        pairs = sum(row.split == "train" and row.label == label for row in rows)
        found.append(
            Setting(f"{stage}_checkpoint", 0.0, (0.0, *checkpoints(getattr(recipe, stage), search.checkpoints, pairs)))
        )
    fitted, trained = routers.start == "fit", routers.epochs > 0
    for used, name in (
        (fitted and routers.sharpness > 0, "sharpness"),
        (fitted and routers.l2 > 0, "l2"),
        (fitted and routers.borderline_weight > 0, "borderline_weight"),
        (trained, "router_rate"),
        (trained and routers.penalty_weight > 0, "penalty_weight"),
        (any(row.borderline and row.split == "train" for row in rows) and routers.borderline > 0, "borderline"),
    ):
        low, high = getattr(search, f"{name}_by")
        if name == "borderline":
            high = min(high, 1 / routers.borderline)
        if used and low < high:
            found.append(Setting(name, 1.0, low=low, high=high))
    return [one for one in found if not one.choices or len(one.choices) > 1]


def checkpoints(responder: ResponderRecipe, wanted: Sequence[float] | None, pairs: int) -> tuple[float, ...]:
    """Pairs seen at which a responder may be taken, besides the recipe's own choice; each is a checkpoint of training.

    Args:
        responder: How it is trained.
        wanted: ``search.checkpoints`` of the recipe.
        pairs: Training rows of its label.
    """
    per_step = responder.batch_size * responder.accumulation
    steps = -(-min(pairs, responder.pairs or pairs) // per_step) * responder.epochs
    every = min(max(responder.checkpoint_pairs // per_step, 1), steps) * per_step
    if wanted is None and responder.checkpoint is not None:
        wanted = (responder.checkpoint / 2, responder.checkpoint * 2)
    elif wanted is None:
        wanted = (every, 2 * every, 4 * every)
    on_grid = {float(max(round(each / every), 1) * every) for each in wanted}
    return tuple(sorted(each for each in on_grid if each <= steps * per_step and each != responder.checkpoint))


def own_values(found: Sequence[Setting]) -> dict[str, float]:
    """The values that leave the recipe as it is."""
    return {one.name: one.own for one in found}


def settle(recipe: Recipe, values: Values) -> Recipe:
    """The recipe with a trial's values.

    >>> settle(Recipe(), {"rate": 2.0, "l2": 10.0}).glad.learning_rate
    0.0001
    """
    responders: dict[str, Any] = {}
    for stage in ("glad", "unwill"):
        responder: ResponderRecipe = getattr(recipe, stage)
        checkpoint = int(values.get(f"{stage}_checkpoint", 0)) or responder.checkpoint
        rate = _times(responder.learning_rate, values.get("rate", 1.0))
        responders[stage] = dataclasses.replace(responder, learning_rate=rate, checkpoint=checkpoint)
    changed: dict[str, Any] = {
        field: _times(getattr(recipe.routers, field), values[name])
        for name, field in _ROUTERS.items()
        if name in values
    }
    return dataclasses.replace(recipe, **responders, routers=dataclasses.replace(recipe.routers, **changed))


def _times(value: float, factor: float) -> float:
    """Three digits are enough, and short to read; a value that is left alone stays exactly what it is."""
    return value if factor == 1 else float(f"{value * factor:.3g}")


def shifts(recipe: Recipe) -> tuple[float, ...]:
    """Values of δ at which every trial is measured."""
    if recipe.search.shifts is not None:
        return tuple(sorted(set(recipe.search.shifts)))
    own = recipe.balance.shifts
    return tuple(sorted(set(own))) if len(set(own)) > 1 else tuple(own[0] + d for d in (-1.0, -0.5, 0.0, 0.5, 1.0))


def described(recipe: Recipe, values: Values) -> dict[str, float]:
    """What a trial changes in the recipe: names for people and new values; empty for the recipe as it is."""
    new = settle(recipe, values)
    shown: dict[str, float] = {}
    if new.glad.learning_rate != recipe.glad.learning_rate:
        shown["learning rate"] = new.glad.learning_rate
        if new.unwill.learning_rate != new.glad.learning_rate:
            shown["unwill's learning rate"] = new.unwill.learning_rate
    for stage in ("glad", "unwill"):
        if (checkpoint := getattr(new, stage).checkpoint) != getattr(recipe, stage).checkpoint:
            shown[f"{stage} pairs"] = checkpoint
    for name, field in _ROUTERS.items():
        if (value := getattr(new.routers, field)) != getattr(recipe.routers, field):
            shown[{"borderline": "borderline share"}.get(name, name.replace("_", " "))] = value
    return shown
