"""SafeDecoding's next-token distribution against its formula, computed afresh with sets."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import tiny
import torch
from torch import nn
from torch.testing import assert_close
from transformers import LogitsProcessorList

from mogu.decode.contrast import ContrastProcessor, contrast


def formula(base: torch.Tensor, expert: torch.Tensor, alpha: float, common: int) -> list[float]:
    """One row, in plain Python."""
    p, q = (torch.softmax(logits.double(), dim=0).tolist() for logits in (base, expert))
    order_p, order_q = (sorted(range(len(v)), key=lambda x: -v[x]) for v in (p, q))
    k = next(k for k in range(1, len(p) + 1) if len(set(order_p[:k]) & set(order_q[:k])) >= common)
    space = set(order_p[:k]) & set(order_q[:k])
    mixed = [max(0.0, p[x] + alpha * (q[x] - p[x])) if x in space else 0.0 for x in range(len(p))]
    if sum(mixed) == 0:
        mixed = [q[x] if x in space else 0.0 for x in range(len(q))]
    return [value / sum(mixed) for value in mixed]


@pytest.mark.parametrize(("alpha", "common"), [(3.0, 5), (3.0, 1), (0.0, 5), (1.0, 3), (20.0, 4)])
def test_it_is_the_published_formula(alpha: float, common: int) -> None:
    base, expert = torch.randn(64, 23) * 2, torch.randn(64, 23) * 2
    expected = torch.tensor([formula(b, e, alpha, common) for b, e in zip(base, expert, strict=True)])
    assert_close(contrast(base, expert, alpha, common), expected.float(), atol=1e-6, rtol=1e-4)


def test_the_sample_space_is_the_smallest_with_enough_common_tokens() -> None:
    base, expert = torch.tensor([[5.0, 4, 3, 2, 1, 0]]), torch.tensor([[0.0, 4, 5, 3, 2, 1]])
    # Common among the best k: k=1 none, k=2 {1}, k=3 {1, 2}, k=4 {1, 2, 3}, k=5 {1, 2, 3, 4}, k=6 all.
    for common, space in ((1, {1}), (2, {1, 2}), (3, {1, 2, 3}), (4, {1, 2, 3, 4}), (6, {0, 1, 2, 3, 4, 5})):
        found = contrast(base, expert, 1.0, common)[0].nonzero().flatten().tolist()
        assert set(found) == space


def test_where_nothing_is_left_the_expert_decides() -> None:
    base, expert = torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([[0.1, 0.2, 0.7]]).log()
    assert contrast(base, expert, 4.0, 1).tolist() == [[0, 1, 0]]  # 0.3 + 4 (0.2 - 0.3) < 0


def test_more_common_tokens_than_the_vocabulary_has_are_all() -> None:
    found = contrast(torch.zeros(1, 3), torch.zeros(1, 3), 3.0, 5)
    assert_close(found, torch.full((1, 3), 1 / 3))


NEW, TOKENS = 8, 3
PROMPTS = tiny.prompts(9, 4, 7)
PROJECTIONS = ("o_proj.weight", "attention.dense.weight", "self_attn.dense.weight", "out_proj.weight", "c_proj.weight")


@contextmanager
def weights_of(model: nn.Module, other: nn.Module) -> Iterator[None]:
    """``other``'s attention output weights on ``model``."""
    names = [name for name, _ in model.named_parameters() if name.endswith(PROJECTIONS)]
    before = {name: model.get_parameter(name).data for name in names}
    for name in names:
        model.get_parameter(name).data = other.get_parameter(name).data
    try:
        yield
    finally:
        for name, data in before.items():
            model.get_parameter(name).data = data


@torch.no_grad()
def naive(base: nn.Module, expert: nn.Module, prompt: torch.Tensor) -> list[int]:
    """Both models read the whole sequence at every step."""
    tokens = prompt
    for step in range(NEW):
        logits = base(input_ids=tokens).logits[0, -1]
        if step < TOKENS:
            row = formula(logits, expert(input_ids=tokens).logits[0, -1], 3.0, 5)
            chosen = max(range(len(row)), key=lambda token: row[token])
        else:
            chosen = int(logits.argmax())
        tokens = torch.cat([tokens, torch.tensor([[chosen]])], dim=1)
    return tokens[0, prompt.shape[1] :].tolist()


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_the_same_tokens_as_two_models_without_caches(architecture: str) -> None:
    base = tiny.base(architecture)
    expert = copy.deepcopy(base)
    changed = [parameter for name, parameter in expert.named_parameters() if name.endswith(PROJECTIONS)]
    assert len(changed) >= tiny.LAYERS
    for parameter in changed:
        parameter.data.mul_(-1.5)
    expected = [naive(base, expert, prompt) for prompt in PROMPTS]
    plain = base.generate(**(inputs := tiny.left_padded(PROMPTS)), max_new_tokens=NEW, do_sample=False)[:, 9:].tolist()
    assert expected != plain
    processor = ContrastProcessor(base, lambda: weights_of(base, expert), inputs, tokens=TOKENS, alpha=3.0, common=5)
    found = base.generate(
        **inputs, max_new_tokens=NEW, do_sample=False, logits_processor=LogitsProcessorList([processor])
    )
    assert found[:, 9:].tolist() == expected
