"""Keys and values of many answers in one block of memory that is taken once.

The block holds so many tokens of every layer. It is laid out as slots of equal length: the tokens of a row lie in
columns 0, 1, 2 … of its slot, without padding, so that attention reads the first n slots in place, as one view. A
longer answer asks for longer, hence fewer, slots; then what is held is moved (:meth:`Slots.lay_out`). Behind the tokens
of a row lie old ones or zeros, always finite, and masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache

STATES = -1
"""In place of a layer's index: the hidden states that enter the first routed layer."""


@dataclass
class Place:
    """Where the tokens of one forward go, and what its rows may see."""

    rows: slice | torch.Tensor
    """Slots of the forward's rows."""
    longest: int
    """Columns that any of them sees."""
    target: torch.Tensor
    """Where each token goes in the block, (tokens,) int64."""
    source: torch.Tensor | None
    """Which tokens of the batch are real, (tokens,) int64; ``None``: all."""


class Slots(Cache):
    """A transformers cache whose rows begin, grow and end by themselves; fills itself at the first forward.

    ``place`` says where the forward under way reads and writes.
    """

    def __init__(self, tokens: int) -> None:
        super().__init__(layers=[])
        self.tokens = tokens
        """Most tokens held, over all slots."""
        self.columns = 0
        self.count = 0
        """Slots of so many columns."""
        self.place: Place | None = None
        self._blocks: dict[tuple[int, int], torch.Tensor] = {}

    def lay_out(self, columns: int, held: Sequence[tuple[int, int]] = ()) -> None:
        """Slots of so many ``columns`` from now on; ``held`` (slot, tokens) move to slots 0, 1, 2 …."""
        count = self.tokens // columns
        longest = max((tokens for _, tokens in held), default=0)
        if len(held) > count or longest > columns:
            raise ValueError(f"{len(held)} rows of {longest} tokens do not fit in {count} slots of {columns}")
        for block in self._blocks.values():
            if longest:
                slots = torch.tensor([slot for slot, _ in held], device=block.device)
                kept = self._grid(block)[:, :longest].index_select(0, slots)
                _grid(block, count, columns)[: len(held), :longest] = kept
        self.columns, self.count = columns, count

    def move(self, slot: int, other: int, tokens: int, others: int = 0) -> None:
        """Exchange what two slots hold: ``tokens`` of the one, ``others`` of the other."""
        for block in self._blocks.values():
            grid = self._grid(block)
            kept = grid[other, :others].clone() if others else None
            grid[other, :tokens] = grid[slot, :tokens]
            if kept is not None:
                grid[slot, :others] = kept

    def clear(self, slot: int) -> None:
        """Zeros, where something was written that is not finite."""
        for block in self._blocks.values():
            self._grid(block)[slot] = 0

    def copy_out(self, slot: int, tokens: int) -> dict[tuple[int, int], torch.Tensor]:
        """What a slot begins with, of every layer."""
        return {key: self._grid(block)[slot, :tokens].clone() for key, block in self._blocks.items()}

    def copy_in(self, slot: int, parts: dict[tuple[int, int], torch.Tensor]) -> None:
        """Let a slot begin with what :meth:`copy_out` gave."""
        for key, part in parts.items():
            self._grid(self._blocks[key])[slot, : len(part)] = part

    @property
    def bytes_per_token(self) -> int:
        """Of all layers; 0 before the first forward."""
        return sum(block[0].numel() * block.element_size() for block in self._blocks.values())

    def write_states(self, states: torch.Tensor) -> None:
        """Keep hidden states (rows, tokens, width) of the forward under way."""
        self._write((STATES, 0), states.unsqueeze(2))

    def read_states(self, where: torch.Tensor) -> torch.Tensor:
        """Of tokens at such places in the block (rows, tokens) int64: (rows, tokens, width)."""
        return self._blocks[STATES, 0][where].squeeze(2)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep new keys and values (rows, heads, tokens, width); returns all that the rows hold, likewise."""
        assert self.place is not None
        keys = self._write((layer_idx, 0), key_states.transpose(1, 2))
        values = self._write((layer_idx, 1), value_states.transpose(1, 2))
        return self._seen(keys, self.place), self._seen(values, self.place)

    def _write(self, key: tuple[int, int], new: torch.Tensor) -> torch.Tensor:
        place = self.place
        assert place is not None
        block = self._blocks.get(key)
        if block is None:
            block = self._blocks[key] = new.new_zeros(self.tokens, *new.shape[2:])
        new = new.flatten(0, 1)
        block.index_copy_(0, place.target, new if place.source is None else new[place.source])
        return block

    def _seen(self, block: torch.Tensor, place: Place) -> torch.Tensor:
        grid = self._grid(block)
        if isinstance(place.rows, slice):
            seen = grid[place.rows, : place.longest]
        else:
            seen = grid[:, : place.longest].index_select(0, place.rows)
        return seen.transpose(1, 2)

    def _grid(self, block: torch.Tensor) -> torch.Tensor:
        return _grid(block, self.count, self.columns)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns that the forward under way sees, for models that ask; masks and positions are given."""
        return 0 if self.place is None else self.place.longest

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Likewise: as many keys, from the first."""
        return self.get_seq_length(), 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Likewise."""
        return self.get_seq_length()


def _grid(block: torch.Tensor, count: int, columns: int) -> torch.Tensor:
    return block[: count * columns].view(count, columns, *block.shape[1:])
