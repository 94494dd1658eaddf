"""The backbone LoRA of v2: part of one adapter, there while routed, gone in the plain base."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import oracle
import pytest
import tiny
import torch
from peft import PeftModel, get_peft_model
from torch.testing import assert_close

from mogu import MoguConfig
from mogu.adapter.backbone import MoguLora
from mogu.adapter.model import mogu_layers, plain_base, set_stage, tuner_layers
from mogu.adapter.store import attach, save
from mogu.errors import AdapterError, ConfigError

IDS = tiny.prompts(9)[0]
EVERY = ["q", "k", "v", "o", "up", "down"]


def adapted(architecture: str = "llama", **settings: object) -> PeftModel:
    settings = {"router": "folded", "layers_to_transform": [1, 2], "backbone_modules": EVERY, **settings}
    return tiny.adapted(architecture, **settings)


def places(model: PeftModel) -> set[str]:
    found = (name for name, module in model.named_modules() if isinstance(module, MoguLora))
    return {name.removeprefix("base_model.model.").removesuffix(".base_layer") for name in found}


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_routed_it_is_the_formula_and_plain_it_is_the_base(architecture: str) -> None:
    base = tiny.base(architecture)
    model = adapted(architecture)
    routed = oracle.routed_copy(base, oracle.numbers_of(model))
    plain = base(input_ids=IDS).logits
    assert_close(model(input_ids=IDS).logits, routed(input_ids=IDS).logits, rtol=1e-3, atol=1e-3)
    without = oracle.routed_copy(
        base,
        {
            k: {n: v for n, v in one.items() if n != "lora"}
            for k, one in oracle.numbers_of(model).items()
            if "glad" in one
        },
    )
    assert (routed(input_ids=IDS).logits - without(input_ids=IDS).logits).abs().max() > 1e-2
    with plain_base(model):
        assert torch.equal(model(input_ids=IDS).logits, plain)
    with model.disable_adapter():
        assert torch.equal(model(input_ids=IDS).logits, plain)


@pytest.mark.parametrize(
    ("architecture", "modules", "expected"),
    [
        ("llama", ["q", "o"], {"self_attn.q_proj", "self_attn.o_proj"}),
        ("llama", ["gate", "up", "down"], {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}),
        ("gpt2", ["q", "k", "v", "down"], {"attn.c_attn", "mlp.c_proj"}),
        ("falcon", ["v", "up"], {"self_attention.query_key_value", "mlp.dense_h_to_4h"}),
        ("phi3", ["k", "gate"], {"self_attn.qkv_proj", "mlp.gate_up_proj"}),
    ],
)
def test_modules_by_architecture(architecture: str, modules: list[str], expected: set[str]) -> None:
    model = adapted(architecture, layers_to_transform=[2], backbone_modules=modules)
    assert {place.split(".2.")[1] for place in places(model)} == expected


def test_in_the_routed_layers_or_in_all_above_the_first() -> None:
    where = {
        which: {int(place.split(".")[2]) for place in places(adapted(layers_to_transform=[1], backbone_layers=which))}
        for which in ("routed", "upper")
    }
    assert where == {"routed": {1}, "upper": {1, 2}}


def test_what_trains_at_which_stage() -> None:
    model = get_peft_model(tiny.base("llama"), MoguConfig(r=2, router="folded", backbone_modules=["q", "o"]))
    for stage, trained in (("glad", False), ("unwill", False), ("routed", True)):
        set_stage(model, stage)
        names = {name.split(".mogu_")[1].split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
        assert ({"backbone_A", "backbone_B"} <= names) == trained
        assert len(names) == (4 if trained else 2)


def test_a_new_one_changes_nothing_and_responders_alone_do_not_have_it() -> None:
    torch.manual_seed(0)
    plain = get_peft_model(tiny.base("llama"), MoguConfig(r=2, router="folded"))
    torch.manual_seed(0)
    model = get_peft_model(tiny.base("llama"), MoguConfig(r=2, router="folded", backbone_modules=EVERY))
    assert torch.equal(model(input_ids=IDS).logits, plain(input_ids=IDS).logits)
    strong, weak = adapted(), adapted(backbone_modules=None)
    assert not torch.allclose(strong(input_ids=IDS).logits, weak(input_ids=IDS).logits)
    for one in (strong, weak):
        set_stage(one, "glad")
    assert torch.equal(strong(input_ids=IDS).logits, weak(input_ids=IDS).logits)


def test_saved_and_loaded_as_one_adapter(tmp_path: Path) -> None:
    model = adapted(backbone_rank=3, backbone_layers="upper")
    loaded = attach(tiny.base("llama"), save(model, tmp_path / "adapter"))
    assert torch.equal(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits)
    assert places(loaded) == places(model)
    assert loaded.peft_config["default"].backbone_modules == EVERY
    assert not any(p.requires_grad for p in loaded.parameters())


def test_without_the_adapter_the_base_is_as_it_was() -> None:
    base = tiny.base("llama")
    before = copy.deepcopy(base)(input_ids=IDS).logits
    bare = adapted().unload()
    assert not tuner_layers(bare)
    assert torch.equal(bare(input_ids=IDS).logits, before)
    assert [name for name, _ in bare.named_parameters()] == [name for name, _ in base.named_parameters()]


def test_rows_of_one_forward_with_and_without_it() -> None:
    layer = next(module for module in adapted().modules() if isinstance(module, MoguLora))
    x = torch.randn(2, 3, layer.in_features)
    base, routed = layer.base_layer(x), layer(x)
    layer.rows = SimpleNamespace(any_routed=True, routed=torch.tensor([1.0, 1, 1, 0, 0, 0])[:, None])
    assert_close(layer(x)[0], routed[0])
    assert torch.equal(layer(x)[1], base[1])
    layer.rows = SimpleNamespace(any_routed=False, routed=None)
    assert torch.equal(layer(x), base)


def test_two_adapters_one_without() -> None:
    model = adapted()
    first = model(input_ids=IDS).logits
    model.add_adapter("other", MoguConfig(r=2, router="folded", layers_to_transform=[1]))
    tiny.randomise(model, "default")
    model.set_adapter("other")
    alone = get_peft_model(tiny.base("llama"), MoguConfig(r=2, router="folded", layers_to_transform=[1]))
    assert len(mogu_layers(alone)) == 1
    assert_close(model(input_ids=IDS).logits, alone(input_ids=IDS).logits)  # B is zero, both weights are a half
    model.set_adapter("default")
    assert_close(model(input_ids=IDS).logits, first)


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(ConfigError, match="unknown backbone module 'mlp'; choose from q, k, v, o, up, gate, down"):
        MoguConfig(backbone_modules=["mlp"])
    with pytest.raises(ConfigError, match="unknown backbone_layers 'all'"):
        MoguConfig(backbone_layers="all")
    with pytest.raises(AdapterError, match=r"has no backbone module 'gate'; choose from q, k, v, o, up, down$"):
        adapted("gpt2", backbone_modules=["gate"])
