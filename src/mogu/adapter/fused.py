"""Routed projections in few operations, for decoding: one product for all that reads x, one that writes into W x.

With s the LoRA scale, w and b the probes of the two routers, and δ the shift,

    [h_u | h_g | l_u | l_g] = [A_u; A_g; w_u; w_g] x + [0; 0; b_u; b_g]        u = σ(l_u + δ), g = σ(l_g - δ)
    y = (u + g) · W x + [u · h_u | g · h_g] [s B_u | s B_g]ᵀ

The matrices are copies: they hold only as long as nobody writes to the parameters, so :func:`mogu.adapter.model.fused`
makes them when an answer begins and drops them when it ends.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

if TYPE_CHECKING:
    from mogu.adapter.rows import Rows


class Numbers(NamedTuple):
    """Of one projection; pairs are of unwill and of glad."""

    a: tuple[torch.Tensor, torch.Tensor]
    """(r, d_in)."""
    b: tuple[torch.Tensor, torch.Tensor]
    """(d_out, r)."""
    probe: tuple[torch.Tensor, torch.Tensor]
    """w (d_in,)."""
    probe_bias: tuple[torch.Tensor, torch.Tensor]
    """b (1,)."""
    scale: float
    """s."""


@dataclass
class Fused:
    """Both responders and both folded routers of one projection; unwill comes first everywhere."""

    read: torch.Tensor
    """(d_in, 2r + 2): both A, then both probes."""
    bias: torch.Tensor
    """(2r + 2,): zeros, then the probes' biases."""
    write: torch.Tensor
    """(2r, d_out): both B, scaled."""
    adapter: str = ""
    """Its name."""
    shift: float = 0.0
    """δ."""
    in_place: bool = False
    """Whether the base's output may be written to."""

    def __post_init__(self) -> None:
        self.rank = len(self.write) // 2
        self.offset = self.read.new_tensor([self.shift, -self.shift]) if self.shift else None

    def __call__(
        self, x: torch.Tensor, base: torch.Tensor, rows: Rows | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The routed projection of x (..., d_in), given ``base`` = W x (..., d_out), which may be overwritten.

        ``rows`` says which tokens are routed, with which shift; plain ones get ``base`` exactly: it is multiplied by 1,
        and 0 is added.

        Returns:
            y (..., d_out) in the dtype of ``base``; the routers' logits before the shift, (tokens, 2).
        """
        both = 2 * self.rank
        hidden = torch.addmm(self.bias, x.reshape(-1, len(self.read)).to(self.read.dtype), self.read)
        states, logits = hidden.narrow(1, 0, both), hidden.narrow(1, both, 2)
        if rows is None:
            weights = torch.sigmoid(logits if self.offset is None else logits + self.offset)
            total = weights.sum(1, keepdim=True)
        else:
            weights, total = rows.mixed(logits)
        mixed = (states.view(-1, 2, self.rank) * weights.unsqueeze(2)).view(-1, both)
        total = total.to(base.dtype)
        y = base.reshape(len(total), -1)
        y = y.mul_(total) if self.in_place and base.is_contiguous() else y * total
        if y.dtype == mixed.dtype:
            y.addmm_(mixed, self.write)
        else:
            y += (mixed @ self.write).to(y.dtype)
        return y.view(base.shape), logits


def fuse(projections: Sequence[Numbers]) -> list[Fused | None]:
    """Copies of the numbers, side by side; ``None`` where they are not at hand (offloaded, sharded).

    Projections of one shape are copied together, as an answer of a small model begins sooner so.
    """
    alike = defaultdict(list)
    for index, numbers in enumerate(projections):
        alike[_kind(numbers)].append(index)
    made: list[Fused | None] = [None] * len(projections)
    with torch.no_grad():
        for kind, indices in alike.items():
            if kind is not None:
                for index, one in zip(indices, _together([projections[index] for index in indices]), strict=True):
                    made[index] = one
    return made


def _kind(numbers: Numbers) -> tuple[object, ...] | None:
    tensors = [*numbers.a, *numbers.b, *numbers.probe, *numbers.probe_bias]
    first = tensors[0]
    if any(t.device != first.device or t.dtype != first.dtype or t.is_meta or not t.numel() for t in tensors):
        return None
    return (first.shape, numbers.b[0].shape, first.device, first.dtype, numbers.scale)


def _together(projections: Sequence[Numbers]) -> list[Fused]:
    count, (rank, d_in), d_out = len(projections), projections[0].a[0].shape, len(projections[0].b[0])
    read = projections[0].a[0].new_empty(count, 2 * rank + 2, d_in)
    read[:, : 2 * rank] = torch.cat([a for one in projections for a in one.a]).view(count, -1, d_in)
    read[:, 2 * rank :] = torch.stack([w for one in projections for w in one.probe]).view(count, 2, d_in)
    bias = read.new_zeros(count, 2 * rank + 2)
    bias[:, 2 * rank :] = torch.cat([b for one in projections for b in one.probe_bias]).view(count, 2)
    b = torch.stack([b for one in projections for b in one.b]).view(count, 2, d_out, rank)
    write = (b * projections[0].scale).transpose(2, 3).reshape(count, 2 * rank, d_out)
    return [Fused(*parts) for parts in zip(read.transpose(1, 2), bias, write, strict=True)]


def puts_out_its_own(base: nn.Module) -> bool:
    """True for a projection whose output nobody else holds: it may be written to."""
    watched = base._forward_hooks or base._forward_pre_hooks or "forward" in vars(base)
    return type(base) in (nn.Linear, Conv1D) and not watched and not torch.nn.modules.module._global_forward_hooks
