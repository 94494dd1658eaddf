"""What the routers make of prompts, read in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from mogu.adapter.model import active_config, mogu_layers, recorded_logits
from mogu.chat import Message
from mogu.errors import AdapterError
from mogu.respond import batches

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
    found = torch.zeros(2, len(mogu_layers(model)), len(prompts))
    for indices, batch in batches(tokenizer, prompts, batch_size, template, model.device):
        with torch.inference_mode(), recorded_logits(model) as logits:
            positions = (batch["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
            model(**batch, position_ids=positions, use_cache=False, logits_to_keep=1)
            each = logits()
        if each is None:
            raise AdapterError("no router logits were recorded: the adapter is disabled or not in the routed stage")
        found[:, :, indices] = each[..., -1].float().cpu()
    return found
