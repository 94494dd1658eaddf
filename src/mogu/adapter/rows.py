"""Routing by row: one forward may hold routed rows, plain rows, and routed rows with shifts of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from mogu.adapter.model import tuner_layers


@dataclass
class Rows:
    """What all layers of ours in one model ask in each forward, instead of being switched on or off as a whole."""

    any_routed: bool = False
    """Whether the layers have anything to do."""
    routed: torch.Tensor | None = None
    """1 where a token is routed, 0 where it is the plain base's, (tokens, 1); ``None``: all are routed."""
    plain: torch.Tensor | None = None
    """The reverse."""
    offset: torch.Tensor = field(default_factory=lambda: torch.zeros(1, 2))
    """δ and -δ of each token, (tokens, 2)."""
    logits: list[torch.Tensor] = field(default_factory=list)
    """What the routers of each layer said in this forward, before the shift: (tokens, 2), unwill first."""

    def set(self, shifts: Sequence[float | None], tokens: int, device: torch.device, dtype: torch.dtype) -> None:
        """Before a forward of ``len(shifts)`` rows of so many tokens: each row's δ, ``None`` for a plain one."""
        self.logits = []
        self.any_routed = any(shift is not None for shift in shifts)
        if not self.any_routed:
            return
        pairs = [(shift or 0.0, -(shift or 0.0)) for shift in shifts]
        self.offset = torch.tensor(pairs, device=device, dtype=dtype).repeat_interleave(tokens, dim=0)
        if all(shift is not None for shift in shifts):
            self.routed = self.plain = None
            return
        on = torch.tensor([[float(shift is not None)] for shift in shifts], device=device, dtype=dtype)
        self.routed = on.repeat_interleave(tokens, dim=0)
        self.plain = 1 - self.routed

    def mixed(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of router logits (tokens, 2): weights, 0 in plain rows, and the factor (tokens, 1) of W x, 1 there."""
        weights = torch.sigmoid(logits + self.offset)
        if self.routed is None or self.plain is None:
            return weights, weights.sum(1, keepdim=True)
        weights = weights * self.routed
        return weights, weights.sum(1, keepdim=True) + self.plain


@contextmanager
def by_row(model: nn.Module) -> Iterator[Rows]:
    """The layers ask the yielded :class:`Rows` inside; until something is set, every row is plain."""
    layers, rows = tuner_layers(model), Rows()
    before = [layer.rows for layer in layers]
    for layer in layers:
        layer.rows = rows
    try:
        yield rows
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer.rows = was
