"""The risk formula and what a calibration must hold."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import small
import tiny
import torch

import mogu
from mogu.adapter.config import MoguConfig
from mogu.adapter.model import active_config
from mogu.adapter.risk import risk_of
from mogu.adapter.store import attach, save
from mogu.chat import prompt_ids
from mogu.errors import AdapterError, ConfigError

CALIBRATION = {
    "prompt": {"weight": [0.5, -1.0, 0.25], "bias": 0.2},
    "answer": {"weight": [1.0, 0.0, 0.0], "bias": 0.0},
}
TURNS = [
    {"role": "user", "content": "Write me a short poem about a car"},
    {"role": "assistant", "content": "Write me"},
    {"role": "user", "content": "How do I steal a car?"},
]


def test_the_formula() -> None:
    logits = torch.tensor([[[1.0], [2.0], [-1.0]], [[3.0], [-2.0], [0.0]]])  # unwill, glad: layers × 1
    expected = 0.5 * (1 - 3) / 2 - 1.0 * (2 + 2) / 2 + 0.25 * (-1 - 0) / 2 + 0.2
    assert risk_of(logits, CALIBRATION, "prompt").tolist() == pytest.approx([1 / (1 + math.exp(-expected))])
    assert risk_of(logits, CALIBRATION, "answer").tolist() == pytest.approx([1 / (1 + math.exp(1))])


def test_no_calibration_or_another_depth_says_so() -> None:
    logits = torch.zeros(2, 2, 1)
    with pytest.raises(AdapterError, match="no risk calibration"):
        risk_of(logits, None, "prompt")
    with pytest.raises(AdapterError, match="for 3 routed layers, the adapter has 2"):
        risk_of(logits, CALIBRATION, "prompt")


@pytest.mark.parametrize(
    "risk",
    [{}, {"prompt": CALIBRATION["prompt"]}, {**CALIBRATION, "answer": {"weight": [math.nan], "bias": 0.0}}, "high"],
)
def test_a_broken_calibration_is_refused(risk: Any) -> None:
    with pytest.raises(ConfigError, match="risk must hold"):
        MoguConfig(risk=risk)


@pytest.mark.parametrize(("field", "value"), [("handover", "late"), ("risk_threshold", 1.5), ("risk_threshold", -0.1)])
def test_a_bad_handover_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match="hand-over" if field == "handover" else "risk_threshold"):
        MoguConfig(**{field: value})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny.adapted(small.base(), router="folded", routed_tokens=2)
    config = active_config(model)
    config.risk, config.handover, config.risk_threshold = CALIBRATION, "risk", 0.25
    return save(model, tmp_path_factory.mktemp("adapter") / "a")


def test_it_is_saved_and_loaded_with_the_adapter(folder: Path) -> None:
    config = active_config(attach(small.base(), folder))
    assert config.risk == json.loads((folder / "adapter_config.json").read_text())["risk"] == CALIBRATION
    assert (config.handover, config.risk_threshold) == ("risk", 0.25)


def test_risk_of_a_conversation_is_that_of_its_generate_output(folder: Path, tmp_path: Path) -> None:
    small.save_base(tmp_path)
    model, tokenizer = mogu.load(str(tmp_path), adapter=folder)
    ids = torch.tensor([prompt_ids(tokenizer, TURNS)])
    output = model.generate(input_ids=ids, max_new_tokens=2, do_sample=False, return_dict_in_generate=True)
    found = model.risk(TURNS)
    assert isinstance(found, float)
    assert found == mogu.risk(model, tokenizer, TURNS) == pytest.approx(float(output.risk[0]), abs=1e-5)
    assert 0 < found < 1


def test_every_turn_and_the_system_prompt_count(folder: Path) -> None:
    model, tokenizer = attach(small.base(), folder), small.tokenizer()
    system = {"role": "system", "content": "Write me a short poem"}
    asked = [TURNS, TURNS[2:], [system, *TURNS], [TURNS[2], TURNS[1], TURNS[0]]]
    found = [mogu.risk(model, tokenizer, one) for one in asked]
    assert len({round(value, 6) for value in found}) == len(asked)


def test_without_a_tokenizer_it_says_what_to_do(folder: Path) -> None:
    with pytest.raises(AdapterError, match="risk needs the tokenizer"):
        attach(small.base(), folder).risk(TURNS)
