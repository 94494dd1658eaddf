"""What must hold on every architecture."""

from __future__ import annotations

import copy
from pathlib import Path

import oracle
import pytest
import tiny
import torch
from peft import PeftModel, get_peft_model
from torch.testing import assert_close

from mogu import MoguConfig
from mogu.adapter.config import STAGES, TARGET_MODULES
from mogu.adapter.model import mogu_layers, set_stage
from mogu.adapter.store import attach, save

TRAINED = {
    "glad": ("mogu_glad_A", "mogu_glad_B"),
    "unwill": ("mogu_unwill_A", "mogu_unwill_B"),
    "routed": ("mogu_glad_router", "mogu_unwill_router"),
}

each_architecture = pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)


@pytest.mark.parametrize("architecture", TARGET_MODULES)
def test_finds_one_projection_in_every_layer(architecture: str) -> None:
    model = get_peft_model(tiny.base(architecture), MoguConfig(router="folded"))
    assert [index for index, _ in mogu_layers(model)] == list(range(tiny.LAYERS))


def test_ten_architectures_are_among_the_known_ones() -> None:
    assert len(set(tiny.ARCHITECTURES)) == 10
    assert set(tiny.ARCHITECTURES) <= set(TARGET_MODULES)


@pytest.mark.parametrize("form", ["factored", "folded"])
@each_architecture
def test_routed_logits_are_the_papers(architecture: str, form: str) -> None:
    plain = tiny.base(architecture)
    model = tiny.adapted(copy.deepcopy(plain), router=form, shift=0.3, strength=0.5)
    ids = tiny.prompts(9)[0]
    expected = oracle.routed_copy(plain, oracle.numbers_of(model))(input_ids=ids).logits
    assert_close(model(input_ids=ids).logits, expected, atol=2e-4, rtol=1e-4)


@each_architecture
def test_a_disabled_adapter_is_the_base_bit_for_bit(architecture: str) -> None:
    plain = tiny.base(architecture)
    ids = tiny.prompts(9)[0]
    expected = plain(input_ids=ids).logits
    model = tiny.adapted(plain)
    with model.disable_adapter():
        assert torch.equal(model(input_ids=ids).logits, expected)
    assert not torch.allclose(model(input_ids=ids).logits, expected, atol=0.1)


@pytest.mark.parametrize("stage", STAGES)
@each_architecture
def test_a_training_step_moves_what_the_stage_trains_and_nothing_else(architecture: str, stage: str) -> None:
    model = tiny.adapted(architecture, strength=0.3).train()
    set_stage(model, stage)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ids = tiny.prompts(9)[0]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if any(f".{part}." in name for part in TRAINED[stage])}
    assert len(moved) == tiny.LAYERS * {"glad": 2, "unwill": 2, "routed": 10}[stage]


@each_architecture
def test_saved_and_loaded_logits_are_equal(architecture: str, tmp_path: Path) -> None:
    model = tiny.adapted(architecture, shift=-0.5)
    ids = tiny.prompts(9)[0]
    expected = model(input_ids=ids).logits
    save(model, tmp_path / "adapter")
    by_peft = PeftModel.from_pretrained(tiny.base(architecture), tmp_path / "adapter").eval()
    assert torch.equal(by_peft(input_ids=ids).logits, expected)
    folded = attach(tiny.base(architecture), tmp_path / "adapter")
    assert_close(folded(input_ids=ids).logits, expected, atol=2e-3, rtol=1e-3)


@each_architecture
def test_only_the_chosen_layers_are_routed(architecture: str) -> None:
    plain = tiny.base(architecture)
    model = tiny.adapted(copy.deepcopy(plain), layers_to_transform=[0, 2])
    assert [index for index, _ in mogu_layers(model)] == [0, 2]
