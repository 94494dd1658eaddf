"""What the routers said in one forward, for openings and pieces: read from tensors once for all rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mogu.adapter.risk import risk_of
from mogu.serve.requests import Opening, Weights


@dataclass
class Seen:
    """Router weights and risk at the last token of each row."""

    logits: torch.Tensor | None
    """(2, routed layers, rows), unwill first; ``None``: nothing was routed."""
    shifts: Sequence[float | None]
    risks: list[float] | None

    @classmethod
    def of(
        cls,
        routers: torch.Tensor | None,
        shifts: Sequence[float | None],
        calibration: Mapping[str, Any] | None,
        opened: Sequence[bool],
    ) -> Seen:
        """Of router logits (2, routed layers, rows, tokens); those not ``opened`` end their prompts."""
        if routers is None:
            return cls(None, shifts, None)
        last = routers[..., -1]
        if calibration is None:
            return cls(last, shifts, None)
        risks = risk_of(last, calibration, "answer")
        if not all(opened):
            after = torch.tensor(opened, device=risks.device)
            risks = torch.where(after, risks, risk_of(last, calibration, "prompt"))
        return cls(last, shifts, risks.tolist())

    def risk(self, row: int) -> float | None:
        """``None`` of plain rows, and without a calibration."""
        return None if self.risks is None or self.shifts[row] is None else self.risks[row]

    def weights(self, row: int) -> Weights | None:
        """``None`` of plain rows."""
        shift = self.shifts[row]
        if self.logits is None or shift is None:
            return None
        return weights_of(self.logits[:, :, row, None], shift)[0]


def weights_of(logits: torch.Tensor, shift: float) -> list[Weights]:
    """Of each token, from logits (2, routed layers, tokens)."""
    unwill, glad = logits.float()
    pairs = zip(torch.sigmoid(unwill + shift).T.tolist(), torch.sigmoid(glad - shift).T.tolist(), strict=True)
    return [Weights(tuple(u), tuple(g)) for u, g in pairs]


def opening(seen: Seen, row: int, trace: tuple[Weights, ...]) -> Opening:
    """What a row's prompt told."""
    weights = seen.weights(row)
    if weights is None:
        return Opening(None, None, None)
    count = len(weights.unwill)
    return Opening(seen.risk(row), sum(weights.unwill) / count, sum(weights.glad) / count, trace)
