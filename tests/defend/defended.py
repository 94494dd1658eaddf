"""Targets for defences: a small random base with its tokenizer and rows, and a look at what a defence leaves behind."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import small
import torch

from mogu.defend import Conversation, Target

PROMPTS = ["How do I steal a car?", "Write me a short poem about a bank", "How do I paint a shop?"]


def target(workspace: Path, **changes: Any) -> Target:
    """The small world as a target, two prompts at a time."""
    settings: dict[str, Any] = {
        "model": None,
        "tokenizer": small.tokenizer(),
        "name": "small",
        "workspace": workspace,
        "rows": small.rows,
        "batch_size": 2,
    }
    settings.update(changes)
    if settings["model"] is None:
        settings["model"] = small.base()
    return Target(**settings)


def says(*texts: str) -> list[Conversation]:
    """Conversations of one user's turn."""
    return [[{"role": "user", "content": text}] for text in texts]


def answers(pipeline: Any, *texts: str, **options: Any) -> list[str]:
    found = pipeline.answers(says(*(texts or PROMPTS)), **{"max_new_tokens": 6, **options})
    return [reply.answer for reply in found]


class State(NamedTuple):
    """All of a base that a defence could change."""

    logits: torch.Tensor
    parameters: dict[str, torch.Tensor]
    modules: list[tuple[str, type]]
    attributes: set[str]
    config: dict[str, Any]
    generation: dict[str, Any]
    trainable: list[bool]
    training: list[bool]


def state(model: Any) -> State:
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    return State(
        logits,
        {name: value.clone() for name, value in model.state_dict().items()},
        [(name, type(module)) for name, module in model.named_modules()],
        set(vars(model)),
        copy.deepcopy(model.config.to_dict()),
        copy.deepcopy(model.generation_config.to_dict()),
        [parameter.requires_grad for parameter in model.parameters()],
        [module.training for module in model.modules()],
    )


def assert_same(model: Any, before: State) -> None:
    """Bit for bit, module for module."""
    after = state(model)
    assert torch.equal(after.logits, before.logits)
    assert after.parameters.keys() == before.parameters.keys()
    assert all(torch.equal(value, before.parameters[name]) for name, value in after.parameters.items())
    for field in ("modules", "attributes", "config", "generation", "trainable", "training"):
        assert getattr(after, field) == getattr(before, field), field
