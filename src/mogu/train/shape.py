"""From a recipe to the configuration of the adapter that a run trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mogu.adapter.config import MoguConfig
from mogu.chat import response_ids
from mogu.errors import TrainingError
from mogu.recipe import AdapterRecipe, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def adapter_config(
    recipe: Recipe,
    layers: list[int] | None,
    tokenizer: PreTrainedTokenizerBase,
    model_name: str,
    lora: str | None = None,
) -> MoguConfig:
    """The adapter, before training.

    Args:
        recipe: Its shape.
        layers: Indices of the routed layers; ``None`` for all.
        tokenizer: Of the base.
        model_name: What the user calls the base.
        lora: Hash of the LoRA that was merged into it before.

    Raises:
        TrainingError: The tokenizer does not know what begins or ends a thought.
    """
    shape, backbone = recipe.adapter, recipe.backbone
    return MoguConfig(
        r=shape.rank,
        lora_alpha=shape.alpha,
        lora_dropout=shape.dropout,
        layers_to_transform=layers,
        backbone_modules=list(backbone.modules) or None,
        backbone_layers=backbone.reach,  # type: ignore[arg-type]
        backbone_rank=backbone.rank,
        backbone_alpha=backbone.alpha,
        router="folded" if recipe.routers.start == "fit" else "factored",
        router_width=shape.router_width,
        routed_tokens=shape.routed_tokens,
        think=shape.think,  # type: ignore[arg-type]
        think_tokens=None if shape.think == "ignore" else _think_tokens(shape, tokenizer),
        think_limit=shape.think_limit,
        base_model=model_name,
        base_lora=lora,
    )


def _think_tokens(shape: AdapterRecipe, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Ids of what begins and of what ends a thought."""
    marks = (shape.think_open, shape.think_close)
    found = [response_ids(tokenizer, mark, end_of_turn=False) for mark in marks]
    for mark, ids in zip(marks, found, strict=True):
        if mark.strip() not in tokenizer.decode(ids):
            raise TrainingError(f"the tokenizer does not know {mark!r}; set adapter.think_open and think_close")
    return found
