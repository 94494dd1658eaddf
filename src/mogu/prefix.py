"""What all prompts of a batch begin with (a chat template's system prompt), read once instead of once for each row.

Rows then lie as `prefix | padding | rest of the prompt`, and the cache of the prefix is that of one row, repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from mogu.chat import pad_prompts, prompt_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORTHWHILE = 8
"""Tokens; a shorter prefix is not worth a forward of its own."""
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
_ROUGH_TOLERANCE = 3e-2
"""In bfloat16 rounding alone makes 0.026 on the embedded model."""
REFUSED = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, NotImplementedError)
"""What a model raises that does not take what it is tried on."""


def tolerance(dtype: torch.dtype) -> float:
    """By which next-token logits may differ, relative to the largest, between two ways to compute the same."""
    return _TOLERANCE.get(dtype, _ROUGH_TOLERANCE)


def state_tolerance(dtype: torch.dtype) -> float:
    """The same of hidden states, which no norm and no vocabulary has evened out."""
    return 5 * tolerance(dtype)


def template_prefix(tokenizer: PreTrainedTokenizerBase, template: str | None) -> list[int]:
    """Token ids with which the prompt of every bare instruction begins, whatever the instruction."""
    one, other = (prompt_ids(tokenizer, text, template=template) for text in ("a", "Z"))
    length = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
    return one[:length]


def fits(prefix: Sequence[int], prompts: Sequence[Sequence[int]]) -> bool:
    """True if all prompts begin with ``prefix`` and go on after it."""
    length = len(prefix)
    return all(len(ids) > length and list(ids[:length]) == list(prefix) for ids in prompts)


def pad_after(
    tokenizer: PreTrainedTokenizerBase, prefix: Sequence[int], prompts: Sequence[Sequence[int]], device: Any
) -> dict[str, torch.Tensor]:
    """As :func:`mogu.chat.pad_prompts`, with the padding between ``prefix`` and the rest of each prompt."""
    rest = pad_prompts(tokenizer, [ids[len(prefix) :] for ids in prompts], device)
    ids = torch.tensor([list(prefix)] * len(prompts), device=device)
    return {
        "input_ids": torch.cat([ids, rest["input_ids"]], dim=1),
        "attention_mask": torch.cat([torch.ones_like(ids), rest["attention_mask"]], dim=1),
    }


def prefilled(model: Any, prefix: torch.Tensor, rows: int, cache: Cache | None = None) -> Cache:
    """A cache that holds ``prefix`` (1, tokens) for each of so many rows, from one forward of one row.

    Args:
        model: The model, in the state in which it will go on.
        prefix: (1, tokens) int64.
        rows: Rows of the cache.
        cache: An empty cache to fill; default: a new one.
    """
    cache = DynamicCache(config=model.config.get_text_config()) if cache is None else cache
    mask = torch.ones_like(prefix)
    filled: Cache = model(input_ids=prefix, attention_mask=mask, past_key_values=cache, use_cache=True).past_key_values
    filled.batch_repeat_interleave(rows)
    return filled


def can_hold(cache: Any) -> bool:
    """True for a cache whose layers keep every token as it came: no window, no fixed size, no recurrent state."""
    return type(cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in cache.layers)


def shares(
    model: Any, tokenizer: PreTrainedTokenizerBase, prefix: Sequence[int], prompts: Sequence[Sequence[int]]
) -> bool:
    """Whether ``model`` says the same after a shared prefix, found by trial on the longest and the shortest prompt."""
    if len(prefix) < WORTHWHILE or not can_hold(DynamicCache(config=model.config.get_text_config())):
        return False
    by_length = sorted(prompts, key=len)
    pair = [by_length[0], by_length[-1]]
    if not fits(prefix, pair):
        return False
    whole, split = pad_prompts(tokenizer, pair, model.device), pad_after(tokenizer, prefix, pair, model.device)
    try:
        with torch.inference_mode():
            plain = model(**_placed(whole), use_cache=False).logits[:, -1].float()
            cache = prefilled(model, split["input_ids"][:1, : len(prefix)], len(pair))
            inputs = _placed(split)
            for name in ("input_ids", "position_ids"):
                inputs[name] = inputs[name][:, len(prefix) :]
            once = model(**inputs, past_key_values=cache, use_cache=True).logits[:, -1].float()
    except torch.OutOfMemoryError:
        raise
    except REFUSED:
        return False
    return bool((plain - once).abs().max() <= tolerance(model.dtype) * plain.abs().max())


def _placed(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """With positions that count real tokens only, as ``generate`` makes them."""
    return {**batch, "position_ids": (batch["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)}
