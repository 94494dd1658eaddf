"""How the rows of the routers' fitting pass lie in the one batch that goes through the model.

Padded, each row is a line of its own. Packed, a line holds many rows after one copy of what their prompts begin with (a
system prompt), and each row sees that and itself: for short instructions less than half of the tokens. The rows of a
line are of one fold, so that the beginning that they share is routed as each of them would have it.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mogu.prefix import state_tolerance
from mogu.train.batches import Encoded, pad
from mogu.train.packing import BEGINNING, PADDING, REFUSED_MASK, TEXT, as_read_by, may_pack, segment_mask

LINE_TOKENS = 192
"""Columns of a packed line after the shared beginning; a longer row has a line of its own."""


@dataclass(frozen=True)
class Layout:
    """A batch, and where each row ends in it."""

    inputs: dict[str, torch.Tensor]
    """``input_ids`` and ``position_ids``, (lines, columns) int64, and ``attention_mask``: the same for padded rows,
    (lines, 1, columns, columns) for packed ones."""
    line: list[int]
    """Of each row."""
    end: list[int]
    """The column after the last one of each row."""
    fold: torch.Tensor
    """(lines,) int64."""

    @property
    def size(self) -> int:
        """Tokens of the batch, padding included."""
        return self.inputs["input_ids"].numel()

    def to(self, device: Any) -> Layout:
        """The same on another device."""
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return Layout(inputs, self.line, self.end, self.fold.to(device))


def padded(rows: Sequence[Encoded], folds: Sequence[int], pad_token_id: int) -> Layout:
    """Every row a line, padded on the left."""
    inputs = pad(rows, pad_token_id)
    width = inputs.pop("labels").shape[1]
    return Layout(inputs, list(range(len(rows))), [width] * len(rows), torch.tensor(folds))


def packed(
    model: Any, rows: Sequence[Encoded], folds: Sequence[int], shared: Sequence[int], pad_token_id: int
) -> Layout:
    """Many rows to a line, each line filled as far as it goes, longest rows first.

    Args:
        model: Whose attention reads the mask.
        rows: Prompts and answers.
        folds: Of each row.
        shared: Of each row, the number of tokens at its beginning that it shares with the others that begin so.
        pad_token_id: Id of padding.
    """
    beginnings = [tuple(prompt[:count]) for (prompt, _), count in zip(rows, shared, strict=True)]
    texts = [(prompt + answer)[count:] for (prompt, answer), count in zip(rows, shared, strict=True)]
    room = max(LINE_TOKENS, *map(len, texts))
    kinds = list(zip(folds, beginnings, strict=True))
    lines: list[list[int]] = []
    line, end = [0] * len(rows), [0] * len(rows)
    for index in sorted(range(len(rows)), key=lambda i: -len(texts[i])):
        used = [sum(len(texts[i]) for i in members) for members in lines]
        fits = (n for n, m in enumerate(lines) if kinds[m[0]] == kinds[index] and used[n] + len(texts[index]) <= room)
        if (n := next(fits, None)) is None:
            n = len(lines)
            lines.append([])
        lines[n].append(index)
        line[index], end[index] = n, shared[index] + sum(len(texts[i]) for i in lines[n])
    width = max(end)
    ids = torch.full((len(lines), width), pad_token_id)
    positions = torch.zeros(len(lines), width, dtype=torch.long)
    segments = torch.full((len(lines), width), PADDING)
    for n, members in enumerate(lines):
        first = members[0]
        columns = [(list(beginnings[first]), 0, BEGINNING)]
        columns += [(texts[i], shared[i], TEXT + k) for k, i in enumerate(members)]
        at = 0
        for text, start, segment in columns:
            here = slice(at, at := at + len(text))
            ids[n, here] = torch.tensor(text, dtype=torch.long)
            positions[n, here] = torch.arange(start, start + len(text))
            segments[n, here] = segment
    inputs = {
        "input_ids": ids,
        "position_ids": positions,
        "attention_mask": as_read_by(model, segment_mask(segments)),
    }
    return Layout(inputs, line, end, torch.tensor([folds[members[0]] for members in lines]))


def packs_alike(model: Any, rows: Sequence[Encoded], shared: Sequence[int], pad_token_id: int) -> bool:
    """Whether the plain base computes the same for packed rows: the longest and the shortest two go through both ways.

    Args:
        model: peft model.
        rows: As for :func:`packed`.
        shared: As for :func:`packed`.
        pad_token_id: Id of padding.
    """
    base = model.get_base_model().base_model
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    if not may_pack(model, frozenset(inspect.signature(base.forward).parameters), longest):
        return False
    by_length = sorted(range(len(rows)), key=lambda index: len(rows[index][0]) + len(rows[index][1]))
    tried = [*by_length[:2], *by_length[-2:]]
    trial, counts = [rows[index] for index in tried], [shared[index] for index in tried]
    folds = [0] * len(trial)
    layouts = padded(trial, folds, pad_token_id), packed(model, trial, folds, counts, pad_token_id)
    found = []
    try:
        with torch.no_grad(), model.disable_adapter():
            for layout in (each.to(model.device) for each in layouts):
                states = base(**layout.inputs, use_cache=False)[0]
                found.append(states[layout.line, [end - 1 for end in layout.end]].float())
    except torch.OutOfMemoryError:
        raise
    except REFUSED_MASK:
        return False
    return bool((found[0] - found[1]).abs().max() <= state_tolerance(model.dtype) * found[0].abs().max())
