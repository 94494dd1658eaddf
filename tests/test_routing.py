"""Router weights after prompts whose beginning is read once: those of each prompt alone."""

from __future__ import annotations

from typing import Any

import pytest
import small
import tiny
import torch
from test_prefix import PLAIN, PROMPTS, Forwards, tokenizer
from torch.testing import assert_close

from mogu.adapter.model import recorded_logits, set_shift
from mogu.chat import prompt_ids
from mogu.prefix import template_prefix
from mogu.routing import logits_after_prompt, weights_after_prompt


def alone(model: Any) -> torch.Tensor:
    """(2, layers, prompts), each prompt in a forward of its own."""
    found = []
    for prompt in PROMPTS:
        with torch.no_grad(), recorded_logits(model) as logits:
            model(input_ids=torch.tensor([prompt_ids(tokenizer(), prompt)]))
            each = logits()
        assert each is not None
        found.append(each[:, :, 0, -1])
    return torch.stack(found, dim=-1)


@pytest.mark.parametrize("architecture", [*PLAIN, "mistral"])
def test_logits_are_those_of_each_prompt_alone(architecture: str) -> None:
    """Mistral's window lets nothing be shared."""
    model = tiny.adapted(small.base(architecture))
    expected = alone(model)
    forwards = Forwards(model)
    found = logits_after_prompt(model, tokenizer(), PROMPTS, batch_size=4, template=None)
    assert_close(found, expected, atol=1e-4, rtol=1e-4)
    length = len(template_prefix(tokenizer(), None))
    shared = sum(shape == (1, length) for shape in forwards.shapes)
    assert shared == (0 if architecture == "mistral" else 1 + 3)  # the trial, and three batches


def test_weights_are_those_under_the_shift() -> None:
    model = tiny.adapted(small.base("llama"))
    unwill, glad = alone(model)
    set_shift(model, -0.7)
    found = weights_after_prompt(model, tokenizer(), PROMPTS[:3], batch_size=2, template=None)
    assert_close(found[0][:1], torch.sigmoid(unwill[:1, :3] - 0.7), atol=1e-4, rtol=1e-4)
    assert_close(found[1][:1], torch.sigmoid(glad[:1, :3] + 0.7), atol=1e-4, rtol=1e-4)
