"""Which rows of a step fall to which process: together they must be the step of one process."""

from __future__ import annotations

from collections import Counter

import pytest

from mogu import processes
from mogu.errors import TrainingError
from mogu.train.shares import Share, ShareSampler, StepSampler, share_of

CASES = [
    # rows, batch size, accumulation, processes
    (8, 2, 2, 2),
    (7, 2, 2, 2),
    (5, 2, 2, 4),
    (9, 1, 8, 4),
    (17, 8, 1, 2),
    (6, 4, 3, 3),
    (1, 4, 1, 4),
]


def divided(monkeypatch: pytest.MonkeyPatch, batch_size: int, accumulation: int, count: int) -> Share:
    monkeypatch.setattr(processes, "count", lambda: count)
    return share_of(batch_size, accumulation)


def order(rows: int, share: Share) -> StepSampler:
    return StepSampler([row % 5 for row in range(rows)], share.batch_size * share.accumulation, seed=2)


@pytest.mark.parametrize(("rows", "batch_size", "accumulation", "count"), CASES)
def test_the_mean_over_processes_is_the_step_of_one(
    monkeypatch: pytest.MonkeyPatch, rows: int, batch_size: int, accumulation: int, count: int
) -> None:
    share = divided(monkeypatch, batch_size, accumulation, count)
    batches = [list(ShareSampler(order(rows, share), share, rank)) for rank in range(count)]
    assert {len(mine) for mine in batches} == {len(ShareSampler(order(rows, share), share, 0))}
    alone = list(order(rows, share))
    for step, start in enumerate(range(0, rows, batch_size * accumulation)):
        together = alone[start : start + batch_size * accumulation]
        one = [together[n : n + batch_size] for n in range(0, len(together), batch_size)]
        expected = {row: 1 / len(one) / len(batch) for batch in one for row in batch}  # mean of means, as Trainer's
        found: Counter[int] = Counter()
        for mine in batches:
            parts = mine[step * share.parts : (step + 1) * share.parts]
            assert all(1 <= len(part) <= share.part for part in parts)
            for row, weight in (item for part in parts for item in part):
                found[row] += weight / len(parts) / count  # Trainer's mean over parts, DDP's over processes
        assert found.keys() == expected.keys()
        assert all(found[row] == pytest.approx(expected[row]) for row in expected)


def test_a_new_epoch_has_a_new_order(monkeypatch: pytest.MonkeyPatch) -> None:
    share = divided(monkeypatch, 2, 2, 2)
    sampler = ShareSampler(order(12, share), share, 1)
    before = list(sampler)
    assert list(sampler) == before
    sampler.set_epoch(1)
    assert list(sampler) != before


@pytest.mark.parametrize(
    ("given", "expected"),
    [((8, 1, 2), (4, 1)), ((1, 8, 2), (1, 4)), ((4, 3, 2), (3, 2)), ((4, 2, 1), (4, 2)), ((6, 1, 4), None)],
)
def test_a_step_is_divided_or_refused(
    monkeypatch: pytest.MonkeyPatch, given: tuple[int, int, int], expected: tuple[int, int] | None
) -> None:
    if expected is None:
        with pytest.raises(TrainingError, match=r"a step of 6 rows .* cannot be divided among 4 processes"):
            divided(monkeypatch, *given)
        return
    share = divided(monkeypatch, *given)
    assert (share.part, share.parts) == expected
