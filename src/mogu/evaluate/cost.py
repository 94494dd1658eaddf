"""What a defence costs: forward passes and tokens, which are the same at every run, and seconds, which are not.

Passes are counted by a hook on the base model, so whatever a defence does with it (a check before, routing, a second
look after) counts. Timings are kept apart from all other results, in ``cost.json``.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from mogu.defend import Pipeline

_PROBES = 3
"""Prompts for the time to the first token."""


@dataclass
class Cost:
    """Of some answers."""

    answers: int = 0
    tokens: int = 0
    """Tokens of the answers."""
    forwards: int = 0
    """Forward passes of the base, each for a whole batch."""
    tokens_forwarded: int = 0
    """Positions that went through the base, padding included."""
    seconds: float = 0.0


@contextmanager
def measured(model: Any) -> Iterator[Cost]:
    """Count what goes through ``model`` inside; the caller adds answers and their tokens."""
    cost = Cost()
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model

    def count(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        cost.forwards += 1
        if isinstance(ids, torch.Tensor):
            cost.tokens_forwarded += ids.numel()
        elif (embedded := kwargs.get("inputs_embeds")) is not None:
            cost.tokens_forwarded += embedded.shape[0] * embedded.shape[1]

    hook = inner.register_forward_pre_hook(count, with_kwargs=True) if isinstance(inner, torch.nn.Module) else None
    start = time.perf_counter()
    try:
        yield cost
    finally:
        cost.seconds = time.perf_counter() - start
        if hook is not None:
            hook.remove()


def total(costs: Iterable[Mapping[str, Any]]) -> Cost:
    """The sum of recorded costs."""
    found = Cost()
    for one in costs:
        for name in asdict(found):
            setattr(found, name, getattr(found, name) + one[name])
    return found


def per_answer(cost: Cost) -> dict[str, Any]:
    """What does not depend on the clock: answers, and forward passes and tokens for each."""
    n = max(1, cost.answers)
    return {
        "answers": cost.answers,
        "tokens": round(cost.tokens / n, 2),
        "forwards": round(cost.forwards / n, 3),
        "tokens_forwarded": round(cost.tokens_forwarded / n, 1),
    }


def timings(cost: Cost, first_token: float | None) -> dict[str, Any]:
    """What does: seconds, tokens per second, time to the first token, and the process's peak memory so far."""
    return {
        "seconds": round(cost.seconds, 2),
        "tokens_per_second": round(cost.tokens / cost.seconds, 2) if cost.seconds else None,
        "seconds_to_first_token": first_token and round(first_token, 4),
        "peak_memory_mib": peak_memory(),
    }


def first_token_seconds(pipeline: Pipeline, texts: Sequence[str], new_tokens: int) -> float | None:
    """Median seconds until a user reads the first token of an answer, one prompt at a time; ``None`` without prompts.

    A defence that looks at the finished answer shows nothing before, so there it is the time of a whole answer.
    """
    from mogu.defend import Defense

    whole = any(type(one).after is not Defense.after for one in pipeline.defenses)
    seconds = []
    for text in texts[:_PROBES]:
        start = time.perf_counter()
        pipeline.answers([[{"role": "user", "content": text}]], max_new_tokens=new_tokens if whole else 1)
        seconds.append(time.perf_counter() - start)
    return median(seconds) if seconds else None


def peak_memory() -> int:
    """Most memory (MiB) that this process held: of the GPU where there is one, else of the machine."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20)
    unit = 1 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20)
