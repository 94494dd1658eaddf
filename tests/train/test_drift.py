"""How far a model is from its base on benign prompts."""

from __future__ import annotations

import dataclasses

import pytest
import small
import tiny
import torch

from mogu.adapter.model import plain_base, set_stage
from mogu.train.batches import Encoder
from mogu.train.drift import Drift
from mogu.train.trainers import forward_parameters

ROWS = [row for row in small.rows() if row.split == "train"]
BENIGN = [row for row in ROWS if row.label == "benign" and not row.borderline]


def encoder() -> Encoder:
    return Encoder(small.tokenizer(), None, 8)


def drift(model: object, **settings: object) -> Drift:
    options = {"first": 3, "accepts": forward_parameters(model), **settings}
    return Drift(model, encoder(), ROWS, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("stage", ["glad", "unwill", "routed"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_it_is_the_mean_over_the_first_answer_tokens_of_the_base(architecture: str, stage: str) -> None:
    model = tiny.adapted(small.base(architecture))
    set_stage(model, stage)  # type: ignore[arg-type]
    expected = []
    for row in BENIGN:
        prompt, answer = encoder()(row.instruction, row.glad, closed=False)
        ids = torch.tensor([prompt + answer[:3]])
        with torch.no_grad():
            here = model(ids).logits[0].log_softmax(-1)
            with plain_base(model):
                there = model(ids).logits[0].log_softmax(-1)
        told = slice(len(prompt) - 1, len(prompt) + len(answer[:3]) - 1)
        expected += (there.exp() * (there - here)).sum(dim=-1)[told].tolist()
    assert drift(model)() == pytest.approx(sum(expected) / len(expected), rel=1e-4)


def test_it_is_nothing_before_training_and_follows_the_model() -> None:
    model = tiny.adapted(small.base(), strength=0.0)
    set_stage(model, "glad")
    measure = drift(model)
    assert measure() == pytest.approx(0.0, abs=1e-6)
    tiny.randomise(model)
    assert (measure() or 0.0) > 1e-3


def test_only_benign_rows_with_an_answer_count_and_no_more_than_asked_for() -> None:
    model = tiny.adapted(small.base())
    silent = [dataclasses.replace(row, glad="") for row in ROWS]
    assert Drift(model, encoder(), silent, first=3, accepts=frozenset())() is None
    assert sum(len(batch["input_ids"]) for batch in drift(model, count=5).batches) == 5
    assert sum(len(batch["input_ids"]) for batch in drift(model).batches) == len(BENIGN)


def test_training_goes_on_as_it_was() -> None:
    model = tiny.adapted(small.base())
    model.train()
    drift(model)()
    assert model.training
