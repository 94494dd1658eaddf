"""One answer, and what the routers say at every token of prompt and answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mogu.adapter.model import active_config, mogu_layers
from mogu.adapter.risk import risk_of
from mogu.chat import Message, prompt_ids
from mogu.decode.inspect import prompt_logits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Reading:
    """What the page shows; the weights are those of one routed forward over prompt and answer."""

    model: str
    """What the user calls the base."""
    tokens: list[str]
    """Text of each token."""
    prompt_tokens: int
    """So many of them are the prompt."""
    routed_tokens: int
    """So many tokens of the answer were routed; the plain base wrote the rest."""
    layers: list[int]
    """Indices of the routed decoder layers."""
    unwill: list[list[float]]
    """Weights u in (0, 1), layer by token, shift and dial included."""
    glad: list[list[float]]
    """The same for g."""
    token_risk: list[float]
    """Risk at each token; without a calibration, the mean of u over the layers."""
    risk: float | None
    """Of the prompt; ``None`` without a calibration."""
    shift: float
    """δ of the adapter and the dial together."""
    handover: str
    threshold: float


def read(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    messages: str | Sequence[Message],
    *,
    name: str = "",
    system: str | None = None,
    template: str | None = None,
    max_new_tokens: int = 64,
    dial: float = 0.0,
    **options: Any,
) -> Reading:
    """Answer ``messages`` and read the routers over prompt and answer.

    Args:
        model: peft model with an active MoGU adapter in the routed stage.
        tokenizer: Its tokenizer.
        messages: A conversation that ends with a user's turn, or a bare instruction.
        name: What the user calls the base.
        system: A system prompt.
        template: As for :func:`mogu.chat.prompt_ids`.
        max_new_tokens: Length at which the answer is cut.
        dial: As for ``generate``.
        **options: Of ``generate``, such as ``handover``.

    Raises:
        AdapterError: No adapter, or it is switched off.
    """
    config = active_config(model)
    ids = torch.tensor([prompt_ids(tokenizer, messages, system=system, template=template)], device=model.device)
    options = {"max_new_tokens": max_new_tokens, "do_sample": False, "dial": dial, **options}
    output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), return_dict_in_generate=True, **options)
    logits = prompt_logits(model, output.sequences, dial=dial)
    shift = config.shift + dial
    start = ids.shape[1]
    if config.risk is None:
        token_risk = torch.sigmoid(logits[0] + shift).mean(dim=0)
    else:
        parts = ((logits[..., :start], "prompt"), (logits[..., start:], "answer"))
        token_risk = torch.cat([risk_of(part, config.risk, position) for part, position in parts])  # type: ignore[arg-type]
    return Reading(
        model=name,
        tokens=pieces(tokenizer, output.sequences[0].tolist()),
        prompt_tokens=start,
        routed_tokens=int(output.routed_tokens[0]) if "routed_tokens" in output else 0,
        layers=[index for index, _ in mogu_layers(model)],
        unwill=torch.sigmoid(logits[0] + shift).tolist(),
        glad=torch.sigmoid(logits[1] - shift).tolist(),
        token_risk=token_risk.tolist(),
        risk=float(output.risk[0]) if "risk" in output else None,
        shift=shift,
        handover=str(options.get("handover", config.handover)),
        threshold=float(options.get("risk_threshold", config.risk_threshold)),
    )


def pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """Text of each token, so that joined they are the whole text; a character of several tokens goes to the last."""
    found, before = [], ""
    for end in range(1, len(ids) + 1):
        text = str(tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False))
        if text.endswith("\ufffd") and end < len(ids):
            found.append("")
            continue
        same = text.startswith(before)
        found.append(text[len(before) :] if same else str(tokenizer.decode(ids[end - 1 : end])))
        before = text
    return found
