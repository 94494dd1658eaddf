"""A routed projection in few operations, for decoding: one product for all that reads x, one that writes into W x.

With s the LoRA scale and w, b the probes of the two routers,

    [h_u | h_g | l_u | l_g] = [A_u; A_g; w_u; w_g] x + [0; 0; b_u; b_g]        u = σ(l_u + δ), g = σ(l_g - δ)
    y = (u + g) · W x + [u · h_u | g · h_g] [s B_u | s B_g]ᵀ

The matrices are copies: they hold only as long as nobody writes to the parameters, so :func:`mogu.adapter.model.fused`
makes them when an answer begins and drops them when it ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass
class Fused:
    """Both responders and both folded routers of one projection; unwill comes first everywhere."""

    read: torch.Tensor
    """(2r + 2, d_in): both A, then both probes."""
    bias: torch.Tensor
    """(2r + 2,): zeros, then the probes' biases."""
    write: torch.Tensor
    """(2r, d_out): both B, transposed and scaled."""
    shift: float
    """δ."""
    in_place: bool
    """Whether the base's output may be written to."""

    def __post_init__(self) -> None:
        self.offset = self.read.new_tensor([self.shift, -self.shift])

    def __call__(self, x: torch.Tensor, base: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The routed projection of x (..., d_in), given ``base`` = W x (..., d_out), which may be overwritten.

        Returns:
            y (..., d_out) in the dtype of ``base``; the routers' logits before the shift, (..., 2).
        """
        hidden = nn.functional.linear(x.to(self.read.dtype), self.read, self.bias)
        states, logits = hidden[..., :-2], hidden[..., -2:]
        weights = torch.sigmoid(logits + self.offset if self.shift else logits)
        mixed = (states.unflatten(-1, (2, -1)) * weights.unsqueeze(-1)).flatten(-2)
        total = weights.sum(dim=-1, keepdim=True).to(base.dtype)
        y = base.mul_(total) if self.in_place else base * total
        if y.dtype == mixed.dtype and y.is_contiguous():
            y.view(-1, y.shape[-1]).addmm_(mixed.view(-1, mixed.shape[-1]), self.write)
        else:
            y += (mixed @ self.write).to(y.dtype)
        return y, logits


def fuse(responders: Sequence[Pair], probes: Sequence[Pair], scale: float, shift: float, base: nn.Module) -> Fused | None:
    """Copies of a projection's numbers, side by side; ``None`` where they are not at hand (offloaded, sharded).

    Args:
        responders: A (r, d_in) and B (d_out, r), of unwill and of glad.
        probes: w (d_in,) and b (1,), of unwill and of glad.
        scale: s.
        shift: δ.
        base: The frozen projection.
    """
    tensors = [tensor for pair in (*responders, *probes) for tensor in pair]
    if any(t.device != tensors[0].device or t.dtype != tensors[0].dtype or not t.numel() or t.is_meta for t in tensors):
        return None
    with torch.no_grad():
        read = torch.cat([*(a for a, _ in responders), *(w[None] for w, _ in probes)])
        bias = torch.cat([read.new_zeros(len(read) - len(probes)), *(b for _, b in probes)])
        write = torch.cat([b.T for _, b in responders]) * scale
    return Fused(read, bias, write, shift, _puts_out_its_own(base))


def _puts_out_its_own(base: nn.Module) -> bool:
    """True for a projection whose output nobody else holds."""
    watched = base._forward_hooks or base._forward_pre_hooks or "forward" in vars(base)
    return type(base) in (nn.Linear, Conv1D) and not watched and not torch.nn.modules.module._global_forward_hooks
