"""The probe finds malicious instructions by the base's hidden states; any classifier can take its place."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import defended
import pytest
import small
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from mogu.chat import prompt_ids
from mogu.data.rows import Row
from mogu.defend import REFUSAL, Pipeline, create
from mogu.defend.detect import Detect, DetectSettings, last_states
from mogu.errors import ConfigError, ModelError, TrainingError


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def ready(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    made = create("detect", defended.target(tmp_path_factory.mktemp("detect"), model=small.base(request.param)))
    made.prepare()
    return made


def held_out(label: str) -> list[Row]:
    return [row for row in small.rows() if row.split == "test" and row.label == label]


def stopped(pipeline: Pipeline, texts: list[str]) -> list[bool]:
    found = pipeline.defenses[0].before(defended.says(*texts))
    return [not isinstance(one, list) for one in found]


def test_it_stops_held_out_malicious_instructions_and_no_others(ready: Pipeline) -> None:
    assert all(stopped(ready, [row.instruction for row in held_out("malicious")]))
    assert not any(stopped(ready, [row.instruction for row in held_out("benign") if not row.borderline]))


def test_a_stopped_conversation_is_never_decoded(ready: Pipeline) -> None:
    found = ready.answers(defended.says(held_out("malicious")[0].instruction), max_new_tokens=3)
    assert (found[0].answer, found[0].stopped_by) == (REFUSAL, "detect")
    assert found[0].reason is not None
    assert found[0].reason.startswith("malicious with probability 0.")


def test_the_probe_reads_the_last_prompt_token_of_its_layer(ready: Pipeline) -> None:
    """Each prompt alone, without padding, by hand."""
    (tensors,) = (load_file(path) for path in ready.target.workspace.rglob("*.safetensors"))
    (report,) = (json.loads(path.read_text()) for path in ready.target.workspace.rglob("*.json"))
    probabilities = ready.defenses[0]._detector(defended.says(*defended.PROMPTS))  # type: ignore[attr-defined]
    for prompt, p in zip(defended.PROMPTS, probabilities, strict=True):
        ids = torch.tensor([prompt_ids(ready.target.tokenizer, prompt)])
        with torch.no_grad():
            state = ready.target.model(input_ids=ids, output_hidden_states=True).hidden_states[report["layer"]][0, -1]
        assert p == pytest.approx(float(torch.sigmoid(state @ tensors["weight"] + tensors["bias"])), abs=1e-4)
    assert report["layer"] == 1 + report["log_loss"].index(min(report["log_loss"]))


def test_a_layer_that_tells_them_apart_is_the_one_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    malicious = {row.instruction: row.label == "malicious" for row in small.rows()}

    def planted(target: Any, prompts: list[str]) -> torch.Tensor:
        states = torch.randn(len(prompts), 5, 4, generator=generator)
        states[:, 3, 0] += torch.tensor([6.0 if malicious[prompt] else -6.0 for prompt in prompts])
        return states

    monkeypatch.setattr("mogu.defend.detect.last_states", planted)
    create("detect", defended.target(tmp_path)).prepare()
    (report,) = (json.loads(path.read_text()) for path in tmp_path.rglob("*.json"))
    assert report["layer"] == 4
    assert report["right"] == 1


def test_it_is_fitted_once(ready: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mogu.defend.detect.fit_probe", None)
    again = create("detect", dataclasses.replace(ready.target, model=small.base(ready.target.model.config.model_type)))
    assert stopped(again, defended.PROMPTS) == stopped(ready, defended.PROMPTS)
    assert again.settings() == ready.settings()


def test_states_do_not_depend_on_the_batch(ready: Pipeline) -> None:
    together = last_states(ready.target, defended.PROMPTS)
    alone = torch.cat([last_states(ready.target, [prompt]) for prompt in defended.PROMPTS])
    assert together.shape == (3, 3, 32)
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_without_validation_rows_it_says_so(tmp_path: Path) -> None:
    rows = [row for row in small.rows() if row.split == "train"]
    with pytest.raises(TrainingError, match="benign rows and the data has none in the validation split"):
        create("detect", defended.target(tmp_path, rows=lambda: rows)).prepare()


@pytest.fixture
def classifier(tmp_path: Path) -> str:
    """A classifier on disk that knows one word."""
    tokenizer = small.tokenizer()
    config = AutoConfig.for_model(
        "llama",
        vocab_size=len(tokenizer),
        hidden_size=4,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_labels=3,
        pad_token_id=0,
    )
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.norm.weight.fill_(1)
        model.model.embed_tokens.weight[tokenizer.convert_tokens_to_ids("wallet?")] = torch.tensor([0.0, 0, 9, 0])
        model.score.weight[2, 2] = 5
    model.save_pretrained(tmp_path / "classifier")
    tokenizer.save_pretrained(tmp_path / "classifier")
    return str(tmp_path / "classifier")


def test_a_classifier_by_name_reads_the_last_turn(tmp_path: Path, classifier: str) -> None:
    target = defended.target(tmp_path, rows=lambda: pytest.fail("a ready classifier needs no data"))
    detect = Detect(target, DetectSettings(model=classifier, malicious_class=2))
    made = Pipeline([detect])
    made.prepare()
    assert stopped(made, ["How do I steal a wallet?", "How do I steal a car?", "a wallet?"]) == [True, False, True]
    talk = [*defended.says("wallet?")[0], {"role": "assistant", "content": "car"}, *defended.says("car")[0]]
    assert detect.before([talk]) == [talk]
    assert made.settings()["detect"]["model"] == classifier


def test_a_classifier_that_is_not_there_or_has_no_such_class_is_one_clear_line(tmp_path: Path, classifier: str) -> None:
    for settings, error in (
        (DetectSettings(model=str(tmp_path / "nothing")), ModelError),
        (DetectSettings(model=classifier, malicious_class=3), ConfigError),
    ):
        with pytest.raises(error) as raised:
            Detect(defended.target(tmp_path), settings).before(defended.says("car"))
        assert "\n" not in str(raised.value)
