"""Rows of the fitting pass in packed lines: who lies where, who reads whom, and where it may be done."""

from __future__ import annotations

import pytest
import small
import tiny
import torch

from mogu.train.layout import LINE_TOKENS, packed, packs_alike, padded

BEGINNING = [3, 4]
ROWS = [([*BEGINNING, 5, 6], [7]), ([*BEGINNING, 8], [9]), ([*BEGINNING, 10], []), ([*BEGINNING, 11, 12, 13], [14, 15])]


def adapted(model_type: str = "llama", **changes: object) -> object:
    return tiny.adapted(small.base(model_type, **changes), strength=0.5, router="folded")


def test_rows_of_a_fold_share_a_line_after_one_copy_of_the_beginning() -> None:
    layout = packed(adapted(), ROWS, [0, 1, 0, 0], [2] * 4, 0)
    ids, positions = layout.inputs["input_ids"].tolist(), layout.inputs["position_ids"].tolist()
    assert ids == [[3, 4, 11, 12, 13, 14, 15, 5, 6, 7, 10], [3, 4, 8, 9, 0, 0, 0, 0, 0, 0, 0]]
    assert positions == [[0, 1, 2, 3, 4, 5, 6, 2, 3, 4, 2], [0, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0]]
    assert (layout.line, layout.end, layout.fold.tolist()) == ([0, 1, 0, 0], [10, 4, 11, 7], [0, 1])
    assert layout.size == 22


def test_rows_that_begin_alike_share_a_line() -> None:
    rows = [*ROWS[:2], ([20, 21, 22, 5], [7]), ([20, 21, 22, 6], [7])]
    layout = packed(adapted(), rows, [0] * 4, [2, 2, 3, 3], 0)
    assert layout.inputs["input_ids"].tolist() == [[3, 4, 5, 6, 7, 8, 9], [20, 21, 22, 5, 7, 6, 7]]
    assert layout.inputs["position_ids"].tolist() == [[0, 1, 2, 3, 4, 2, 3], [0, 1, 2, 3, 4, 3, 4]]
    assert (layout.line, layout.end) == ([0, 0, 1, 1], [5, 7, 5, 7])


def test_a_row_reads_the_beginning_and_itself() -> None:
    (mask,) = packed(adapted(), ROWS[:2], [0, 0], [2, 2], 0).inputs["attention_mask"]
    assert mask[0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 1, 1],
    ]


@pytest.mark.parametrize("shared", [0, 2])
def test_lines_are_filled_and_a_long_row_is_not_cut(shared: int) -> None:
    rows = [([*BEGINNING, *[5] * n], [6]) for n in (300, 90, 80, 70, 60, 50, 40)]
    layout = packed(adapted(), rows, [0] * len(rows), [shared] * len(rows), 0)
    assert layout.line == [0, 1, 1, 1, 2, 1, 2]
    assert layout.inputs["input_ids"].shape[1] <= max(LINE_TOKENS, 303)
    for (prompt, answer), line, end in zip(rows, layout.line, layout.end, strict=True):
        text = (prompt + answer)[shared:]
        assert layout.inputs["input_ids"][line, end - len(text) : end].tolist() == text
        assert layout.inputs["position_ids"][line, end - len(text) : end].tolist() == [
            *range(shared, shared + len(text))
        ]


def test_padded_rows_have_a_line_each() -> None:
    layout = padded(ROWS, [0, 1, 0, 0], 0)
    assert layout.inputs["input_ids"].tolist()[1] == [0, 0, 0, 3, 4, 8, 9]
    assert (layout.line, layout.end, layout.fold.tolist()) == ([0, 1, 2, 3], [7] * 4, [0, 1, 0, 0])


@pytest.mark.parametrize("model_type", ["llama", "falcon", "gpt_neox", "qwen2", "qwen3", "phi", "gpt2"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_same_states_of_every_architecture(model_type: str, attention: str) -> None:
    model = adapted(model_type, attn_implementation=attention)
    assert packs_alike(model, ROWS, [2] * 4, 0)
    base = model.get_base_model().base_model
    with torch.no_grad(), model.disable_adapter():
        layouts = padded(ROWS, [0] * 4, 0), packed(model, ROWS, [0] * 4, [2] * 4, 0)
        states = [base(**one.inputs, use_cache=False)[0][one.line, [e - 1 for e in one.end]] for one in layouts]
    torch.testing.assert_close(*states, atol=1e-5, rtol=1e-4)


def test_not_packed_where_it_would_be_something_else() -> None:
    window = adapted("mistral", sliding_window=4)
    assert not packs_alike(window, ROWS, [2] * 4, 0)
    flash = adapted()
    flash.config._attn_implementation = "flash_attention_2"
    assert not packs_alike(flash, ROWS, [2] * 4, 0)
    deaf = adapted()
    attention = deaf.get_base_model().model.layers[0].self_attn
    forward = attention.forward
    attention.forward = lambda *args, attention_mask=None, **more: forward(*args, attention_mask=None, **more)
    assert not packs_alike(deaf, ROWS, [2] * 4, 0)
