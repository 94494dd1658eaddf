"""Risk: a calibrated probability that a prompt asks for harm, read from the router logits of the routed pass.

With m_l = (logit of the unwill router − logit of the glad router) / 2 in routed layer l at one token, both before the
shift of the dial,

    risk = σ(Σ_l w_l m_l + b)

w and b are fitted on validation rows (:mod:`mogu.train.risk`) and saved in the adapter's configuration: one pair for
the last token of a prompt, one for the tokens of an answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch

from mogu.errors import AdapterError, ConfigError

Position = Literal["prompt", "answer"]
POSITIONS: tuple[Position, ...] = ("prompt", "answer")

MISSING = "this adapter has no risk calibration: train it again, or fit one with mogu.train.risk.fit_risk"


def margins(logits: torch.Tensor) -> torch.Tensor:
    """Margins m (…, routed layers) float32 of router logits (2, routed layers, …), unwill first."""
    unwill, glad = logits.float()
    return ((unwill - glad) / 2).movedim(0, -1)


def risk_of(logits: torch.Tensor, calibration: Mapping[str, Any] | None, position: Position) -> torch.Tensor:
    """Risk in (0, 1), float32 of shape (…), of router logits (2, routed layers, …).

    Args:
        logits: Unwill first, before the shift (:func:`mogu.adapter.model.recorded_logits`).
        calibration: ``MoguConfig.risk``.
        position: Whether the tokens are the last ones of a prompt, or of an answer.

    Raises:
        AdapterError: No calibration, or one for another number of layers.
    """
    if calibration is None:
        raise AdapterError(MISSING)
    weight = torch.tensor(calibration[position]["weight"], dtype=torch.float32, device=logits.device)
    if len(weight) != logits.shape[1]:
        raise AdapterError(
            f"the risk calibration is for {len(weight)} routed layers, the adapter has {logits.shape[1]}; fit it again"
        )
    return torch.sigmoid(margins(logits) @ weight + float(calibration[position]["bias"]))


def check_calibration(calibration: Any) -> None:
    """Raise :class:`ConfigError` unless ``calibration`` is what :func:`mogu.train.risk.fit_risk` makes."""
    for position in POSITIONS:
        try:
            numbers = [*calibration[position]["weight"], calibration[position]["bias"]]
            good = len(numbers) > 1 and all(math.isfinite(number) for number in numbers)
        except (KeyError, TypeError):
            good = False
        if not good:
            raise ConfigError(f"risk must hold numbers weight and bias for {position} tokens; fit it, or leave it out")
