"""Attention of a step: query heads that share a key head ask it together.

transformers' ``sdpa`` (5.17) copies keys and values for every query head when there is a mask. In a step each row has
one query, so the heads of a group can stand where the tokens of a longer query would, and nothing is copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

NAME = "mogu_grouped"
_INSTEAD_OF = "sdpa"


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """What ``sdpa`` gives, (rows, tokens, heads, width), of the same arguments: all but steps is left to it.

    Args:
        module: The attention layer.
        query: (rows, heads, tokens, width).
        key: (rows, key heads, columns, width).
        value: Likewise.
        attention_mask: (rows, 1, tokens, columns), added to the scores.
        **options: ``scaling`` of the scores; with a ``position_bias`` or dropout it is left to ``sdpa``, too.
    """
    rows, heads, tokens, width = query.shape
    groups = heads // key.shape[1]
    plain = options.get("position_bias") is None and not options.get("dropout")
    if attention_mask is None or tokens != 1 or groups == 1 or attention_mask.shape[1] != 1 or not plain:
        found: tuple[torch.Tensor, None] = AttentionInterface()[_INSTEAD_OF](
            module, query, key, value, attention_mask, **options
        )
        return found
    together = query.reshape(rows, key.shape[1], groups, width)
    output = torch.nn.functional.scaled_dot_product_attention(
        together, key, value, attn_mask=attention_mask, scale=options.get("scaling")
    )
    return output.reshape(rows, 1, heads, output.shape[-1]), None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, AttentionMaskInterface()[_INSTEAD_OF])


@contextmanager
def grouped(model: PreTrainedModel) -> Iterator[None]:
    """Steps attend in groups inside, where ``model`` lets its attention be chosen and chose ``sdpa``."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    shared = getattr(config, "num_key_value_heads", None) not in (None, heads)
    if not shared or config._attn_implementation != _INSTEAD_OF or not _chooses(model):
        yield
        return
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(_INSTEAD_OF)


def _chooses(model: PreTrainedModel) -> bool:
    """False of models that look for the name ``sdpa`` themselves (falcon)."""
    return bool(model._can_set_attn_implementation())
