"""Perplexity by hand, and a limit that benign text stays under."""

from __future__ import annotations

import dataclasses
import math
import random
from pathlib import Path

import defended
import pytest
import small
import torch

from mogu.defend import REFUSAL, Pipeline, Target, create
from mogu.defend.perplexity import PerplexityFilter, PerplexitySettings, perplexities
from mogu.errors import ConfigError

TEXTS = ["How do I steal a car?", "poem", "Write me a short poem about a bank bank bank", ""]


def by_hand(target: Target, text: str, window: int | None = None) -> float:
    ids = target.tokenizer(text, add_special_tokens=False)["input_ids"]
    losses = []
    for n in range(1, len(ids)):
        with torch.no_grad():
            logits = target.model(input_ids=torch.tensor([ids[:n]])).logits[0, -1]
        losses.append(-float(logits.log_softmax(dim=0)[ids[n]]))
    if not losses:
        return 1.0
    size = min(window or len(losses), len(losses))
    return max(math.exp(sum(losses[n : n + size]) / size) for n in range(len(losses) - size + 1))


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.parametrize("window", [None, 2, 3, 50])
def test_it_is_exp_of_the_mean_negative_log_likelihood(tmp_path: Path, model_type: str, window: int | None) -> None:
    target = defended.target(tmp_path, model=small.base(model_type))
    found = perplexities(target, TEXTS, window)
    assert found == pytest.approx([by_hand(target, text, window) for text in TEXTS], rel=1e-3)


@pytest.fixture
def ready(tmp_path: Path) -> Pipeline:
    made = create("perplexity", defended.target(tmp_path))
    made.prepare()
    return made


def train(label: str) -> list[str]:
    return [row.instruction for row in small.rows() if row.split == "train" and row.label == label]


def nonsense(target: Target, limit: float) -> tuple[str, str]:
    """Two texts of random words, one above the limit and one below."""
    words = [w for w in target.tokenizer.get_vocab() if w.isalpha()]
    texts = [" ".join(random.Random(n).sample(sorted(words), 6)) for n in range(400)]
    values = perplexities(target, texts)
    return texts[values.index(max(values))], texts[values.index(min(values))]


def test_the_limit_is_the_most_that_a_benign_training_instruction_has(ready: Pipeline) -> None:
    defense = ready.defenses[0]
    assert isinstance(defense, PerplexityFilter)
    assert defense.limit == pytest.approx(max(by_hand(ready.target, text) for text in train("benign")), rel=1e-3)
    assert all(isinstance(one, list) for one in defense.before(defended.says(*train("benign"))))


def test_what_is_less_likely_is_stopped_in_whichever_turn(ready: Pipeline) -> None:
    defense = ready.defenses[0]
    assert isinstance(defense, PerplexityFilter)
    above, below = nonsense(ready.target, defense.limit)
    assert by_hand(ready.target, above) > defense.limit > by_hand(ready.target, below)
    talk = [*defended.says(above)[0], {"role": "assistant", "content": "Good"}, *defended.says(below)[0]]
    found = ready.answers([*defended.says(above, below), talk], max_new_tokens=3)
    assert [reply.stopped_by for reply in found] == ["perplexity", None, "perplexity"]
    assert found[0].answer == REFUSAL
    assistant = [*defended.says(below)[0], {"role": "assistant", "content": above}, *defended.says(below)[0]]
    assert defense.before([assistant]) == [assistant]


def test_a_quantile_is_milder_than_the_maximum(ready: Pipeline) -> None:
    half = PerplexityFilter(ready.target, PerplexitySettings(quantile=0.5))
    values = sorted(by_hand(ready.target, text) for text in train("benign"))
    assert values[0] < half.limit < values[-1]
    assert sum(value > half.limit for value in values) == len(values) // 2


def test_the_limit_is_measured_once(ready: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    again = create("perplexity", dataclasses.replace(ready.target, model=small.base()))
    monkeypatch.setattr("mogu.defend.perplexity.perplexities", None)
    again.prepare()
    assert again.settings() == ready.settings()
    assert again.defenses[0].limit == ready.defenses[0].limit  # type: ignore[attr-defined]


@pytest.mark.parametrize("settings", [{"window": 0}, {"quantile": 0.0}, {"quantile": 1.5}])
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        PerplexitySettings(**settings)  # type: ignore[arg-type]
