"""Which rows make a step, and which of them fall to each of several processes.

A step of one process is ``accumulation`` batches of ``batch_size`` rows; its gradient is the mean over the batches of
the mean over their rows. Several processes share the rows of every step. Each row carries its weight in that mean,
times the number of processes: gradients are averaged over these, and their average is the gradient of one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from mogu import processes
from mogu.errors import TrainingError

WEIGHTS = "weights"
"""Key of a batch: (rows,) float32, each row's weight in the loss."""

Weighed = tuple[int, float]
"""Index and weight of a row."""


class StepSampler(Sampler[int]):
    """A new random order in each epoch, in which the rows of one optimizer step lie sorted by length, longest first.

    Which rows share a step is left to chance: sorting changes their padding, not the gradient of the step.
    """

    def __init__(self, lengths: Sequence[int], per_step: int, seed: int) -> None:
        """Of rows of these ``lengths``, ``per_step`` at a time; the same ``seed`` gives the same order."""
        self.lengths, self.per_step, self.seed = lengths, per_step, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Trainer says which epoch begins, also after an interruption."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        for start in range(0, len(order), self.per_step):
            yield from sorted(order[start : start + self.per_step], key=lambda index: (-self.lengths[index], index))


@dataclass(frozen=True)
class Share:
    """What falls to each process of a step."""

    batch_size: int
    accumulation: int
    """Rows of a batch, and batches of a step, of one process alone."""
    count: int
    """Processes."""
    part: int
    """Rows that one of them takes at a time."""
    parts: int
    """How often in a step."""


def share_of(batch_size: int, accumulation: int) -> Share:
    """The share of a process (:mod:`mogu.processes`) in steps of ``accumulation`` batches of ``batch_size`` rows.

    Raises:
        TrainingError: The rows of a step cannot be divided among the processes.
    """
    count = processes.count()
    if count == 1:
        return Share(batch_size, accumulation, 1, batch_size, accumulation)
    rows, rest = divmod(batch_size * accumulation, count)
    if rest:
        raise TrainingError(
            f"a step of {batch_size * accumulation} rows (batch_size · accumulation) cannot be divided among {count} "
            "processes; start another number, or change the recipe"
        )
    part = next(size for size in range(min(batch_size, rows), 0, -1) if rows % size == 0)
    return Share(batch_size, accumulation, count, part, rows // part)


def weights_of_step(rows: int, batch_size: int) -> list[float]:
    """Weight of each of the ``rows`` of a step in its loss, in one process.

    >>> weights_of_step(4, 2), weights_of_step(3, 2)
    ([0.25, 0.25, 0.25, 0.25], [0.25, 0.25, 0.5])
    """
    sizes = [min(batch_size, rows - start) for start in range(0, rows, batch_size)]
    return [1 / (len(sizes) * size) for size in sizes for _ in range(size)]


class ShareSampler(Sampler[list[Weighed]]):
    """The batches of one process: of every step, each ``count``-th row.

    All processes have as many batches. One without rows for its batch takes a row of the step at weight 0.
    """

    def __init__(self, order: StepSampler, share: Share, rank: int) -> None:
        self.order, self.share, self.rank = order, share, rank

    def set_epoch(self, epoch: int) -> None:
        """As :meth:`StepSampler.set_epoch`."""
        self.order.set_epoch(epoch)

    def __len__(self) -> int:
        whole, rest = divmod(len(self.order), self.order.per_step)
        return whole * self.share.parts + self._parts(rest)

    def __iter__(self) -> Iterator[list[Weighed]]:
        order = list(self.order)
        for start in range(0, len(order), self.order.per_step):
            yield from self._of_step(order[start : start + self.order.per_step])

    def _parts(self, rows: int) -> int:
        """Batches of a step of so many rows, in each process."""
        return -(-rows // (self.share.count * self.share.part))

    def _of_step(self, rows: Sequence[int]) -> Iterator[list[Weighed]]:
        parts = self._parts(len(rows))
        # Times the parts, over which Trainer takes the mean, and the processes, over which gradients are averaged.
        scale = parts * self.share.count
        weighed = list(zip(rows, weights_of_step(len(rows), self.share.batch_size), strict=True))
        mine = [(row, weight * scale) for row, weight in weighed[self.rank :: self.share.count]]
        for part in range(parts):
            yield mine[part * self.share.part : (part + 1) * self.share.part] or [(rows[0], 0.0)]


def loader_of_share(dataset: Any, collate: Callable[..., dict[str, torch.Tensor]], share: Share, seed: int) -> Any:
    """Batches of this process, of rows with their :data:`WEIGHTS`.

    Args:
        dataset: Rows with their ``lengths`` (:class:`mogu.train.trainers.RowDataset`).
        collate: Makes a batch of rows.
        share: What falls to each process.
        seed: Of the order, which is that of one process.
    """
    order = StepSampler(dataset.lengths, share.batch_size * share.accumulation, seed)

    def weighed(items: Sequence[tuple[Any, float]]) -> dict[str, torch.Tensor]:
        rows, weights = zip(*items, strict=True)
        return {**collate(list(rows)), WEIGHTS: torch.tensor(weights)}

    sampler = ShareSampler(order, share, processes.rank())
    return _Loader(_WithWeights(dataset), batch_sampler=sampler, collate_fn=weighed)


class _WithWeights(Dataset[tuple[Any, float]]):
    """Rows by index and weight."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: Weighed) -> tuple[Any, float]:
        return self.rows[item[0]], item[1]


class _Loader(DataLoader[tuple[Any, float]]):
    """Tells its sampler the epoch, as Trainer expects of a loader."""

    def set_epoch(self, epoch: int) -> None:
        """As :meth:`StepSampler.set_epoch`."""
        assert isinstance(self.batch_sampler, ShareSampler)
        self.batch_sampler.set_epoch(epoch)
