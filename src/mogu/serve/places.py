"""Which rows are in the making, and in which slot of the cache each lies."""

from __future__ import annotations

from collections.abc import Sequence

from mogu.serve.rows import Row
from mogu.serve.scheduler import columns_for, exchanges
from mogu.serve.slots import Slots

AHEAD = 64
"""Tokens of an answer for which there has to be room before it begins; more is found while it grows."""


class Places:
    """The rows that share a block of ``tokens`` tokens, at most ``rows`` of them."""

    def __init__(self, slots: Slots, rows: int, tokens: int) -> None:
        self.slots, self.rows, self.tokens = slots, rows, tokens
        self.active: list[Row] = []

    @property
    def held(self) -> int:
        """Tokens whose keys and values are held."""
        return sum(row.held for row in tuple(self.active))

    def fit(self, row: Row) -> bool:
        """Whether there is a slot for one more row, with room for its next tokens."""
        return len(self.active) < self.rows and self._fit([*self.active, row], AHEAD)

    def give(self, row: Row) -> None:
        """A slot, for a row that fits."""
        taken = {other.slot for other in self.active}
        row.slot = next(slot for slot in range(self.slots.count) if slot not in taken)
        self.active.append(row)

    def free(self, row: Row) -> None:
        """It needs its slot no more, if it had one."""
        if row in self.active:
            self.active.remove(row)
        row.slot = -1

    def make_room(self) -> list[Row]:
        """For one more token of each row; returns the youngest rows, which gave up their slots where there was none."""
        left: list[Row] = []
        while self.active and not self._fit(self.active, ahead=0):
            row = max(self.active, key=lambda row: row.number)
            self.active.remove(row)
            row.put_back()
            left.append(row)
        return left

    def gather(self, running: Sequence[Row]) -> list[Row]:
        """``running`` in the order of their slots, which are the first ones afterwards: these are read in place."""
        for slot, other in exchanges([row.slot for row in running]):
            here = next(row for row in running if row.slot == slot)
            there = next((row for row in self.active if row.slot == other), None)
            self.slots.move(slot, other, here.held, there.held if there else 0)
            here.slot = other
            if there is not None:
                there.slot = slot
        return sorted(running, key=lambda row: row.slot)

    def _fit(self, rows: Sequence[Row], ahead: int) -> bool:
        """Whether there are slots for these rows; lays them out anew if others are needed."""
        need = max(row.need(ahead) for row in rows)
        if need <= self.slots.columns and len(rows) <= self.slots.count:
            return True
        columns = columns_for(need, len(rows), self.tokens, self.rows)
        if columns is None:
            return False
        held = sorted((row for row in self.active if row.slot >= 0), key=lambda row: row.slot)
        self.slots.lay_out(columns, [(row.slot, row.held) for row in held])
        for slot, row in enumerate(held):
            row.slot = slot
        return True
