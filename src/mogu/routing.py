"""What the routers make of prompts, read in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from mogu.adapter.model import mogu_layers, recorded_weights
from mogu.chat import Message
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
    layers = len(mogu_layers(model))
    unwill, glad = torch.zeros(layers, len(prompts)), torch.zeros(layers, len(prompts))
    for indices, batch in batches(tokenizer, prompts, batch_size, template, model.device):
        with torch.inference_mode(), recorded_weights(model) as weights:
            positions = (batch["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
            model(**batch, position_ids=positions, use_cache=False, logits_to_keep=1)
            each = weights()
        unwill[:, indices], glad[:, indices] = (w[:, :, -1].float().cpu() for w in each)
    return unwill, glad
