"""Routers: the weight of one responder, read from the projection's input at every token.

The published router is Linear(d → h, no bias), Linear(h → d), Linear(d → 1), sigmoid, with nothing nonlinear in
between. It therefore *is* a logistic probe σ(w·x + b) with w = W₂W₁W₀ and b = W₂b₁ + b₂. It is trained in its factors
(the optimisation is the published one) but always multiplied weights first, and folded to (w, b) for inference.
"""

from __future__ import annotations

import math

import torch
from torch import nn


class FoldedRouter(nn.Module):
    """Logistic probe: ``weight`` (d_in,) and ``bias`` (1,). A leaf module that owns its parameters.

    peft strips the adapter name from saved keys only in second-to-last position, hence no child modules.
    """

    def __init__(self, d_in: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(d_in))
        self.bias = nn.Parameter(torch.zeros(1))

    def probe(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``(w, b)``, shapes (d_in,) and (1,)."""
        return self.weight, self.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (...,) of inputs (..., d_in)."""
        weight, bias = self.probe()
        return x.to(weight.dtype) @ weight + bias


class FactoredRouter(nn.Module):
    """The published three matrices: ``down`` (h, d), ``up`` (d, h) with bias (d,), ``out`` (1, d) with bias (1,)."""

    def __init__(self, d_in: int, width: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(width, d_in))
        self.up = nn.Parameter(torch.empty(d_in, width))
        self.up_bias = nn.Parameter(torch.empty(d_in))
        self.out = nn.Parameter(torch.empty(1, d_in))
        self.out_bias = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """torch's own initialisation of the three linear layers, which the authors use."""
        for weight, bias in ((self.down, None), (self.up, self.up_bias), (self.out, self.out_bias)):
            bound = 1 / math.sqrt(weight.shape[1])
            nn.init.uniform_(weight, -bound, bound)
            if bias is not None:
                nn.init.uniform_(bias, -bound, bound)

    def probe(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``(w, b)``, shapes (d_in,) and (1,), with gradients to the factors.

        Multiplied anew at every call: a kept product goes stale unnoticed when ``parameter.data`` is written to.
        """
        outer = self.out @ self.up
        return (outer @ self.down).squeeze(0), (self.out @ self.up_bias) + self.out_bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (...,) of inputs (..., d_in)."""
        weight, bias = self.probe()
        return x.to(weight.dtype) @ weight + bias

    def fold(self) -> FoldedRouter:
        """The same function as a :class:`FoldedRouter`, on the same device and in the same dtype."""
        folded = FoldedRouter(self.down.shape[1]).to(self.down.device, self.down.dtype)
        with torch.no_grad():
            weight, bias = self.probe()
            folded.weight.copy_(weight)
            folded.bias.copy_(bias)
        return folded.requires_grad_(self.down.requires_grad)
