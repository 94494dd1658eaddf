"""What a recipe may hold: choices, ranges, fields that belong together."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from mogu.chat import TEMPLATES
from mogu.errors import ConfigError

if TYPE_CHECKING:
    from mogu.recipe import Recipe, SearchRecipe

BACKBONE = ("q", "k", "v", "o", "up", "gate", "down")
"""Modules that a backbone LoRA may be on."""
_CHOICES = {
    "layers": ("range", "probe", "random"),
    "reach": ("routed", "upper"),
    "think": ("ignore", "through"),
    "loss": ("ratio", "log_ratio"),
    "start": ("random", "fit"),
    "penalty": ("squared", "l1"),
    "fit_tokens": ("weighted", "equal", "prompt", "template"),
    "fit_states": ("routed", "base"),
    "select": ("last", "validation"),
    "handover": ("fixed", "risk", "all"),
    "template": (None, *TEMPLATES),
}
_AT_LEAST_ONE = {
    "rank",
    "router_width",
    "think_limit",
    "probe_rows",
    "fit_rows",
    "batch_size",
    "accumulation",
    "answer_tokens",
    "checkpoint_pairs",
    "checkpoint_rows",
    "prompts",
    "new_tokens",
    "limit",
    "pairs",
    "checkpoint",
    "first_prompts",
    "beaten_times",
}
_AT_LEAST_ZERO = {
    "epochs",
    "routed_tokens",
    "l2",
    "penalty_weight",
    "anchor_weight",
    "borderline_weight",
    "dropout",
    "layers_from",
    "hold_out",
    "borderline",
    "turns",
    "system_prompts",
    "begun",
    "broken",
}


def check(recipe: Recipe) -> None:
    """Find values out of range, and fields that contradict each other.

    Raises:
        ConfigError: One of these, by the name of the field.
    """
    for section in (recipe, *(getattr(recipe, f.name) for f in dataclasses.fields(recipe))):
        if not dataclasses.is_dataclass(section):
            continue
        for f in dataclasses.fields(section):
            value = getattr(section, f.name)
            if f.name in _CHOICES and value not in _CHOICES[f.name]:
                names = ", ".join(map(str, _CHOICES[f.name]))
                raise ConfigError(f"recipe field {f.name}: {value!r} is none of {names}")
            if f.name in _AT_LEAST_ONE and value is not None and value < 1:
                raise ConfigError(f"recipe field {f.name} must be at least 1, not {value}")
            if f.name in _AT_LEAST_ZERO and value < 0:
                raise ConfigError(f"recipe field {f.name} must be at least 0, not {value}")
            if f.name in ("learning_rate", "sharpness") and not value > 0:
                raise ConfigError(f"recipe field {f.name} must be above 0, not {value}")
            if f.name in ("dropout", "hold_out") and not value < 1:
                raise ConfigError(f"recipe field {f.name} must be below 1, not {value}")
    if not 0 <= recipe.adapter.layers_from < recipe.adapter.layers_to <= 1:
        raise ConfigError("recipe fields layers_from and layers_to must be shares of the depth, 0 <= from < to <= 1")
    if not 0 < recipe.adapter.layers_budget <= 1:
        raise ConfigError(f"recipe field layers_budget must be in (0, 1], not {recipe.adapter.layers_budget}")
    _check_backbone(recipe)
    for name in ("glad", "unwill"):
        if getattr(recipe, name).epochs < 1:
            raise ConfigError(f"recipe field {name}.epochs must be at least 1")
    if recipe.routers.rows is not None and recipe.routers.rows < 2:
        raise ConfigError("recipe field routers.rows must be at least 2: benign and malicious ones")
    if not 0 <= recipe.balance.risk_threshold <= 1:
        raise ConfigError(f"recipe field risk_threshold must be in [0, 1], not {recipe.balance.risk_threshold}")
    if not recipe.balance.shifts:
        raise ConfigError("recipe field balance.shifts needs at least one value")
    of_routers = [("routers", name) for name in ("borderline", "turns", "system_prompts")]
    for section, name in (*of_routers, ("glad", "begun"), ("unwill", "begun")):
        if (share := getattr(getattr(recipe, section), name)) > 1:
            raise ConfigError(f"recipe field {section}.{name} must be at most 1, not {share}")
    _check_search(recipe.search)
    if recipe.routers.start == "random" and recipe.routers.epochs == 0:
        raise ConfigError("recipe field routers.epochs must be at least 1 when the routers start at random")


def _check_backbone(recipe: Recipe) -> None:
    modules = recipe.backbone.modules
    if strange := [name for name in modules if name not in BACKBONE]:
        raise ConfigError(f"recipe field backbone.modules: {strange[0]!r} is none of {', '.join(BACKBONE)}")
    if modules and recipe.routers.epochs == 0:
        raise ConfigError("recipe field routers.epochs must be at least 1 where backbone.modules are trained with them")


def _check_search(search: SearchRecipe) -> None:
    for f in dataclasses.fields(search):
        values = getattr(search, f.name)
        if f.name.endswith("_by") and not (len(values) == 2 and 0 < values[0] <= 1 <= values[1]):
            raise ConfigError(f"recipe field search.{f.name} must be two factors, 0 < lowest <= 1 <= highest")
    if 1 not in search.rates or min(search.rates) <= 0:
        raise ConfigError("recipe field search.rates must hold 1, the recipe's own rate, and only factors above 0")
    if any(pairs < 1 for pairs in search.checkpoints or ()):
        raise ConfigError("recipe field search.checkpoints must hold numbers of pairs, at least 1")
    if search.shifts == ():
        raise ConfigError("recipe field search.shifts needs at least one value, or null")
