"""How much memory there is, and what a forward keeps of it for its backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from mogu.quantization import stored_parts


class Forwards:
    """Listens to a trainer's forwards: their tokens, and what autograd keeps of them."""

    def __init__(self, trainer: Any) -> None:
        self.largest = (1, 0)
        """Tokens, and bytes kept, of the forward with most tokens."""
        real = trainer.compute_loss

        def compute_loss(model: Any, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
            tokens = inputs["input_ids"].numel()
            with kept_for_backward(model) as kept:
                loss = real(model, inputs, *args, **kwargs)
            self.largest = max(self.largest, (tokens, sum(kept.values())))
            return loss

        trainer.compute_loss = compute_loss

    def kept(self, tokens: int) -> int:
        """Bytes that a forward of so many tokens keeps."""
        seen, kept = self.largest
        return round(kept * tokens / seen)


@contextmanager
def kept_for_backward(model: torch.nn.Module) -> Iterator[dict[int, int]]:
    """Count what forwards inside keep for a backward pass.

    Yields:
        Bytes of each kept storage by its address, parameters and buffers of ``model`` left out.
    """
    weights = (*model.parameters(), *model.buffers())
    own = {part.untyped_storage().data_ptr() for weight in weights for part in stored_parts(weight)}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        for part in stored_parts(tensor):
            storage = part.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept
