"""How far training moved a model from its base on what it should leave alone: benign prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from mogu.adapter.model import plain_base
from mogu.data.rows import Row
from mogu.train.batches import Encoder, answer_logits, pad
from mogu.train.losses import IGNORED

DRIFT_ROWS = 12
"""Benign training rows on which the divergence is taken: the only ones with the base's own answers."""
_BATCH = 4


class Drift:
    """Mean KL(base ‖ model) in nats per token, on the first tokens of the base's own answers to benign prompts.

    The base's distributions are computed once, when first needed.
    """

    def __init__(
        self,
        model: Any,
        encode: Encoder,
        rows: Sequence[Row],
        *,
        first: int,
        accepts: frozenset[str],
        count: int = DRIFT_ROWS,
    ) -> None:
        """
        Args:
            model: peft model with a MoGU adapter.
            encode: Encoder of the run.
            rows: Training rows; benign ones that are not borderline are used, at most ``count`` of them.
            first: Answer tokens compared: the routed ones.
            accepts: Names of the parameters of the base's forward.
            count: See ``rows``.
        """
        benign = [row for row in rows if row.label == "benign" and not row.borderline and row.glad]
        encoded = [encode(row.instruction, row.glad, closed=False) for row in benign[:count]]
        cut = [(prompt, answer[: max(first, 1)]) for prompt, answer in encoded if answer]
        cut.sort(key=lambda pair: -len(pair[0]))
        self.model, self.accepts = model, accepts
        self.batches = [pad(cut[n : n + _BATCH], encode.tokenizer.pad_token_id) for n in range(0, len(cut), _BATCH)]
        self._base: list[torch.Tensor] = []

    def __call__(self) -> float | None:
        """Of the model as it is; ``None`` without benign rows."""
        if not self.batches:
            return None
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                if not self._base:
                    with plain_base(self.model):
                        self._base = [self._logs(batch) for batch in self.batches]
                found = [
                    (base.exp() * (base - self._logs(batch))).sum(dim=1).clamp(min=0)
                    for base, batch in zip(self._base, self.batches, strict=True)
                ]
        finally:
            self.model.train(was_training)
        return float(torch.cat(found).mean())

    def _logs(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """(answer tokens, vocabulary) float32 log-probabilities, on the CPU."""
        logits, labels = answer_logits(self.model, {k: v.to(self.model.device) for k, v in batch.items()}, self.accepts)
        said = labels[:, 1:] != IGNORED
        return functional.log_softmax(logits[:, :-1][said].float(), dim=-1).cpu()
