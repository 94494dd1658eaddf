"""What the routers make of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from mogu.adapter.model import active_config, dialled, recorded_logits, recorded_weights
from mogu.adapter.risk import risk_of
from mogu.chat import Message, prompt_ids
from mogu.errors import AdapterError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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


def prompt_logits(model: Any, input_ids: torch.Tensor, dial: float = 0.0) -> torch.Tensor:
    """Router logits before the shift at every token of one sequence: float32 (2, routed layers, tokens), unwill first.

    ``dial`` is as for ``generate``: it moves what the layers above the first routed one read. Other arguments and
    errors are those of :func:`prompt_weights`.
    """
    with torch.no_grad(), dialled(model, dial), recorded_logits(model) as logits:
        model(input_ids=input_ids.to(model.device), use_cache=False)
        found = logits()
    if found is None:
        raise AdapterError("no router logits were recorded: the adapter is disabled or not in the routed stage")
    return found[:, :, 0].float().cpu()


def risk(
    model: Any, tokenizer: PreTrainedTokenizerBase, messages: str | Sequence[Message], *, template: str | None = None
) -> float:
    """Calibrated probability that the last turn of a conversation asks for harm, from one routed forward.

    Args:
        model: Model with an active MoGU adapter in the routed stage.
        tokenizer: Its tokenizer.
        messages: A conversation that ends with a user's turn, or a bare instruction.
        template: As for :func:`mogu.chat.prompt_ids`.

    Raises:
        AdapterError: The adapter has no calibration, is switched off, or is not in the routed stage.
    """
    ids = torch.tensor([prompt_ids(tokenizer, messages, template=template)])
    logits = prompt_logits(model, ids)[:, :, -1]
    return float(risk_of(logits, active_config(model).risk, "prompt"))
