"""The queue before the engine: who is next, who is gone, and when it closes."""

from __future__ import annotations

import pytest

from mogu.errors import QueueFullError
from mogu.serve.requests import Prompt, Sampling
from mogu.serve.rows import Row
from mogu.serve.waiting import Waiting


def row() -> Row:
    return Row(Prompt((1,), Sampling(1)), print, 0, None, None, None)


def test_rows_come_out_in_the_order_of_asking_and_those_put_back_first() -> None:
    waiting, rows = Waiting(5), [row() for _ in range(3)]
    for one in rows:
        waiting.put(one)
    assert [one.number for one in rows] == [1, 2, 3]
    assert waiting.first() is rows[0]
    assert waiting.take(rows[0])
    waiting.put_back(rows[0])
    assert [waiting.first() is one and waiting.take(one) for one in rows] == [True] * 3
    assert waiting.first() is None


def test_who_is_gone_is_not_taken_nor_anybody_else() -> None:
    waiting, leaves, stays = Waiting(2), row(), row()
    waiting.put(leaves)
    assert waiting.first() is leaves
    leaves.cancel()
    waiting.put(stays)  # which drops who is cancelled
    assert not waiting.take(leaves)
    assert waiting.first() is stays
    stays.cancel()
    assert waiting.first() is None
    assert len(waiting) == 0


def test_a_full_queue_refuses_and_those_that_left_make_room() -> None:
    waiting, rows = Waiting(2), [row() for _ in range(3)]
    waiting.put(rows[0])
    waiting.put(rows[1])
    with pytest.raises(QueueFullError, match="2 answers wait already"):
        waiting.put(rows[2])
    rows[1].cancel()
    waiting.put(rows[2])
    assert len(waiting) == 2


def test_it_closes_at_once_or_when_all_is_done() -> None:
    waiting = Waiting(2)
    waiting.put(row())
    assert waiting.wait(busy=False)
    waiting.close(drain=True)
    assert waiting.wait(busy=False)
    with pytest.raises(QueueFullError, match="closed"):
        waiting.put(row())
    assert len(waiting.end()) == 1
    assert not waiting.wait(busy=True)
    waiting.close(drain=True)
    assert not waiting.wait(busy=True)  # what was to end at once does
