"""Rows that do not fit into the model's context are named before any work."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import small
from transformers import AutoConfig

from mogu.errors import TrainingError
from mogu.train.check import check_context
from mogu.train.run import train

ROWS = small.rows()
CONTEXT = 128


def longer(row_id: str, words: int) -> list:
    """The rows, one of them with so many words more."""
    return [
        dataclasses.replace(row, instruction=row.instruction + " car" * words) if row.id == row_id else row
        for row in ROWS
    ]


def longest(split: str) -> str:
    return next(row.id for row in ROWS if row.split == split)


def test_rows_that_fit_are_fine() -> None:
    check_context(small.base().config, small.tokenizer(), ROWS, small.RECIPE)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_row_that_is_too_long_is_named(tmp_path: Path, split: str) -> None:
    name = longest(split)
    with pytest.raises(TrainingError) as raised:
        train(small.base(), small.tokenizer(), longer(name, CONTEXT), small.RECIPE, tmp_path / "out", model_name="tiny")
    said = str(raised.value)
    assert said.startswith(f"row {name!r} in the data: prompt and answer take up to ")
    assert said.endswith(f"tokens, the model's context is {CONTEXT}; shorten or remove such rows")
    assert not (tmp_path / "out").exists()


def test_the_limit_is_met_exactly() -> None:
    """Prompt and cut answer together, to the token."""
    name = longest("train")
    row = next(row for row in ROWS if row.id == name)
    words = small.tokenizer()
    prompt = len(words(small.tokenizer().apply_chat_template([{"role": "user", "content": row.instruction}],
                                                             tokenize=False, add_generation_prompt=True),
                       add_special_tokens=False)["input_ids"])  # fmt: skip
    room = CONTEXT - prompt - small.RECIPE.glad.answer_tokens
    config = small.base().config
    check_context(config, words, longer(name, room), small.RECIPE)
    with pytest.raises(TrainingError, match=f"up to {CONTEXT + 1} tokens"):
        check_context(config, words, longer(name, room + 1), small.RECIPE)


def test_the_test_split_is_not_looked_at() -> None:
    check_context(small.base().config, small.tokenizer(), longer(longest("test"), CONTEXT), small.RECIPE)


def test_a_model_without_a_limit_takes_any_length() -> None:
    check_context(AutoConfig.for_model("bloom"), small.tokenizer(), longer(longest("train"), 999), small.RECIPE)
