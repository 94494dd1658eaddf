"""The next token of each row, with the settings of each row: greedy ones by one operation, drawn ones by few.

Temperature, then ``top_k``, then ``top_p`` of what ``top_k`` left, as in transformers. A row draws by inverting the
cumulative distribution at one number of its own generator, so its draws do not depend on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from mogu.serve.requests import Sampling

_LIKELY = 256
"""Tokens that are looked at first for ``top_p``: nearly always enough, and sorting all takes long."""


class Choice(NamedTuple):
    """One row's token."""

    token: int
    """-1: the model gave numbers that are not finite."""
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Drawer:
    """How one row's tokens are chosen: its settings, its generator, and what its answer holds."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int] = (), repetition: float = 1.0) -> None:
        self.sampling = sampling
        self.greedy = sampling.temperature == 0 or sampling.top_k == 1
        self.generator = torch.Generator()
        if sampling.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(sampling.seed % 2**63)
        self.counts: dict[int, int] = {}
        self.penalised = sampling.presence_penalty != 0 or sampling.frequency_penalty != 0
        self.repetition = repetition
        """Of the base's generation config: tokens of prompt and answer become so many times less likely."""
        self.seen = set(prompt) if repetition != 1 else set()

    def take(self, token: int) -> None:
        """The answer holds one more token."""
        self.counts[token] = self.counts.get(token, 0) + 1
        if self.repetition != 1:
            self.seen.add(token)

    def draw(self) -> float:
        """A number in [0, 1)."""
        return float(torch.rand((), generator=self.generator, dtype=torch.float64))

    def penalise(self, logits: torch.Tensor) -> None:
        """Write to the logits (vocabulary,) of this row."""
        if self.repetition != 1:
            seen = torch.tensor(sorted(self.seen), device=logits.device)
            found = logits[seen]
            logits[seen] = torch.where(found < 0, found * self.repetition, found / self.repetition)
        if self.penalised and self.counts:
            tokens = torch.tensor(list(self.counts), device=logits.device)
            counts = torch.tensor(list(self.counts.values()), device=logits.device, dtype=logits.dtype)
            logits[tokens] -= self.sampling.presence_penalty + self.sampling.frequency_penalty * counts


def choose(logits: torch.Tensor, drawers: Sequence[Drawer]) -> list[Choice]:
    """The next tokens.

    Args:
        logits: (rows, vocabulary).
        drawers: Of the rows; :meth:`Drawer.take` is the caller's to call.
    """
    logits = logits.float()
    scores = logits
    if any(drawer.penalised or drawer.repetition != 1 for drawer in drawers):
        scores = logits.clone()
        for index, drawer in enumerate(drawers):
            drawer.penalise(scores[index])
    best, tokens = scores.max(dim=-1)
    finite = torch.isfinite(best).tolist()
    found = tokens.tolist()
    drawn = [index for index, drawer in enumerate(drawers) if not drawer.greedy and finite[index]]
    cut = [index for index in drawn if drawers[index].sampling.top_k or drawers[index].sampling.top_p < 1]
    for indices, how in (([index for index in drawn if index not in cut], _from_all), (cut, _from_likely)):
        if indices:
            drawing = [drawers[index] for index in indices]
            warm = scores[indices] / _column([drawer.sampling.temperature for drawer in drawing], scores)
            for index, token in zip(indices, how(warm, drawing), strict=True):
                found[index] = token
    made = [Choice(token if good else -1) for token, good in zip(found, finite, strict=True)]
    return _told(logits, drawers, made)


def _from_all(scores: torch.Tensor, drawers: Sequence[Drawer]) -> list[int]:
    return _invert(torch.softmax(scores, dim=-1), drawers)


def _from_likely(scores: torch.Tensor, drawers: Sequence[Drawer], size: int = _LIKELY) -> list[int]:
    """By the likeliest tokens alone; by all where these do not reach ``top_p`` or ``top_k``."""
    vocabulary = scores.shape[1]
    size = min(size, vocabulary)
    values, tokens = scores.topk(size)
    top_k = torch.tensor([drawer.sampling.top_k or vocabulary for drawer in drawers], device=scores.device)[:, None]
    top_p = _column([drawer.sampling.top_p for drawer in drawers], scores)
    kept = torch.arange(size, device=scores.device) < top_k
    masses = torch.where(kept, values, -torch.inf).logsumexp(dim=1, keepdim=True)
    masses = torch.where(top_k <= size, masses, scores.logsumexp(dim=1, keepdim=True))
    shares = torch.where(kept, (values - masses).exp(), 0)
    before = shares.cumsum(dim=1) - shares
    enough = (top_k <= size) | ((top_k >= vocabulary) & (before[:, -1:] + shares[:, -1:] >= top_p))
    if size < vocabulary and not bool(enough.all()):
        good = enough.flatten().tolist()
        few = [index for index, one in enumerate(good) if not one]
        found: dict[int, int] = {}
        for indices, how_many in ((few, vocabulary), ([i for i, one in enumerate(good) if one], size)):
            if indices:
                some = _from_likely(scores[indices], [drawers[index] for index in indices], how_many)
                found.update(zip(indices, some, strict=True))
        return [found[index] for index in range(len(drawers))]
    shares = torch.where(before < top_p, shares, 0)
    ranks = torch.tensor(_invert(shares, drawers), device=scores.device)
    return tokens.gather(1, ranks[:, None]).flatten().tolist()


def _invert(shares: torch.Tensor, drawers: Sequence[Drawer]) -> list[int]:
    """Where the cumulative distribution passes each row's number; shares need not sum to 1."""
    sums = shares.double().cumsum(dim=1)
    at = _column([drawer.draw() for drawer in drawers], sums) * sums[:, -1:]
    found = torch.searchsorted(sums, at, right=True)
    last = shares.shape[1] - 1 - (shares > 0).flip(1).int().argmax(dim=1, keepdim=True)  # against rounding
    return torch.minimum(found, last).flatten().tolist()


def _told(logits: torch.Tensor, drawers: Sequence[Drawer], choices: list[Choice]) -> list[Choice]:
    """With logprobs, where asked."""
    asked = [i for i, drawer in enumerate(drawers) if drawer.sampling.logprobs is not None and choices[i].token >= 0]
    if not asked:
        return choices
    some = logits[asked].log_softmax(dim=-1)
    width = min(max(drawers[index].sampling.logprobs or 0 for index in asked), some.shape[1])
    values, tokens = (each.tolist() for each in some.topk(width))
    for place, index in enumerate(asked):
        count, token = drawers[index].sampling.logprobs or 0, choices[index].token
        top = tuple(zip(tokens[place][:count], values[place][:count], strict=True))
        choices[index] = Choice(token, float(some[place, token]), top)
    return choices


def _column(numbers: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(numbers, dtype=like.dtype, device=like.device)[:, None]
