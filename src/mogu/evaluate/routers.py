"""What the routers make of the prompts of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from mogu.adapter.model import active_config, mogu_layers
from mogu.adapter.risk import risk_of
from mogu.evaluate.metrics import auroc, calibration_error, five_numbers, histogram
from mogu.evaluate.suites import HARMFUL, HARMLESS
from mogu.routing import logits_after_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def router_statistics(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Mapping[str, Sequence[str]],
    *,
    batch_size: int,
    template: str | None,
) -> dict[str, Any]:
    """Router weights at the last prompt token, per layer and kind of prompt.

    Args:
        model: peft model with a MoGU adapter in the routed stage.
        tokenizer: Its tokenizer.
        prompts: Instructions by kind; ``malicious`` is set against each other kind in the AUROC.
        batch_size: Prompts at a time.
        template: As for :func:`mogu.chat.prompt_ids`.

    Returns:
        ``layers`` (indices), ``kinds`` (for each the five-number summary of unwill and glad per layer), ``auroc``
        of the unwill weight per layer, malicious against each other kind (empty without malicious prompts), ``risk``
        (for each kind, counts of prompts in ten bins of the risk), ``calibrated`` (whether the adapter has a
        calibration; else the unwill weight's mean over the layers stands for the risk), and of the risk as a
        probability that a prompt asks for harm ``calibration_error`` and ``risk_auroc``, harmful against harmless
        prompts (None without both sorts).
    """
    layers = [index for index, _ in mogu_layers(model)]
    config = active_config(model)
    risk: dict[str, list[float]] = {}
    unwill: dict[str, torch.Tensor] = {}
    glad: dict[str, torch.Tensor] = {}
    for kind, instructions in prompts.items():
        logits = logits_after_prompt(model, tokenizer, instructions, batch_size=batch_size, template=template)
        unwill[kind], glad[kind] = torch.sigmoid(logits[0] + config.shift), torch.sigmoid(logits[1] - config.shift)
        found = unwill[kind].mean(dim=0) if config.risk is None else risk_of(logits, config.risk, "prompt")
        risk[kind] = found.tolist()
    return {
        "layers": layers,
        "kinds": {
            kind: {
                "unwill": [five_numbers(row) for row in unwill[kind].tolist()],
                "glad": [five_numbers(row) for row in glad[kind].tolist()],
            }
            for kind in prompts
        },
        "auroc": {
            kind: [
                auroc(bad, good) for bad, good in zip(unwill["malicious"].tolist(), unwill[kind].tolist(), strict=True)
            ]
            for kind in prompts
            if kind != "malicious" and "malicious" in prompts
        },
        "risk": {kind: histogram(values) for kind, values in risk.items()},
        "calibrated": config.risk is not None,
        **_as_probability(risk),
    }


def _as_probability(risk: Mapping[str, Sequence[float]]) -> dict[str, float | None]:
    harmful = [value for kind in HARMFUL for value in risk.get(kind, ())]
    harmless = [value for kind in HARMLESS for value in risk.get(kind, ())]
    if not harmful or not harmless:
        return {"calibration_error": None, "risk_auroc": None}
    outcomes = [True] * len(harmful) + [False] * len(harmless)
    return {
        "calibration_error": calibration_error([*harmful, *harmless], outcomes),
        "risk_auroc": auroc(harmful, harmless),
    }
