"""SafeDecoding's next-token distribution against its formula, computed afresh with sets."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from mogu.decode.contrast import contrast


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
