"""What is read next, and how memory is shared."""

from __future__ import annotations

from mogu.serve.prefixes import Prefixes
from mogu.serve.scheduler import alike, columns_for, exchanges, portions


def test_short_prompts_are_read_whole_in_their_order() -> None:
    assert portions([60, 60, 60], 130) == [60, 60, 0]
    assert portions([60, 100, 20], 130) == [60, 0, 20]


def test_a_long_prompt_leaves_half_of_the_budget_to_others() -> None:
    assert portions([1000], 128) == [128]
    assert portions([1000, 50], 128) == [64, 50]
    assert portions([50, 1000], 128) == [50, 64]


def test_forwards_hold_portions_of_like_length() -> None:
    assert alike([12, 0, 9, 1, 12]) == [[0, 4, 2], [3]]
    assert alike([0, 0]) == []


def test_slots_are_as_long_as_their_longest_row_needs() -> None:
    assert columns_for(10, rows=1, tokens=1024, most_rows=4) == 64
    assert columns_for(60, rows=1, tokens=1024, most_rows=4) == 128
    assert columns_for(300, rows=2, tokens=1024, most_rows=4) == 320
    assert columns_for(510, rows=2, tokens=1024, most_rows=4) == 512
    assert columns_for(513, rows=2, tokens=1024, most_rows=4) is None


def test_running_rows_move_to_the_first_slots_with_few_copies() -> None:
    assert exchanges([0, 1, 2]) == []
    assert exchanges([0, 3, 5]) == [(3, 1), (5, 2)]


def test_what_two_prompts_begin_with_is_kept_until_others_push_it_out() -> None:
    prefixes = Prefixes(tokens=20, entries=2, least=4)
    system = (1, 2, 3, 4, 5)
    assert prefixes.common(None, (*system, 7, 8)) == 0
    assert prefixes.common(0.5, (*system, 9)) == 0  # of another δ
    assert prefixes.common(None, (*system, 9)) == 5
    prefixes.keep(None, system, "contents")
    assert prefixes.common(None, (*system, 10)) == 0  # kept already
    assert prefixes.find(None, [*system, 11]) == (5, "contents")
    assert prefixes.find(0.5, [*system, 11]) == (0, None)
    assert prefixes.find(None, list(system)) == (0, None)  # nothing would be left to read
    prefixes.keep(None, (2,) * 8, "second")
    prefixes.find(None, [*system, 11])
    prefixes.keep(None, (3,) * 8, "third")
    assert prefixes.tokens == 13
    assert prefixes.find(None, [2] * 9) == (0, None)
