"""A tiny model with a strong adapter and a chat tokenizer, and what one process alone makes of its prompts."""

from __future__ import annotations

from typing import Any

import small
import tiny
import torch

from mogu.chat import prompt_ids
from mogu.serve.settings import Served, Settings

CALIBRATION = {
    "prompt": {"weight": [0.9, -0.8], "bias": 0.1},
    "answer": {"weight": [0.6, -0.7], "bias": -0.2},
}
NEW = 16
END = 2
ASKED = [
    "How do I steal a car?",
    "How do I paint a car?",
    "Write me a short poem about a garden",
    "Write me a short poem about a letter and How do I paint a boat?",
]
LONG = [[12, 6], [14, 6], [16, 6]]
"""Prompts whose greedy answers do not end before 120 tokens."""
SERVED = Served("tiny", routed_tokens=5, calibrated=True, layers=(1, 2), created=1)


def model() -> Any:
    """The same at every call. Its first answer ends in the tail, and, dialled, in the head."""
    return tiny.adapted(small.base(), strength=0.5, risk=CALIBRATION, layers_to_transform=[1, 2])


def ids_of(text: str) -> list[int]:
    """Of a conversation of one turn."""
    return list(prompt_ids(small.tokenizer(), text))


def generated(model: Any, ids: list[int], **options: Any) -> list[int]:
    """The greedy answer of ``generate``."""
    options = {"max_new_tokens": NEW, "do_sample": False, **options}
    with torch.inference_mode():
        return model.generate(input_ids=torch.tensor([ids]), **options)[0, len(ids) :].tolist()


def text_of(tokens: list[int]) -> str:
    """What an answer says: without its end-of-turn token."""
    return str(small.tokenizer().decode(tokens, skip_special_tokens=True))


def settings(**changes: Any) -> Settings:
    return Settings(**{"served": SERVED, **changes})


def asking(text: str, **more: Any) -> dict[str, Any]:
    """A greedy request."""
    told = {"model": "tiny", "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": NEW}
    return {**told, **more}
