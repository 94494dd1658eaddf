"""Perplexity filter: text that no person would write, such as an optimised suffix, is stopped."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from mogu import processes
from mogu.data.rows import Row, write_text
from mogu.defend.base import REFUSAL, Conversation, Defense, Stopped, Target
from mogu.defend.conversation import user_texts
from mogu.defend.learnt import inputs_hash, read_batch, rows_of
from mogu.errors import ConfigError
from mogu.progress import Progress
from mogu.train.batches import pad

_BATCH_TOKENS = 1024
"""In one forward; the logits of all of them are in memory together."""


@dataclass(frozen=True)
class PerplexitySettings:
    """What is measured, and how much of it is too much."""

    window: int | None = None
    """``None`` takes the whole text; a number takes the worst of all windows of so many tokens (Jain et al.: 10)."""
    quantile: float = 1.0
    """The limit is this quantile over benign training instructions; 1 is their maximum, as published."""

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ConfigError(f"window must be at least 1 token, not {self.window}")
        if not 0 < self.quantile <= 1:
            raise ConfigError(f"quantile must be in (0, 1], not {self.quantile}")


class PerplexityFilter(Defense):
    """Refuses conversations in which the user's text is less likely under the base than any benign instruction."""

    name = "perplexity"
    summary = "stops text that is less likely under the base than all benign training instructions"
    source = "Alon & Kamfonas 2023, arXiv:2308.14132; Jain et al. 2023, arXiv:2309.00614"

    def __init__(self, target: Target, settings: PerplexitySettings | None = None) -> None:
        super().__init__(target)
        self.options = settings or PerplexitySettings()
        self._limit: float | None = None

    @cached_property
    def _rows(self) -> list[Row]:
        return rows_of(self.target, "train", ("benign",), self.name)

    @cached_property
    def _inputs(self) -> str:
        return inputs_hash(self.target, self._rows, dataclasses.asdict(self.options))

    @property
    def limit(self) -> float:
        """Perplexity above which a conversation is stopped."""
        if self._limit is None:
            self.prepare(Progress())
        assert self._limit is not None
        return self._limit

    def settings(self) -> dict[str, Any]:
        """The options, and a hash of base and rows."""
        return {**dataclasses.asdict(self.options), "inputs": self._inputs}

    def prepare(self, progress: Progress) -> None:
        """Measure the benign training instructions, or read what was measured before."""
        path = self.target.workspace / self.name / f"{self._inputs}.json"
        if not processes.from_main(path.is_file):
            progress.begin(self.name, f"perplexity: the limit from {len(self._rows)} benign instructions")
            limit = processes.from_main(lambda: self._measure(path))
            progress.end(f"limit {limit:.0f}")
        self._limit = float(json.loads(path.read_text(encoding="utf-8"))["limit"])

    def _measure(self, path: Path) -> float:
        found = perplexities(self.target, [row.instruction for row in self._rows], self.options.window)
        limit = float(torch.tensor(found, dtype=torch.float64).quantile(self.options.quantile))
        write_text(path, json.dumps({"limit": limit, "rows": len(self._rows)}) + "\n")
        return limit

    def before(self, conversations: Sequence[Conversation]) -> list[Conversation | Stopped]:
        """The conversations, or a stop for each with a user's turn above the limit."""
        limit = self.limit
        texts = [(index, text) for index, one in enumerate(conversations) for text in user_texts(one)]
        worst = [1.0] * len(conversations)
        found = perplexities(self.target, [text for _, text in texts], self.options.window)
        for (index, _), value in zip(texts, found, strict=True):
            worst[index] = max(worst[index], value)
        return [
            Stopped(REFUSAL, f"perplexity {value:.0f} above {limit:.0f}") if value > limit else conversation
            for conversation, value in zip(conversations, worst, strict=True)
        ]


def perplexities(target: Target, texts: Sequence[str], window: int | None = None) -> list[float]:
    """exp of the mean negative log-likelihood per token of each bare text under the base.

    Of the first token nothing is counted, as nothing comes before it; a text without a second token gets 1.

    Args:
        target: The base.
        texts: What to measure, without chat template.
        window: The worst of all windows of so many tokens instead of the whole text, which shorter texts still get.
    """
    ids = [list(target.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    found = [1.0] * len(texts)
    order = sorted((n for n in range(len(ids)) if len(ids[n]) > 1), key=lambda n: -len(ids[n]))
    while order:
        size = max(_BATCH_TOKENS // len(ids[order[0]]), 1)
        indices, order = order[:size], order[size:]
        for index, losses in zip(indices, _losses(target, [ids[n] for n in indices]), strict=True):
            found[index] = _perplexity(losses, window)
    return found


def _losses(target: Target, ids: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Negative log-likelihood in nats of each row's tokens but the first, float32 (tokens - 1,)."""
    model = target.model
    batch = pad([([], list(row)) for row in ids], target.tokenizer.pad_token_id)
    logits = read_batch(model, {k: v.to(model.device) for k, v in batch.items()}).logits
    losses = functional.cross_entropy(
        logits[:, :-1].transpose(1, 2).float(), batch["input_ids"][:, 1:].to(model.device), reduction="none"
    ).cpu()
    return [row[len(row) - len(tokens) + 1 :] for row, tokens in zip(losses, ids, strict=True)]


def _perplexity(losses: torch.Tensor, window: int | None) -> float:
    if window is not None and len(losses) > window:
        return math.exp(losses.unfold(0, window, 1).mean(dim=1).max())
    return math.exp(losses.mean())
