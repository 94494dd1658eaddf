"""Routed rows, plain rows, and rows with shifts of their own in one forward."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import tiny
import torch
from torch.testing import assert_close

from mogu.adapter.model import dialled, fused, mogu_layers, plain_base, recorded_logits
from mogu.adapter.rows import by_row

X = torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(2))
SHIFTS = (0.5, None, -1.0)


@pytest.mark.parametrize("in_few_operations", [True, False])
def test_every_row_of_a_layer_gets_its_own(in_few_operations: bool) -> None:
    model = tiny.adapted("llama", router="folded")
    layer = mogu_layers(model)[0][1]
    with torch.no_grad(), fused(model) if in_few_operations else nullcontext():
        expected = []
        for row, shift in zip(X, SHIFTS, strict=True):
            with plain_base(model) if shift is None else dialled(model, shift):
                expected.append(layer(row[None]))
        whole = layer.base_layer(X)
        with by_row(model) as rows:
            assert torch.equal(layer(X), whole)  # nothing is set yet
            rows.set(SHIFTS, 4, X.device, X.dtype)
            found = layer(X)
            assert len(rows.logits) == 1
            rows.set([None] * 3, 4, X.device, X.dtype)
            assert torch.equal(layer(X), whole)
            assert not rows.logits
        assert layer.rows is None
    assert torch.equal(found[1], whole[1])  # to the last bit
    assert_close(found, torch.cat(expected), atol=1e-5, rtol=1e-5)


def test_router_logits_are_those_that_are_recorded() -> None:
    model = tiny.adapted("llama", router="folded", shift=0.3)
    ids = torch.cat(tiny.prompts(6, 6))
    with torch.no_grad(), fused(model):
        with recorded_logits(model) as logits:
            model(input_ids=ids)
            expected = logits()
        with by_row(model) as rows:
            rows.set([0.3, 0.3], 6, ids.device, torch.float32)
            model(input_ids=ids)
            found = torch.stack(rows.logits)
    assert expected is not None
    assert_close(found.view(tiny.LAYERS, 2, 6, 2).permute(3, 0, 1, 2), expected)


def test_a_backbone_lora_leaves_plain_rows_alone() -> None:
    model = tiny.adapted("llama", router="folded", backbone_modules=["q", "o", "down"])
    ids = torch.cat(tiny.prompts(6, 6, 6))
    with torch.no_grad(), fused(model):
        with plain_base(model):
            plain = model(input_ids=ids).logits
        expected = [model(input_ids=ids[:1]).logits[0], plain[1]]
        with by_row(model) as rows:
            assert_close(model(input_ids=ids).logits, plain)
            rows.set([0.0, None, 0.0], 6, ids.device, torch.float32)
            found = model(input_ids=ids).logits
    assert (expected[0] - plain[0]).abs().max() > 1e-3
    assert_close(found[0], expected[0], atol=1e-4, rtol=1e-4)
    assert_close(found[1], expected[1], atol=1e-4, rtol=1e-4)
