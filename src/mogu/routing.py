"""What the routers make of prompts, read in one forward pass; what all begin with is read once a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from mogu.adapter.model import active_config, mogu_layers, recorded_logits
from mogu.chat import Message, pad_prompts, prompt_ids
from mogu.errors import AdapterError
from mogu.prefix import fits, pad_after, prefilled
from mogu.respond import by_length, shared_beginning

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def weights_after_prompt(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Sequence[Message]],
    *,
    batch_size: int,
    template: str | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Router weights at the last prompt token, where an answer begins.

    Args:
        model: peft model with a MoGU adapter in the routed stage.
        tokenizer: Its tokenizer.
        prompts: Bare instructions or conversations.
        batch_size: Prompts at a time.
        template: As for :func:`mogu.chat.prompt_ids`.

    Returns:
        Unwill and glad weights, (routed layers, prompts) float32 on the CPU.
    """
    unwill, glad = logits_after_prompt(model, tokenizer, prompts, batch_size=batch_size, template=template)
    shift = active_config(model).shift
    return torch.sigmoid(unwill + shift), torch.sigmoid(glad - shift)


def logits_after_prompt(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Sequence[Message]],
    *,
    batch_size: int,
    template: str | None,
) -> torch.Tensor:
    """Router logits there, before the shift: (2, routed layers, prompts) float32 on the CPU, unwill first.

    Arguments are those of :func:`weights_after_prompt`.
    """
    ids = [prompt_ids(tokenizer, prompt, template=template) for prompt in prompts]
    shared = shared_beginning(model, tokenizer, ids, template)
    found = torch.zeros(2, len(mogu_layers(model)), len(prompts))
    for indices in by_length(ids, batch_size):
        with torch.inference_mode(), recorded_logits(model) as logits:
            _read(model, tokenizer, shared, [ids[index] for index in indices])
            each = logits()
        if each is None:
            raise AdapterError("no router logits were recorded: the adapter is disabled or not in the routed stage")
        found[:, :, indices] = each[..., -1].float().cpu()
    return found


def _read(
    model: Any, tokenizer: PreTrainedTokenizerBase, shared: Sequence[int], group: Sequence[Sequence[int]]
) -> None:
    """One forward of prompts that end in the last column; what they share is read before, once."""
    together = bool(shared) and fits(shared, group)
    if together:
        batch = pad_after(tokenizer, shared, group, model.device)
    else:
        batch = pad_prompts(tokenizer, group, model.device)
    ids, mask, read = batch["input_ids"], batch["attention_mask"], len(shared) if together else 0
    cache = prefilled(model, ids[:1, :read], len(group)) if together else None
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, read:]
    options = {"past_key_values": cache, "use_cache": together, "logits_to_keep": 1}
    model(input_ids=ids[:, read:], attention_mask=mask, position_ids=positions, **options)
