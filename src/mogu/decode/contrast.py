"""SafeDecoding's contrast between a base and a safety expert (Xu et al. 2024, arXiv:2402.08983, section 4).

At each of the first m new tokens, with P and P' the next-token distributions of base and expert and V^k, V'^k their k
most likely tokens:

    S = V^k ∩ V'^k with the smallest k for which S has at least c tokens
    Q(x) ∝ max(0, P(x) + α (P'(x) - P(x))) for x in S, and 0 elsewhere

Everything after comes from the plain base. The base runs at every step, so its cache stays valid throughout: unlike
routing, the contrast is an ordinary logits processor of the base's own ``generate``, and needs no hand-over.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from transformers import LogitsProcessor, PreTrainedModel


def contrast(base: torch.Tensor, expert: torch.Tensor, alpha: float, common: int) -> torch.Tensor:
    """Probabilities of the next token.

    Where every token of S would get nothing, the expert's own probabilities on S stand in.

    Args:
        base: (rows, vocabulary) logits of the base.
        expert: The same of the expert.
        alpha: α, weight of the difference.
        common: c, tokens that S has at least.

    Returns:
        (rows, vocabulary) float32, each row summing to 1.
    """
    p_base, p_expert = (torch.softmax(logits.float(), dim=-1) for logits in (base, expert))
    depth = torch.maximum(_rank(base), _rank(expert))
    k = depth.sort(dim=-1).values[:, min(common, depth.shape[-1]) - 1, None]
    space = depth <= k
    mixed = (p_base + alpha * (p_expert - p_base)).clamp(min=0) * space
    mixed = torch.where(mixed.sum(dim=-1, keepdim=True) > 0, mixed, p_expert * space)
    return mixed / mixed.sum(dim=-1, keepdim=True)


def _rank(logits: torch.Tensor) -> torch.Tensor:
    """How many tokens of the row come before each one, from the likeliest down; equal ones by their id."""
    order = logits.argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)


class ContrastProcessor(LogitsProcessor):
    """Logits processor for ``generate`` of the base; made anew for every call, as it keeps the expert's cache."""

    def __init__(
        self,
        model: PreTrainedModel,
        expert: Callable[[], AbstractContextManager[Any]],
        inputs: dict[str, torch.Tensor],
        *,
        tokens: int,
        alpha: float,
        common: int,
    ) -> None:
        """Contrast for one batch.

        Args:
            model: The base.
            expert: Context manager inside which the expert's weights are on the base.
            inputs: ``input_ids`` and ``attention_mask`` (rows × length) of the left-padded prompts.
            tokens: m, new tokens from the contrast.
            alpha: As for :func:`contrast`.
            common: As for :func:`contrast`.
        """
        self.model, self.expert, self.mask = model, expert, inputs["attention_mask"]
        self.prompt_length = inputs["input_ids"].shape[1]
        self.tokens, self.alpha, self.common = tokens, alpha, common
        self.cache: Any = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of the contrast at the first m new tokens, later the base's ``scores`` as they are."""
        if input_ids.shape[1] >= self.prompt_length + self.tokens:
            self.cache = None
            return scores
        return contrast(scores, self._expert_logits(input_ids), self.alpha, self.common).log()

    def _expert_logits(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Logits (rows, vocabulary) of the expert after ``input_ids``, of which it reads what it has not seen."""
        mask = self.mask.repeat_interleave(input_ids.shape[0] // self.mask.shape[0], dim=0)
        mask = torch.cat([mask, mask.new_ones(mask.shape[0], input_ids.shape[1] - mask.shape[1])], dim=1)
        new = input_ids.shape[1] if self.cache is None else input_ids.shape[1] - self.cache.get_seq_length()
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        inputs = {"position_ids": positions[:, -new:], "logits_to_keep": 1}
        accepts = inspect.signature(self.model.forward).parameters
        with self.expert():
            output = self.model(
                input_ids=input_ids[:, -new:],
                attention_mask=mask,
                past_key_values=self.cache,
                use_cache=True,
                **{name: value for name, value in inputs.items() if name in accepts},
            )
        self.cache = output.past_key_values
        logits: torch.Tensor = output.logits[:, -1]
        return logits
