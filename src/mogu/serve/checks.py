"""Whether a prompt can be answered at all."""

from __future__ import annotations

import math
from typing import Any

from mogu.adapter.config import HANDOVERS
from mogu.errors import GenerationError
from mogu.serve.requests import Prompt


def check(prompt: Prompt, context: int, vocabulary: int) -> None:
    """Raise :class:`GenerationError` for a prompt that can never be answered.

    Args:
        prompt: What is asked.
        context: Most tokens of prompt and answer together.
        vocabulary: Token ids are below it.
    """
    for rule, (met, value) in _rules(prompt).items():
        if not met:
            raise GenerationError(f"{rule}, not {value!r}")
    if not prompt.ids:
        raise GenerationError("the prompt is empty")
    if not 0 <= min(prompt.ids) <= max(prompt.ids) < vocabulary:
        raise GenerationError(f"the prompt holds a token id that is not in the vocabulary of {vocabulary}")
    if len(prompt.ids) + prompt.sampling.max_tokens > context:
        raise GenerationError(
            f"{len(prompt.ids)} tokens of prompt and {prompt.sampling.max_tokens} of answer are more than the "
            f"{context} that fit; shorten the prompt or lower max_tokens"
        )


def _rules(prompt: Prompt) -> dict[str, tuple[bool, Any]]:
    """What has to hold, whether it does, and the value."""
    sampling, routing = prompt.sampling, prompt.routing
    presence, frequency = sampling.presence_penalty, sampling.frequency_penalty
    handovers = ", ".join(HANDOVERS)
    return {
        "max_tokens must be at least 1": (sampling.max_tokens >= 1, sampling.max_tokens),
        "temperature must be at least 0": (0 <= sampling.temperature < math.inf, sampling.temperature),
        "top_p must be above 0 and at most 1": (0 < sampling.top_p <= 1, sampling.top_p),
        "top_k must be at least 0": (sampling.top_k >= 0, sampling.top_k),
        "presence_penalty must be a finite number": (math.isfinite(presence), presence),
        "frequency_penalty must be a finite number": (math.isfinite(frequency), frequency),
        "logprobs must be at least 0": ((sampling.logprobs or 0) >= 0, sampling.logprobs),
        "routed_tokens must be at least 0": ((routing.routed_tokens or 0) >= 0, routing.routed_tokens),
        f"handover must be one of {handovers}": (routing.handover in (None, *HANDOVERS), routing.handover),
        "the dial must be a finite number": (math.isfinite(routing.dial), routing.dial),
    }
