"""LoRA that a defence learns: what it teaches, that it leaves the base alone, and that half-done work never counts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import defended
import pytest
import small
import torch

from mogu.data.rows import Row
from mogu.defend import Pipeline, Target, create
from mogu.defend.lora import LoraRecipe
from mogu.defend.sft import Sft
from mogu.errors import TrainingError
from mogu.progress import Progress
from mogu.train.batches import Encoder

STRONG = LoraRecipe(rank=4, dropout=0.5, learning_rate=2e-2, epochs=12, batch_size=4, answer_tokens=8)


def sft(target: Target, recipe: LoraRecipe = STRONG) -> Pipeline:
    return Pipeline([Sft(target, recipe)])


def inputs(pipeline: Pipeline) -> str:
    return str(pipeline.settings()["sft"]["inputs"])


def surprise(model: Any, rows: list[Row]) -> float:
    """Mean negative log-likelihood of the wanted answers, one row at a time, in nats per token."""
    encode = Encoder(small.tokenizer(), None, 8)
    found = []
    for row in rows:
        prompt, answer = encode.wanted(row)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        found.append(-logits.log_softmax(dim=-1)[range(len(answer)), answer].mean())
    return float(torch.stack(found).mean())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    pipeline = sft(defended.target(tmp_path_factory.mktemp("sft")))
    pipeline.prepare()
    return pipeline


def split(label: str) -> list[Row]:
    return [row for row in small.rows() if row.split == "train" and row.label == label]


@pytest.mark.parametrize("label", ["malicious", "benign"])
def test_it_learns_the_wanted_answers_of_both_labels(trained: Pipeline, label: str) -> None:
    plain = surprise(trained.target.model, split(label))
    with trained.decoder.installed() as model:
        assert surprise(model, split(label)) < plain - 1


def test_the_base_is_as_before_bit_for_bit(trained: Pipeline) -> None:
    fresh = defended.state(small.base())
    defended.assert_same(trained.target.model, fresh)
    with trained.decoder.installed():
        assert not torch.equal(defended.state(trained.target.model).logits, fresh.logits)
    defended.assert_same(trained.target.model, fresh)


def test_the_base_is_as_before_after_an_error_inside(trained: Pipeline) -> None:
    fresh = defended.state(small.base())
    with pytest.raises(KeyError), trained.decoder.installed():
        raise KeyError
    defended.assert_same(trained.target.model, fresh)


def test_it_is_trained_once_and_answers_alike_when_loaded(trained: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    again = sft(dataclasses.replace(trained.target, model=small.base()))
    monkeypatch.setattr("mogu.defend.lora._AnswerTrainer", None)  # no training any more
    again.prepare()
    first = defended.answers(trained)
    assert defended.answers(again) == first
    assert defended.answers(trained) == first  # no dropout left on
    assert first != defended.answers(create("none", trained.target))
    assert again.settings() == trained.settings()


@pytest.mark.parametrize("changes", [{"name": "other"}, {"seed": 1}, {"rows": lambda: small.rows()[1:]}])
def test_other_inputs_are_other_weights(trained: Pipeline, changes: dict[str, Any]) -> None:
    assert inputs(sft(dataclasses.replace(trained.target, **changes))) != inputs(trained)


def test_another_recipe_is_other_weights(trained: Pipeline) -> None:
    assert inputs(sft(trained.target, dataclasses.replace(STRONG, epochs=13))) != inputs(trained)


def test_other_weights_under_the_same_name_are_noticed(trained: Pipeline) -> None:
    model = small.base()
    with torch.no_grad():
        model.model.norm.weight += 1
    assert inputs(sft(dataclasses.replace(trained.target, model=model))) != inputs(trained)


def test_interrupted_training_counts_for_nothing_and_leaves_the_base_plain(tmp_path: Path) -> None:
    class Stop(Progress):
        def update(self, done: int, total: int) -> None:
            if done == 2:
                raise KeyboardInterrupt

    target = defended.target(tmp_path)
    before = defended.state(target.model)
    with pytest.raises(KeyboardInterrupt):
        sft(target).prepare(Stop())
    defended.assert_same(target.model, before)
    assert not list(tmp_path.rglob("adapter_config.json"))
    quick = dataclasses.replace(STRONG, epochs=1)
    sft(target, quick).prepare()
    assert len(list(tmp_path.rglob("adapter_config.json"))) == 1


def test_interrupted_saving_counts_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(new: Path, target: Path, old: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mogu.adapter.store.swap", breaks)
    pipeline = sft(defended.target(tmp_path), dataclasses.replace(STRONG, epochs=1))
    with pytest.raises(KeyboardInterrupt):
        pipeline.prepare()
    assert not list(tmp_path.rglob("adapter_config.json"))


def test_without_rows_of_both_labels_it_says_so(tmp_path: Path) -> None:
    pipeline = sft(defended.target(tmp_path, rows=lambda: split("benign")))
    with pytest.raises(TrainingError, match="malicious"):
        pipeline.prepare()


def test_other_rows_than_training_ones_do_not_matter(trained: Pipeline) -> None:
    only = dataclasses.replace(trained.target, rows=lambda: [r for r in small.rows() if r.split == "train"])
    assert sft(only).settings() == trained.settings()


def test_modules_are_found_on_an_architecture_that_peft_has_no_default_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mogu.defend.lora.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING", {})
    pipeline = sft(defended.target(tmp_path), dataclasses.replace(STRONG, epochs=1))
    before = defended.state(pipeline.target.model)
    pipeline.prepare()
    defended.assert_same(pipeline.target.model, before)
