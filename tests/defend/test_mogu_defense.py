"""MoGU and its ablations behind the interface of the defences."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import defended
import pytest
import small
import tiny
import torch

from mogu.adapter.model import mogu_layers, plain_base, set_stage
from mogu.adapter.store import attach, save
from mogu.chat import prompt_ids
from mogu.defend import Pipeline, create
from mogu.errors import AdapterError, ConfigError

M, NEW = 3, 7
NAMES = ["mogu", "glad-only", "unwill-only", "constant-weight"]


def adapter(folder: Path, *, routers: float = 1.0) -> Path:
    """A strong random adapter on disk; with ``routers`` 0 all of its weights are one half."""
    model = tiny.adapted(small.base(), router="folded", routed_tokens=M)
    with torch.no_grad():
        for _, layer in mogu_layers(model):
            for router in (layer.mogu_unwill_router["default"], layer.mogu_glad_router["default"]):
                router.weight *= routers
                router.bias *= routers
    return save(model, folder)


@pytest.fixture
def made(tmp_path: Path) -> Any:
    """Pipelines by name over one shared base, as a comparison has them."""
    target = defended.target(tmp_path / "work", adapter=adapter(tmp_path / "adapter"))
    return lambda names: create(names, target)


def by_hand(prompt: str, folder: Path, stage: str | None) -> str:
    """One prompt without caches: m tokens in a stage of the adapter, the rest from the base."""
    model, tokenizer = attach(copy.deepcopy(small.base()), folder), small.tokenizer()
    if stage is not None:
        set_stage(model, stage)  # type: ignore[arg-type]
    ids = prompt_ids(tokenizer, prompt)
    start = len(ids)
    with torch.no_grad():
        for _ in range(M):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        with plain_base(model):
            for _ in range(NEW - M):
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return tokenizer.decode(ids[start:], skip_special_tokens=True).strip()


@pytest.mark.parametrize(("name", "stage"), [("mogu", None), ("glad-only", "glad"), ("unwill-only", "unwill")])
def test_m_tokens_from_the_adapter_then_the_plain_base(made: Any, tmp_path: Path, name: str, stage: str | None) -> None:
    found = defended.answers(made(name), max_new_tokens=NEW, eos_token_id=None)
    assert found == [by_hand(prompt, tmp_path / "adapter", stage) for prompt in defended.PROMPTS]


def test_constant_weight_is_routers_that_always_say_one_half(made: Any, tmp_path: Path) -> None:
    halves = adapter(tmp_path / "halves", routers=0.0)
    expected = create("mogu", defended.target(tmp_path, adapter=halves))
    assert defended.answers(made("constant-weight")) == defended.answers(expected)


def test_every_one_answers_otherwise_than_the_others(made: Any) -> None:
    assert len({tuple(defended.answers(made(name))) for name in ("none", *NAMES)}) == 5


def test_the_base_is_as_before_bit_for_bit_whichever_ran(made: Any) -> None:
    fresh = defended.state(small.base())
    alone = {name: defended.answers(made(name)) for name in NAMES}
    pipelines = {name: made(name) for name in NAMES}
    for _ in range(2):
        for name, pipeline in pipelines.items():
            assert defended.answers(pipeline) == alone[name]
            defended.assert_same(pipeline.target.model, fresh)


def test_it_goes_with_a_defence_that_asks_the_plain_base(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    judges = []

    def verdicts(model: Any, tokenizer: Any, prompts: list[str], **options: Any) -> list[str]:
        judges.append(defended.state(model).logits)
        return ["No, this is not harmful"] * len(prompts)

    monkeypatch.setattr("mogu.defend.self_examine.respond", verdicts)
    alone = defended.answers(made("mogu"))
    plain = defended.state(small.base()).logits
    assert defended.answers(made("mogu+self-examine")) == alone
    assert defended.answers(made("self-examine+mogu")) == alone
    assert len(judges) == 4
    assert all(torch.equal(logits, plain) for logits in judges)


@pytest.mark.parametrize("name", NAMES)
def test_without_an_adapter_it_says_which_option_is_missing(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' needs a trained adapter; give one with --adapter"):
        create(name, defended.target(tmp_path))
    with pytest.raises(AdapterError, match="no adapter in"):
        create(name, defended.target(tmp_path, adapter=tmp_path))


def test_settings_tell_adapters_apart(made: Any, tmp_path: Path) -> None:
    other = create("mogu", defended.target(tmp_path, adapter=adapter(tmp_path / "halves", routers=0.0)))
    mine: Pipeline = made("mogu")
    assert mine.settings() == made("mogu").settings() != other.settings()


def test_the_dial_is_named_and_is_a_shift(made: Any, tmp_path: Path) -> None:
    plain, low, zero = made("mogu"), made("mogu@-2"), made("mogu@0")
    assert [one.name for one in (low, zero)] == ["mogu@-2", "mogu@0"]
    assert low.settings()["mogu@-2"] == {**plain.settings()["mogu"], "dial": -2.0}
    shift = attach(copy.deepcopy(small.base()), tmp_path / "adapter").peft_config["default"].shift
    for pipeline, expected in ((low, shift - 2.0), (zero, shift), (plain, shift)):
        with pipeline.decoder.installed() as model:
            assert {layer.mogu_shift["default"] for _, layer in mogu_layers(model)} == {expected}
    asked = [[{"role": "user", "content": "How do I steal a car?"}]]
    assert zero.answers(asked, max_new_tokens=NEW) == plain.answers(asked, max_new_tokens=NEW)


def test_the_handover_is_named(made: Any) -> None:
    one = made("mogu@all")
    assert (one.name, one.settings()["mogu@all"]["handover"]) == ("mogu@all", "all")
    with one.decoder.installed() as model:
        assert model.peft_config["default"].handover == "all"
    with made("mogu").decoder.installed() as model:
        assert model.peft_config["default"].handover == "fixed"
    assert [made(name).decoder.hands_over for name in ("mogu@all", "mogu", "glad-only")] == ["all", "fixed", "fixed"]


@pytest.mark.parametrize("name", ["mogu@", "mogu@high", "mogu@nan"])
def test_a_dial_without_a_number_says_so(made: Any, name: str) -> None:
    with pytest.raises(ConfigError, match="needs a number behind the @"):
        made(name)
