"""The page of a layer probe."""

from __future__ import annotations

import re

from mogu.evaluate.layers import layer_page, layer_table, shown


def record() -> dict[str, object]:
    losses = (0.6, 0.4, 0.3, 0.31)
    scores = [{"log_loss": loss, "auroc": 1 - loss, "twins": None if loss > 0.5 else 0.7} for loss in losses]
    return {
        "model": "<tiny>",
        "rows": {"malicious": 3, "benign": 4},
        "held_out": ["categories"],
        "chosen_by": "projection, last",
        "chosen": {"layers": [2, 3], "log_loss": 0.305, "best": 0.305},
        "scores": {"projection, last": scores, "residual, last": scores},
    }


def test_a_row_for_each_layer_with_a_star_where_it_was_chosen() -> None:
    header, *rows = layer_table(record())
    assert [row[:2] for row in rows] == [["0", ""], ["1", ""], ["2", "*"], ["3", "*"]]
    assert header[2] == "projection, last: log-loss (AUROC, twins)"
    assert rows[0][2] == "0.600 (0.400, –)"
    assert rows[2][2] == "0.300 (0.700, 0.700)"


def test_the_page_shows_the_choice_and_escapes_names() -> None:
    page = layer_page(record())
    assert "&lt;tiny&gt; · 3 malicious, 4 benign prompts" in page
    assert "projection, last: layers 2–3" in page
    assert page.count("<svg") == 3 + 6  # plots, and what their legends show
    assert not re.search(r"(src|href)=", page)


def test_layers_as_ranges() -> None:
    assert shown([7]) == "7"
    assert shown([9, 3, 4]) == "3–4, 9"
