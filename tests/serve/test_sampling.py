"""Tokens of many rows against transformers' own processors, one row at a time."""

from __future__ import annotations

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from mogu.serve.requests import Sampling
from mogu.serve.sampling import Drawer, choose

VOCABULARY = 600


def logits(rows: int, spread: float = 2.0) -> torch.Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(1)) * spread


def oracle(row: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Probabilities as transformers has them."""
    scores = TemperatureLogitsWarper(sampling.temperature)(None, row[None])
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(None, scores)
    return scores.softmax(-1)[0]


@pytest.mark.parametrize(
    ("top_k", "top_p", "spread"),
    [(0, 1.0, 2.0), (5, 1.0, 2.0), (0, 0.8, 2.0), (20, 0.7, 2.0), (0, 0.9, 0.1), (400, 0.95, 0.1)],
)
def test_draws_have_transformers_distribution(top_k: int, top_p: float, spread: float) -> None:
    row, count = logits(1, spread), 4000
    settings = [Sampling(1, 0.9, top_p, top_k, seed=seed) for seed in range(count)]
    drawn = choose(row.expand(count, -1), [Drawer(sampling) for sampling in settings])
    expected = oracle(row[0], settings[0])
    found = torch.bincount(torch.tensor([choice.token for choice in drawn]), minlength=VOCABULARY) / count
    assert set(found.nonzero().flatten().tolist()) <= set(expected.nonzero().flatten().tolist())
    # half the summed difference of `count` draws from n equal shares is about sqrt(n / (2 pi count))
    kinds = int((expected > 0).sum())
    assert float((found - expected).abs().sum() / 2) < 1.5 * (kinds / (2 * 3.14159 * count)) ** 0.5 + 0.01


def test_a_seed_draws_the_same_whatever_is_beside_it() -> None:
    rows = logits(4)
    mine = Sampling(1, 1.0, 0.9, seed=5)
    alone = Drawer(mine)
    first = [choose(rows[index : index + 1], [alone])[0].token for index in range(4)]
    beside = Drawer(mine)
    others = [Drawer(Sampling(1, 1.3, seed=seed)) for seed in range(3)]
    second = [choose(rows[[index, 0, 1, 2]], [beside, *others])[0].token for index in range(4)]
    assert first == second


def test_greedy_and_drawn_rows_mix() -> None:
    rows = logits(3)
    found = choose(rows, [Drawer(Sampling(1, 0)), Drawer(Sampling(1, 1.0, seed=1)), Drawer(Sampling(1, 1.0, top_k=1))])
    assert [found[0].token, found[2].token] == rows[[0, 2]].argmax(-1).tolist()


def test_penalties_are_openais() -> None:
    row = torch.zeros(1, VOCABULARY)
    row[0, 7], row[0, 8] = 3.0, 2.0
    drawer = Drawer(Sampling(1, 0, presence_penalty=0.5, frequency_penalty=0.3, logprobs=0))
    expected = float(row[0].log_softmax(-1)[7])
    for _ in range(2):  # 3.0; 3.0 - 0.5 - 0.3; then 3.0 - 0.5 - 0.6 = 1.9 < 2.0
        choice = choose(row, [drawer])[0]
        assert (choice.token, choice.logprob) == (7, pytest.approx(expected))
        drawer.take(choice.token)
    assert choose(row, [drawer])[0].token == 8


def test_logprobs_are_of_the_distribution_before_temperature() -> None:
    rows = logits(2)
    drawers = [Drawer(Sampling(1, 0.5, top_k=3, seed=1, logprobs=2)), Drawer(Sampling(1, 0))]
    told, silent = choose(rows, drawers)
    expected = rows[0].log_softmax(-1)
    assert told.logprob == pytest.approx(float(expected[told.token]), abs=1e-5)
    values, tokens = expected.topk(2)
    assert [token for token, _ in told.top] == tokens.tolist()
    assert [value for _, value in told.top] == pytest.approx(values.tolist(), abs=1e-5)
    assert (silent.logprob, silent.top) == (None, ())


def test_numbers_that_are_not_finite_choose_nothing() -> None:
    rows = logits(2)
    rows[0, 3] = float("nan")
    found = choose(rows, [Drawer(Sampling(1, 0)), Drawer(Sampling(1, 0))])
    assert found[0].token == -1
    assert found[1].token == int(rows[1].argmax())


def test_a_repetition_penalty_counts_the_prompt() -> None:
    row = torch.zeros(1, VOCABULARY)
    row[0, 7], row[0, 8] = 3.0, 2.0
    assert choose(row, [Drawer(Sampling(1, 0), prompt=[7], repetition=2.0)])[0].token == 8
