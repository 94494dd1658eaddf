r"""A lm-evaluation-harness model that is scored as it answers: the first m tokens routed, the rest by the plain base.

For a context x and a continuation c of n tokens

    log p(c | x) = Σ_{k ≤ m} log p_routed(c_k | x, c_{<k}) + Σ_{k > m} log p_base(c_k | x, c_{<k}),

the probability that MoGU's own decoding gives c after x: routing is on at every position while the first m tokens are
made, and off, with everything read again, afterwards. Both sums come from lm-eval's own scoring; checked against
lm-eval 0.4.13, of whose private parts `_loglikelihood_tokens` is used.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from mogu.adapter.model import mogu_layers, plain_base
from mogu.chat import TEMPLATES
from mogu.errors import ConfigError
from mogu.loading import load_run

_PASSED_ON = (
    *("max_batch_size", "max_length", "add_bos_token", "prefix_token_id", "logits_cache", "truncation"),
    *("softmax_dtype", "mixed_precision_dtype", "chat_template_args", "enable_thinking", "think_end_token"),
)
"""Arguments of HFLM that mean here what they mean there."""

Scored = tuple[float, bool]
"""Log-likelihood of a continuation, and whether greedy decoding gives it."""
Request = tuple[tuple[str, str] | None, list[int], list[int]]
"""Texts (a key for lm-eval's cache), token ids of the context, token ids of the continuation."""


class MoguLM(HFLM):
    """``--model mogu --model_args pretrained=BASE,adapter=RUN``."""

    logits_cache: bool

    def __init__(
        self,
        pretrained: str | None = None,
        adapter: str | None = None,
        *,
        plain: bool = False,
        template: str | None = None,
        routed_tokens: int | None = None,
        dtype: str | None = None,
        device: str | None = None,
        quantize: str | None = None,
        batch_size: int | str = 1,
        **others: Any,
    ) -> None:
        """Load the model.

        Args:
            pretrained: The base: ``smollm2``, a hub id, a folder, a ``.gguf`` file; default: the one the adapter names.
            adapter: Run folder or adapter folder; without one the plain base is scored.
            plain: Leave the adapter off.
            template: Published chat template for ``--apply_chat_template``; default: the adapter's, else the
                tokenizer's.
            routed_tokens: m, where it shall differ from what the adapter was trained with.
            dtype: ``float32`` (default), ``bfloat16``, ``float16``, or ``auto``: the checkpoint's.
            device: A CUDA device that is not there means: what is there.
            quantize: ``4bit`` or ``8bit``.
            batch_size: Requests at a time, or ``auto``.
            **others: What HFLM takes for a model that is already loaded.

        Raises:
            MoguError: As :func:`mogu.loading.load_run`; an argument that means nothing here.
        """
        if unknown := sorted(set(others) - set(_PASSED_ON)):
            known = ", ".join(["pretrained, adapter, plain, template, routed_tokens, dtype, quantize", *_PASSED_ON])
            raise ConfigError(f"unknown model argument {unknown[0]!r}; known: {known}")
        if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
            device = None  # lm-eval's default is cuda:0 everywhere
        self.run = load_run(
            adapter,
            base=pretrained,
            plain=plain,
            template=template,
            routed_tokens=routed_tokens,
            dtype=dtype,
            device=device,
            quantize=quantize,
        )
        if self.run.template is not None:
            self.run.tokenizer.chat_template = TEMPLATES[self.run.template]
        with _without_advice():
            super().__init__(pretrained=self.run.model, tokenizer=self.run.tokenizer, batch_size=batch_size, **others)

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Scored]:
        """Score continuations, the first m tokens routed and the rest plain; see the head of this file.

        A context that is too long is cut on the left, as lm-eval does, for each of the two parts by itself.
        """
        routed = self._routed_tokens()
        if routed == 0:
            with self._plain():
                return self._score(requests, disable_tqdm, override_bs)
        heads: list[Request] = [(None, context, answer[:routed]) for _, context, answer in requests]
        tails: list[Request] = [
            (None, context + answer[:routed], answer[routed:])
            for _, context, answer in requests
            if len(answer) > routed
        ]
        head_scores = self._score(heads, disable_tqdm, override_bs)
        with self._plain():
            tail_scores = iter(self._score(tails, disable_tqdm, override_bs) if tails else ())
        scores = []
        for (key, _, answer), (likelihood, greedy) in zip(requests, head_scores, strict=True):
            if len(answer) > routed:
                rest, rest_greedy = next(tail_scores)
                likelihood, greedy = likelihood + rest, greedy and rest_greedy
            scores.append((likelihood, greedy))
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, scores[-1])
        return scores

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts: an answer to an empty prompt, so its first m tokens are routed, and only they.

        lm-eval cuts a long text into windows and scores them all; here with the plain base, and then the first m tokens
        of the first window are put right.
        """
        routed = self._routed_tokens()
        with self._plain():
            scores = list(super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm))
        texts = [self.tok_encode(request.args[0])[:routed] for request in requests]
        heads: list[Request] = [(None, [self.prefix_token_id], ids) for ids in texts if ids]
        if routed == 0 or not heads:
            return scores
        with self._plain():
            plain = self._score(heads, disable_tqdm, len(heads))
        differences = iter(
            with_routing - without
            for (with_routing, _), (without, _) in zip(self._score(heads, disable_tqdm, len(heads)), plain, strict=True)
        )
        return [score + next(differences) if ids else score for score, ids in zip(scores, texts, strict=True)]

    def get_model_info(self) -> dict[str, Any]:
        """What decides the numbers, for lm-eval's results; HFLM would ask the hub for a model of this name."""
        return {
            "model_num_parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "model_dtype": str(self.model.dtype),
            **{f"mogu_{name}": value for name, value in self.run.record().items()},
        }

    def _score(self, requests: Sequence[Request], disable_tqdm: bool, override_bs: int | None) -> list[Scored]:
        """lm-eval's own scoring with the model as it is now.

        Its cache of logits takes requests of the same tokens together, and scores the shorter continuations among them
        at the wrong places (lm-eval 0.4.13); where there are such, the cache stays off.
        """
        cache = self.logits_cache
        self.logits_cache = cache and not _split_in_two_ways(requests)
        try:
            scored: list[Scored] = super()._loglikelihood_tokens(
                list(requests), disable_tqdm=disable_tqdm, override_bs=override_bs
            )
        finally:
            self.logits_cache = cache
        return scored

    def _off(self) -> bool:
        """Whether there is no adapter, or it is switched off."""
        return self.run.adapter is None or mogu_layers(self.model)[0][1].disable_adapters

    def _routed_tokens(self) -> int:
        """m; 0 where there is nothing to route."""
        return 0 if self._off() else self.run.routed_tokens

    def _plain(self) -> AbstractContextManager[None]:
        """The plain base within this."""
        return nullcontext() if self._off() else plain_base(self.model)


def _split_in_two_ways(requests: Sequence[Request]) -> bool:
    """Whether two requests have the same tokens but the last, split into context and continuation at two places."""
    lengths: dict[tuple[int, ...], int] = {}
    return any(
        lengths.setdefault((*context, *answer[:-1]), len(answer)) != len(answer) for _, context, answer in requests
    )


@contextmanager
def _without_advice() -> Iterator[None]:
    """No warnings that a loaded model takes fewer arguments: the others are refused above."""
    logger = logging.getLogger("lm_eval.models.huggingface")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
