"""What enters the lowest trained layer, computed once: rows that come again skip the layers below.

Below the first routed layer nothing is trained, so the hidden states of a row there are the same in every epoch. They
are written to a file on disk when the row is first seen, and read from it ever after.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mogu import processes
from mogu.adapter.model import decoder_layers, mogu_layers
from mogu.adapter.skip import Caught, caught, skipped
from mogu.data.rows import Row
from mogu.train.packing import PADDING, REFUSED_MASK

ENTRIES = "entries"
"""Key of a batch: for each of its texts, the number of its hidden states in the file."""
_TOLERANCE = 1e-4
"""By which losses may differ, relative where above 1, between computing the lower layers and skipping them."""

Collate = Callable[[Sequence[Row]], dict[str, torch.Tensor]]
Forward = Callable[[dict[str, torch.Tensor]], torch.Tensor]


@dataclass(frozen=True)
class Numbered:
    """A collator whose batches say which row each of their texts is of, and where it lies.

    A collator may make several lines of a row: then the first lines of all rows come first, as those of
    :class:`~mogu.train.batches.PairCollator` do.
    """

    collate: Collate
    number: dict[str, int]
    """Of each row, by its id."""

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """The collator's tensors, :data:`ENTRIES` (texts,), ``line`` (texts,), and ``columns`` (texts, longest text).

        All int64; ``columns`` ends in -1 where a text is shorter. Packed lines hold many texts, others one each.
        """
        batch = self.collate(rows)
        if "columns" not in batch:
            batch = {**batch, **_one_text_a_line(batch["attention_mask"])}
        numbers = torch.tensor([self.number[row.id] for row in rows])
        parts = len(batch["line"]) // len(rows)
        return {**batch, ENTRIES: torch.cat([numbers + part * len(self.number) for part in range(parts)])}


def _one_text_a_line(mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """``line`` and ``columns`` of a left-padded batch."""
    lines, width = mask.shape
    first = width - mask.sum(dim=1, keepdim=True)
    columns = torch.arange(width)[None, :] + first
    return {"line": torch.arange(lines), "columns": torch.where(columns < width, columns, -1)}


class LowerStates:
    """The hidden states of all texts of a training set, in two files: the states, and which of them are there."""

    def __init__(self, model: Any, lengths: Sequence[int], file: Path, like: Caught) -> None:
        """Open the files, or make them.

        Args:
            model: peft model with a MoGU adapter whose lowest layer is not the base's.
            lengths: Tokens of each text.
            file: Where the states lie; ``FILE.known`` says which are there.
            like: What the lower layers put out.

        Raises:
            OSError: There is no room for them.
        """
        assert like.states is not None
        dtype, self.width, self.outputs = like.states.dtype, like.states.shape[-1], like.outputs
        ends = torch.tensor(lengths).cumsum(0).tolist()
        self.spans = [(end - length, end) for length, end in zip(lengths, ends, strict=True)]
        first = mogu_layers(model)[0][0]
        self.below = decoder_layers(model)[:first]
        size = ends[-1] * self.width
        if processes.is_first_here():  # the processes of one machine share the files
            reserve(file, size * dtype.itemsize)
            reserve(file.with_name(file.name + ".known"), len(lengths))
        processes.wait()
        self.states = torch.from_file(str(file), shared=True, size=size, dtype=dtype).view(-1, self.width)
        known = file.with_name(file.name + ".known")
        self.known = torch.from_file(str(known), shared=True, size=len(lengths), dtype=torch.uint8)

    @contextmanager
    def __call__(self, batch: dict[str, torch.Tensor]) -> Iterator[None]:
        """Around one forward of a batch of :class:`Numbered`: skips the lower layers if all its texts are known."""
        entries, lines, width = batch[ENTRIES].tolist(), batch["line"].tolist(), batch["input_ids"].shape
        texts = [
            (line, columns[columns >= 0], slice(*self.spans[entry]))
            for entry, line, columns in zip(entries, lines, batch["columns"].cpu(), strict=True)
        ]
        if bool(self.known[entries].all()):
            hidden = torch.zeros(*width, self.width, dtype=self.states.dtype)
            for line, columns, span in texts:
                hidden[line, columns] = self.states[span]
            with skipped(self.below, hidden.to(batch["input_ids"].device), self.outputs):
                yield
            return
        with caught(self.below) as found:
            yield
        assert found.states is not None
        states = found.states.cpu()
        for line, columns, span in texts:
            self.states[span] = states[line, columns]
        self.known[entries] = 1  # after the states: a killed run believes in none that it did not write


def real_columns(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(lines, columns) bool: which columns of a batch are not padding."""
    return batch["segments"] != PADDING if "segments" in batch else batch["attention_mask"].bool()


def reserve(file: Path, size: int) -> None:
    """Make ``file`` of ``size`` zero bytes, unless it is there; writing to a map beyond a full disk kills a process."""
    if file.is_file() and file.stat().st_size == size:
        return
    with file.open("wb") as opened:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(opened.fileno(), 0, size)
        else:
            opened.write(bytes(size))


def lower_states(model: Any, collate: Collate, rows: Sequence[Row], file: Path, forward: Forward) -> LowerStates | None:
    """A cache for ``rows`` where skipping the lower layers changes nothing, found by trial; else ``None``.

    The longest row and the shortest go through the model both ways. A base with dropout of its own below the first
    routed layer draws anew at every epoch, so it is not cached.

    Args:
        model: peft model with a MoGU adapter.
        collate: Makes batches of rows.
        rows: The training rows.
        file: Where the states are to lie.
        forward: Losses of a batch, (any,).

    Raises:
        OSError: There is no room for the states.
    """
    if mogu_layers(model)[0][0] == 0:
        return None
    lengths = [[int(n) for n in real_columns(collate([row])).sum(dim=1)] for row in rows]
    by_length = sorted(range(len(rows)), key=lambda index: max(lengths[index]))
    trial = collate([rows[by_length[0]], rows[by_length[-1]]])
    trial = {name: tensor.to(model.device) for name, tensor in trial.items()}
    below = decoder_layers(model)[: mogu_layers(model)[0][0]]
    like = _found_alike(model, below, trial, forward)
    if not all(processes.gather(like is not None)) or like is None:
        return None
    parts = zip(*lengths, strict=True)
    return LowerStates(model, [length for part in parts for length in part], file, like)


def _found_alike(
    model: Any, below: Sequence[nn.Module], batch: dict[str, torch.Tensor], forward: Forward
) -> Caught | None:
    """What comes out below in the trial if nothing changes by skipping what is below."""
    was_training = model.training
    real = real_columns(batch)
    try:
        with torch.no_grad():
            model.train()  # with the base's own dropout, if it has any
            drawn = []
            for _ in range(2):
                with caught(below) as found:
                    forward(batch)
                assert found.states is not None
                drawn.append(found.states[real])
            if not torch.equal(*drawn):
                return None
            model.eval()
            with caught(below) as found:
                whole = forward(batch)
            assert found.states is not None
            with skipped(below, found.states * real[:, :, None], found.outputs):
                short = forward(batch)
    except torch.OutOfMemoryError:
        raise
    except REFUSED_MASK:
        return None
    finally:
        model.train(was_training)
    alike = bool(((whole - short).abs() <= _TOLERANCE * whole.abs().clamp(min=1)).all())
    return found if alike else None
