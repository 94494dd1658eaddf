"""What is read next, and how memory is shared: decisions on plain numbers."""

from __future__ import annotations

from collections.abc import Sequence

STEP = 64
"""Slots are longer by multiples of so many tokens."""


def portions(remaining: Sequence[int], budget: int) -> list[int]:
    """How many tokens each row reads before the running rows take their next step.

    Rows come in the order in which they were asked for, so a row that reads again for its hand-over comes before newer
    prompts. What fits is read whole. A prompt longer than the budget is read in parts, and takes half of the budget
    while others wait: it does not hold them up, and they do not starve it.

    Args:
        remaining: Tokens that each row has still to read.
        budget: Most tokens in all.
    """
    left, found = budget, []
    for length in remaining:
        if length <= budget:
            portion = length if length <= left else 0
        else:
            portion = min(left, budget if len(remaining) == 1 else max(budget // 2, 1))
        left -= portion
        found.append(portion)
    return found


def alike(lengths: Sequence[int], waste: float = 0.25) -> list[list[int]]:
    """Indices of portions that are read in one forward, whose rows are padded to the longest; zeros are left out.

    Args:
        lengths: Portions.
        waste: Most padding, as a share of a forward's tokens.
    """
    groups: list[list[int]] = []
    real = 0
    for index in sorted((i for i, length in enumerate(lengths) if length), key=lambda i: -lengths[i]):
        length = lengths[index]
        if groups:
            area = lengths[groups[-1][0]] * (len(groups[-1]) + 1)
            if area - real - length <= waste * area:
                groups[-1].append(index)
                real += length
                continue
        groups.append([index])
        real = length
    return groups


def columns_for(need: int, rows: int, tokens: int, most_rows: int) -> int | None:
    """Length of slots such that ``rows`` of them hold ``need`` tokens each; ``None`` if that does not fit.

    Args:
        need: Tokens of the longest row.
        rows: Rows that are held.
        tokens: Tokens that all slots hold together.
        most_rows: Rows that there may be; slots are no longer than what lets so many fit, unless ``need`` asks for it.
    """
    if rows * need > tokens:
        return None
    least = min(_rounded(need), tokens // rows)
    roomy = tokens // most_rows // STEP * STEP
    return max(least, min(roomy, _rounded(2 * need)))


def exchanges(running: Sequence[int]) -> list[tuple[int, int]]:
    """Slots (from, to) to exchange, so that running rows lie in the first slots; few, as each copies.

    Args:
        running: Slots of the rows that take the next step.
    """
    count, taken = len(running), set(running)
    free = (slot for slot in range(count) if slot not in taken)
    return [(slot, next(free)) for slot in sorted(taken) if slot >= count]


def _rounded(tokens: int) -> int:
    return -(-tokens // STEP) * STEP
