"""Layers that need not be computed again: what they put out is caught once, and put out again without them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass
class Caught:
    """What the last of some layers put out."""

    forwards: list[torch.Tensor] = field(default_factory=list)
    """Of each forward: hidden states (lines, columns, width), detached."""
    outputs: int | None = None
    """How many things a layer returns; ``None``: the states alone, not in a tuple."""

    @property
    def states(self) -> torch.Tensor | None:
        """Of the last forward."""
        return self.forwards[-1] if self.forwards else None


@contextmanager
def caught(below: Sequence[nn.Module]) -> Iterator[Caught]:
    """Yields what the forwards inside leave there."""
    found = Caught()

    def keep(layer: nn.Module, args: Any, output: Any) -> None:
        alone = isinstance(output, torch.Tensor)
        found.forwards.append((output if alone else output[0]).detach())
        found.outputs = None if alone else len(output)

    handle = below[-1].register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


@contextmanager
def skipped(
    below: Sequence[nn.Module],
    hidden: torch.Tensor,
    outputs: int | None,
    instead: Callable[[int], None] = lambda index: None,
) -> Iterator[None]:
    """The layers ``below`` compute nothing inside, and the last of them puts out ``hidden``.

    Args:
        below: Decoder layers from the first up.
        hidden: (lines, columns, width).
        outputs: As in :class:`Caught`.
        instead: Called where a layer would have been computed, with its index.
    """

    def forward_of(index: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            instead(index)
            last = index == len(below) - 1
            states = hidden if last else (args[0] if args else kwargs["hidden_states"])
            return states if outputs is None else (states, *[None] * (outputs - 1))

        return forward

    before = [vars(layer).get("forward") for layer in below]  # what others (accelerate) put before the class's own
    try:
        for index, layer in enumerate(below):
            layer.forward = forward_of(index)
        yield
    finally:
        for layer, was in zip(below, before, strict=True):
            if was is None:
                vars(layer).pop("forward", None)
            else:
                layer.forward = was
