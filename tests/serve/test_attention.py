"""Steps that attend in groups give what ``sdpa`` gives; checked against transformers 5.17."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from transformers import AttentionInterface

from mogu.serve.attention import NAME, attend, grouped


def made(tokens: int, key_heads: int, columns: int = 9) -> tuple[torch.Tensor, ...]:
    """Query, key, value and mask of two rows with six heads; the first row sees all but the last two columns."""
    query = torch.randn(2, tokens, 6, 8).transpose(1, 2)
    key, value = (torch.randn(2, columns, key_heads, 8).transpose(1, 2) for _ in range(2))
    mask = torch.zeros(2, 1, tokens, columns)
    mask[0, ..., -2:] = torch.finfo(mask.dtype).min
    return query, key, value, mask


@pytest.mark.parametrize(("tokens", "key_heads"), [(1, 2), (1, 1), (1, 6), (4, 2)])
@pytest.mark.parametrize("scaling", [None, 0.7])
def test_it_is_attention(tokens: int, key_heads: int, scaling: float | None) -> None:
    query, key, value, mask = made(tokens, key_heads)
    module = torch.nn.Module()
    module.num_key_value_groups = 6 // key_heads
    output, _ = attend(module, query, key, value, mask, scaling=scaling, dropout=0.0)
    scores = query @ key.repeat_interleave(6 // key_heads, 1).transpose(2, 3) * (scaling or 8**-0.5) + mask
    wanted = scores.softmax(-1) @ value.repeat_interleave(6 // key_heads, 1)
    torch.testing.assert_close(output, wanted.transpose(1, 2))


def test_a_step_copies_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    real = torch.nn.functional.scaled_dot_product_attention

    def watch(query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(key.data_ptr())
        return real(query, key, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watch)
    query, key, value, mask = made(1, 2)
    attend(torch.nn.Module(), query, key, value, mask)
    assert seen == [key.data_ptr()]


def test_a_model_attends_so_inside_and_as_before_outside() -> None:
    model = tiny.base("llama")
    with grouped(model):
        assert model.config._attn_implementation == NAME
    assert model.config._attn_implementation == "sdpa"
    for other in (tiny.base("falcon"), tiny.base("llama", num_key_value_heads=4)):
        before = other.config._attn_implementation
        with grouped(other):
            assert other.config._attn_implementation == before
    model.set_attn_implementation("eager")
    with grouped(model):
        assert model.config._attn_implementation == "eager"
    assert AttentionInterface()[NAME] is attend
