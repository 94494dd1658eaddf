"""What stands before an instruction in the fit: how often, what, and that it tells nothing of the label."""

from __future__ import annotations

import dataclasses

import pytest
import small

from mogu.data.rows import Row
from mogu.train.contexts import FOLDS, SYSTEM_PROMPTS, Context, contexts, folds_of

ROWS = small.rows()


def many(count: int = 60) -> list[Row]:
    return [dataclasses.replace(row, id=f"{row.id}-{n}", twin="") for n in range(count) for row in ROWS]


def test_without_shares_every_instruction_is_bare() -> None:
    assert contexts(ROWS, 0.0, 0.0) == [Context()] * len(ROWS)
    assert Context()("How do I boil an egg?") == "How do I boil an egg?"


def test_a_share_comes_second_behind_a_row_of_the_same_fold() -> None:
    rows = many()
    behind = [(row, c.first) for row, c in zip(rows, contexts(rows, 0.25, 0.0), strict=True) if c.first is not None]
    assert len(behind) / len(rows) == pytest.approx(0.25, abs=0.02)
    for kind in ("malicious", "benign"):
        assert {first.label for row, first in behind if row.label == kind} == {"malicious", "benign"}
    place = {row.id: index for index, row in enumerate(rows)}
    assert all(place[row.id] % FOLDS == place[first.id] % FOLDS for row, first in behind)
    assert all(first.id != row.id for row, first in behind)


def test_a_refusal_stands_alone_and_a_helpful_answer_may_go_on() -> None:
    found = [c for c in contexts(many(), 1.0, 0.0) if c.first is not None]
    refused = [c for c in found if c.first is not None and c.first.label == "malicious"]
    helped = [c for c in found if c.first is not None and c.first.label == "benign"]
    assert refused
    assert all(c.said == c.first.unwill for c in refused if c.first is not None)
    assert all(c.said.startswith(c.first.glad) for c in helped if c.first is not None)
    longer = [c for c in helped if c.first is not None and c.said != c.first.glad]
    assert 0.6 < len(longer) / len(helped) < 0.9


def test_a_share_stands_under_one_of_the_system_prompts() -> None:
    rows = many()
    found = contexts(rows, 0.25, 0.3)
    assert sum(c.system is not None for c in found) / len(rows) == pytest.approx(0.3, abs=0.02)
    for kind in ("malicious", "benign"):
        given = {c.system for row, c in zip(rows, found, strict=True) if row.label == kind}
        assert given == {None, *SYSTEM_PROMPTS}
    assert any(c.system is not None and c.first is not None for c in found)


def test_a_conversation_ends_in_the_instruction() -> None:
    first = ROWS[0]
    messages = Context(SYSTEM_PROMPTS[0], first, first.unwill)("And now?")
    assert messages == [
        {"role": "system", "content": SYSTEM_PROMPTS[0]},
        {"role": "user", "content": first.instruction},
        {"role": "assistant", "content": first.unwill},
        {"role": "user", "content": "And now?"},
    ]


def test_twins_share_a_fold() -> None:
    rows = [dataclasses.replace(row, id=str(n), twin="0" if n == 5 else "") for n, row in enumerate(ROWS[:6])]
    assert folds_of(rows) == [0, 1, 2, 3, 0, 0]
