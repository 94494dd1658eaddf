"""Answers of a model to many instructions, in batches of like length."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from mogu import processes
from mogu.chat import Message, pad_prompts, prompt_ids
from mogu.prefix import fits, pad_after, prefilled, shares, template_prefix

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CPU_SIZES, _GPU_SIZES = (8, 16, 32), (16, 32, 64, 128, 256)
FEW_PROMPTS = 8
"""Not worth trying batch sizes for."""
_PROBE_TOKENS = 6


def respond(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Sequence[Message]],
    *,
    max_new_tokens: int,
    batch_size: int = 32,
    template: str | None = None,
    on_done: Callable[[int, str], None] | None = None,
    **options: Any,
) -> list[str]:
    """Greedy answers to ``prompts``, in their order.

    Args:
        model: Anything with transformers' ``generate``; a MoGU model answers routed, then plain.
        tokenizer: Its tokenizer.
        prompts: Bare instructions or conversations.
        max_new_tokens: Length at which an answer is cut.
        batch_size: Prompts at a time.
        template: As for :func:`mogu.chat.prompt_ids`.
        on_done: Called with the index and text of each answer as it arrives.
        **options: Further options of ``generate``, such as ``do_sample=True``.
    """
    answers = [""] * len(prompts)
    options |= {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "template": template}
    for index, new in response_ids(model, tokenizer, prompts, **options):
        answers[index] = as_text(tokenizer, new)
        if on_done is not None:
            on_done(index, answers[index])
    return answers


def response_ids(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Sequence[Message]],
    *,
    max_new_tokens: int,
    batch_size: int = 32,
    template: str | None = None,
    **options: Any,
) -> Iterator[tuple[int, torch.Tensor]]:
    """As :func:`respond`, but index and new token ids, (new tokens,) int64, of each answer as it arrives.

    What the template begins every prompt with is read once a batch, where the model says the same with that.
    """
    ids = [prompt_ids(tokenizer, prompt, template=template) for prompt in prompts]
    shared = [] if "num_beams" in options else shared_beginning(model, tokenizer, ids, template)
    options = {"do_sample": False, "max_new_tokens": max_new_tokens, **options}
    for indices in by_length(ids, batch_size):
        group = [ids[index] for index in indices]
        with torch.inference_mode():
            if shared and fits(shared, group):
                batch = pad_after(tokenizer, shared, group, model.device)
                output = model.generate(**batch, **_given(model, batch["input_ids"], len(shared)), **options)
            else:
                batch = pad_prompts(tokenizer, group, model.device)
                output = model.generate(**batch, **options)
        yield from zip(indices, output[:, batch["input_ids"].shape[1] :], strict=True)


def shared_beginning(
    model: Any, tokenizer: PreTrainedTokenizerBase, ids: Sequence[Sequence[int]], template: str | None
) -> list[int]:
    """What the template begins every prompt with, if it is worth reading once and ``model`` says the same with that."""
    if len(ids) < FEW_PROMPTS:
        return []
    prefix = template_prefix(tokenizer, template)
    return prefix if shares(model, tokenizer, prefix, ids) else []


def _given(model: Any, ids: torch.Tensor, shared: int) -> dict[str, Any]:
    """How ``generate`` is told that all rows of ``ids`` begin with so many equal tokens."""
    if getattr(getattr(model, "base_model", None), "takes_shared_prefix", False):
        return {"shared_prefix": shared}
    return {"past_key_values": prefilled(model, ids[:1, :shared], len(ids))}


def as_text(tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor) -> str:
    """An answer's token ids as the text that people read."""
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


def batches(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Sequence[Message]],
    batch_size: int,
    template: str | None,
    device: Any,
) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
    """Left-padded batches of prompts of like length, with the index of each row; the longest come first."""
    ids = [prompt_ids(tokenizer, prompt, template=template) for prompt in prompts]
    for indices in by_length(ids, batch_size):
        yield indices, pad_prompts(tokenizer, [ids[index] for index in indices], device)


def share_of(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Sequence[Message]],
    batch_size: int,
    template: str | None,
) -> list[int]:
    """Indices of the prompts that fall to this process: whole batches, so that each is as one process makes it."""
    ids = [prompt_ids(tokenizer, prompt, template=template) for prompt in prompts]
    return [index for batch in processes.share(list(by_length(ids, batch_size))) for index in batch]


def by_length(ids: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    """Indices of prompts in batches of like length; the longest come first."""
    order = sorted(range(len(ids)), key=lambda index: -len(ids[index]))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def good_batch_size(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Sequence[Message]],
    *,
    template: str | None = None,
    sizes: Sequence[int] | None = None,
) -> int:
    """The smallest batch size at which decoding on this machine is within a tenth of the fastest that memory allows.

    Each size is tried on as many of ``prompts`` for a few tokens: some seconds on two CPU cores for a small model.
    """
    sizes = sizes or (_CPU_SIZES if model.device.type == "cpu" else _GPU_SIZES)
    rates: dict[int, float] = {}
    for size in (sizes[0], *sizes):  # the first call of all also pays for what later ones find ready
        sample = [prompts[index % len(prompts)] for index in range(size)]
        start = time.perf_counter()
        try:
            respond(
                model,
                tokenizer,
                sample,
                max_new_tokens=_PROBE_TOKENS,
                min_new_tokens=_PROBE_TOKENS,
                batch_size=size,
                template=template,
            )
        except (torch.OutOfMemoryError, MemoryError):
            break
        rates[size] = size / (time.perf_counter() - start)
    fastest = max(rates.values(), default=0.0)
    return min((size for size, rate in rates.items() if rate * 1.1 >= fastest), default=sizes[0])
