"""Answers to prompts of token ids, with what callers outside want to know: why an answer ended and what it cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from mogu.chat import pad_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Settings:
    """How answers are drawn. Prompts with equal settings can share a batch, unless they have a seed."""

    new_tokens: int
    """Length at which an answer is cut."""
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    """Sampling starts from it for every prompt anew; ``None`` draws from the process's random numbers."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer, and are no part of it."""
    choices: int = 1
    """Answers to each prompt; greedy ones are all the same."""

    @property
    def sampled(self) -> bool:
        """Greedy without a temperature above 0, a top share or a top count; a temperature of 0 is greedy."""
        if self.temperature is not None:
            return self.temperature > 0
        return self.top_p is not None or self.top_k is not None

    @property
    def alone(self) -> bool:
        """Whether a prompt must not share its batch, because its random numbers would depend on the others."""
        return self.sampled and self.seed is not None

    def options(self) -> dict[str, Any]:
        """Options of ``generate``."""
        options: dict[str, Any] = {"max_new_tokens": self.new_tokens, "do_sample": self.sampled}
        if self.sampled:
            given = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
            options |= {name: value for name, value in given.items() if value is not None}
            options["num_return_sequences"] = self.choices
        return options


@dataclass(frozen=True)
class Completion:
    """One answer."""

    text: str
    tokens: int
    """New tokens, the end-of-turn token included."""
    ended_by: Literal["stop", "length"]
    """An end-of-turn token or stop text, or the length at which it was cut."""


def complete(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], settings: Settings
) -> list[list[Completion]]:
    """``settings.choices`` answers to each of ``prompts`` (token ids), decoded as one batch.

    Args:
        model: Anything with transformers' ``generate``; a MoGU model answers routed, then plain.
        tokenizer: Its tokenizer.
        prompts: Token ids of conversations, see :func:`mogu.chat.prompt_ids`.
        settings: How to draw; with a seed and sampling, give one prompt at a time.
    """
    batch = pad_prompts(tokenizer, prompts, model.device)
    options = settings.options()
    if settings.stop:
        options |= {"stop_strings": list(settings.stop), "tokenizer": tokenizer}
    with torch.inference_mode(), _seeded(settings.seed):
        output = model.generate(**batch, **options)
    rows = output[:, batch["input_ids"].shape[1] :].tolist()
    ends = model.generation_config.eos_token_id
    end_ids = {ends} if isinstance(ends, int) else set(ends or ())
    found = [_read(row, tokenizer, end_ids, settings) for row in rows]
    if not settings.sampled:
        return [[one] * settings.choices for one in found]
    return [found[start : start + settings.choices] for start in range(0, len(found), settings.choices)]


def _read(row: list[int], tokenizer: PreTrainedTokenizerBase, end_ids: set[int], settings: Settings) -> Completion:
    end = next((index for index, token in enumerate(row) if token in end_ids), None)
    ids = row if end is None else row[:end]
    text = str(tokenizer.decode(ids, skip_special_tokens=True))
    found = [text.find(stop) for stop in settings.stop if stop in text]
    if end is None and found:  # the rest of the row is padding
        while ids and ids[-1] == tokenizer.pad_token_id:
            ids = ids[:-1]
    return Completion(
        text=(text[: min(found)] if found else text).strip(),
        tokens=len(ids) + (end is not None),
        ended_by="length" if end is None and not found else "stop",
    )


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Inside, random numbers start from the seed; outside they go on as before."""
    if seed is None:
        yield
        return
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
