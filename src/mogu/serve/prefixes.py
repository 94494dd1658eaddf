"""What prompts begin with (a system prompt), read once: keys and values of few beginnings, the last used ones."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Any

Key = tuple[float | None, tuple[int, ...]]
"""δ of routed ones, ``None`` for the plain base; token ids."""


class Prefixes:
    """Beginnings that two prompts had in common."""

    def __init__(self, tokens: int, entries: int = 8, least: int = 8, recent: int = 16) -> None:
        """Keep at most ``tokens`` in ``entries``; beginnings shorter than ``least`` are not worth it."""
        self.most, self.entries, self.least = tokens, entries, least
        self.kept: OrderedDict[Key, Any] = OrderedDict()
        self.recent: dict[float | None, deque[tuple[int, ...]]] = {}
        self._size = recent

    @property
    def tokens(self) -> int:
        """Held now."""
        return sum(len(ids) for _, ids in self.kept)

    def find(self, shift: float | None, ids: Sequence[int]) -> tuple[int, Any]:
        """Length and contents of the longest beginning that is held and leaves something to read; 0 without."""
        best: Key | None = None
        for key in self.kept:
            kind, beginning = key
            fits = kind == shift and len(beginning) < len(ids) and tuple(ids[: len(beginning)]) == beginning
            if fits and (best is None or len(beginning) > len(best[1])):
                best = key
        if best is None:
            return 0, None
        self.kept.move_to_end(best)
        return len(best[1]), self.kept[best]

    def common(self, shift: float | None, ids: tuple[int, ...]) -> int:
        """Note a prompt; how long the beginning is that is worth keeping and not yet kept, 0 for none."""
        seen = self.recent.setdefault(shift, deque(maxlen=self._size))
        while len(self.recent) > self.entries:
            self.recent.pop(next(iter(self.recent)))
        longest = max((_common(ids, other) for other in seen), default=0)
        if ids not in seen:
            seen.append(ids)
        longest = min(longest, len(ids) - 1)
        known = (shift, ids[:longest]) in self.kept
        return 0 if longest < self.least or longest > self.most or known else longest

    def forget(self) -> None:
        """Hold nothing."""
        self.kept.clear()
        self.recent.clear()

    def keep(self, shift: float | None, ids: tuple[int, ...], contents: Any) -> None:
        """Hold a beginning, and give up those that were not used for longest."""
        self.kept[shift, ids] = contents
        while len(self.kept) > self.entries or self.tokens > self.most:
            self.kept.popitem(last=False)


def _common(ids: Sequence[int], other: Sequence[int]) -> int:
    return next((n for n, (a, b) in enumerate(zip(ids, other, strict=False)) if a != b), min(len(ids), len(other)))
