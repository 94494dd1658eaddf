"""Layers in pieces compute what they compute whole, or are left whole."""

from __future__ import annotations

from typing import Any

import pytest
import small
import torch
from test_fit import TRAIN, adapted, encoder, routers
from torch import nn
from torch.testing import assert_close

from mogu.adapter.model import decoder_layers
from mogu.train import pieces
from mogu.train.fit import fit_routers
from mogu.train.pieces import in_pieces, piece_lines

LINES = 5


def inputs() -> dict[str, torch.Tensor]:
    ids = (torch.arange(12) * 7 + torch.arange(LINES)[:, None] * 3) % len(small.tokenizer())
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    return {"input_ids": ids, "attention_mask": mask}


def layers(model: Any) -> dict[int, nn.Module]:
    return dict(enumerate(decoder_layers(model)))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_all_lines_come_out_as_they_do_together(size: int) -> None:
    model = adapted()
    base = model.get_base_model().base_model
    with torch.no_grad():
        whole = base(**inputs(), use_cache=False)[0]
        with in_pieces(layers(model), LINES, size):
            apart = base(**inputs(), use_cache=False)[0]
    assert_close(apart, whole)


def test_a_piece_holds_as_many_lines_as_its_tokens_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted()
    base = model.get_base_model().base_model
    columns = inputs()["input_ids"].shape[1]
    for tokens, size in ((2 * columns, 2), (columns - 1, 1), (LINES * columns, LINES)):
        monkeypatch.setattr(pieces, "PIECE_TOKENS", tokens)
        assert piece_lines(base, inputs(), layers(model)) == size


@pytest.mark.parametrize("fault", ["differs", "raises"])
def test_a_model_that_computes_something_else_in_pieces_is_left_whole(
    monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    model = adapted()
    layer = decoder_layers(model)[0]
    own = layer.forward

    def forward(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if len(hidden) < 2 and fault == "raises":
            raise RuntimeError("two lines at least")
        return own(hidden * len(hidden), *args, **kwargs)

    monkeypatch.setattr(layer, "forward", forward)
    monkeypatch.setattr(pieces, "PIECE_TOKENS", 1)
    assert piece_lines(model.get_base_model().base_model, inputs(), layers(model)) == LINES
    assert layer.forward is forward


def test_routers_fitted_in_pieces_are_those_fitted_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    sizes = []
    real = in_pieces

    def noted(layers: Any, lines: int, size: int, stops: Any = None) -> Any:
        sizes.append((size, lines))
        return real(layers, lines, size, stops)

    monkeypatch.setattr("mogu.train.fit.in_pieces", noted)
    for tokens in (10**6, 64):
        monkeypatch.setattr(pieces, "PIECE_TOKENS", tokens)
        model = adapted()
        fit_routers(model, encoder(), TRAIN, l2=0.1, pack=False)
        found.append(routers(model))
    (whole, lines), (piece, _) = sizes
    assert whole == lines > 3 * piece
    for one, two in zip(*found, strict=True):
        assert_close(one[0], two[0], atol=2e-3, rtol=2e-3)
        assert_close(one[1], two[1], atol=2e-3, rtol=2e-3)
