"""What the routers make of a prompt."""

from __future__ import annotations

from typing import Any

import torch

from mogu.adapter.model import recorded_weights


def prompt_weights(model: Any, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Router weights at the last token of one prompt.

    Args:
        model: peft model with an active MoGU adapter in the routed stage.
        input_ids: One prompt, int64 (1, tokens).

    Returns:
        Unwill and glad weights in (0, 1), each float32 (routed layers,) on the CPU.

    Raises:
        AdapterError: The model carries no adapter, or it is switched off.
    """
    with torch.no_grad(), recorded_weights(model) as weights:
        model(input_ids=input_ids.to(model.device), use_cache=False)
        unwill, glad = weights()
    return unwill[:, 0, -1].float().cpu(), glad[:, 0, -1].float().cpu()
