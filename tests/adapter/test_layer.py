"""Routers, stages, switches and dtypes of the routed projection."""

from __future__ import annotations

import copy
from collections.abc import Callable

import oracle
import pytest
import tiny
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM

from mogu import MoguConfig
from mogu.adapter.config import STAGES
from mogu.adapter.model import fold_routers, mogu_layers, plain_base, recorded_weights, set_shift, set_stage
from mogu.adapter.router import FactoredRouter, FoldedRouter
from mogu.errors import AdapterError, ConfigError
from mogu.train.losses import router_penalty

IDS = tiny.prompts(9)[0]


def trainable(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


# routers


def test_a_folded_router_is_the_factored_one() -> None:
    router = FactoredRouter(32, 8)
    x = torch.randn(5, 7, 32)
    numbers = {n: p.detach() for n, p in router.named_parameters()}
    assert_close(torch.sigmoid(router.fold()(x)), oracle.router_weight(numbers, x, 0.0))
    assert_close(torch.sigmoid(router(x)), oracle.router_weight(numbers, x, 0.0))


def test_a_factored_router_starts_as_torchs_linear_layers_do() -> None:
    router = FactoredRouter(200, 50)
    for parameter, fan_in in ((router.down, 200), (router.up, 50), (router.up_bias, 50), (router.out, 200)):
        bound = fan_in**-0.5
        assert parameter.abs().max() <= bound
        assert parameter.abs().max() > 0.9 * bound
        assert parameter.mean().abs() < 0.2 * bound


def test_a_new_folded_router_weighs_both_responders_by_half() -> None:
    assert torch.equal(torch.sigmoid(FoldedRouter(32)(torch.randn(3, 32))), torch.full((3,), 0.5))


def replace_data(router: FactoredRouter) -> None:
    router.up.data = router.up.data * 2


def write_into_data(router: FactoredRouter) -> None:
    router.down.data.mul_(-1.5)


def step(router: FactoredRouter) -> None:
    optimizer = torch.optim.AdamW(router.parameters(), lr=0.1)
    router(torch.ones(1, 32)).sum().backward()
    optimizer.step()


def load(router: FactoredRouter) -> None:
    router.load_state_dict({name: p + 0.1 for name, p in router.state_dict().items()})


@pytest.mark.parametrize("change", [replace_data, write_into_data, step, load])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_router_never_answers_with_weights_of_before(change: Callable, context: Callable) -> None:
    router = FactoredRouter(32, 8)
    x = torch.randn(4, 32)
    for _ in range(2):
        with context():
            router(x)
        change(router)
        numbers = {n: p.detach() for n, p in router.named_parameters()}
        with context():
            weight = torch.sigmoid(router(x))
        assert_close(weight, oracle.router_weight(numbers, x, 0.0))


def test_folding_an_adapter_keeps_its_answers_and_drops_the_factors() -> None:
    model = tiny.adapted("llama", strength=0.5)
    expected = model(input_ids=IDS).logits
    fold_routers(model)
    assert_close(model(input_ids=IDS).logits, expected, atol=2e-4, rtol=1e-4)
    assert model.peft_config["default"].router == "folded"
    assert not any(isinstance(module, FactoredRouter) for module in model.modules())


def test_a_folded_adapter_of_the_embedded_model_is_below_one_percent_of_it() -> None:
    config = AutoConfig.for_model(
        "llama",
        **{"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9},
        **{"num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True},
    )
    with torch.device("meta"):
        model = get_peft_model(AutoModelForCausalLM.from_config(config), MoguConfig(router="folded"))
    size = {True: 0, False: 0}
    for name, parameter in model.named_parameters():
        size["mogu_" in name] += parameter.numel() * parameter.element_size()
    assert size[False] == 4 * 134_515_008
    assert size[True] == 4 * 30 * (4 * 8 * 576 + 2 * 577)
    assert size[True] < 0.01 * size[False]


def test_the_shift_moves_both_logits_in_opposite_directions() -> None:
    model = tiny.adapted("llama", strength=0.1)
    weights = {}
    for shift in (0.0, 0.7):
        set_shift(model, shift)
        with recorded_weights(model) as recorded:
            model(input_ids=IDS)
            weights[shift] = [torch.logit(w[0]) for w in recorded()]  # layer 0: later layers see shifted states
    assert_close(weights[0.7][0], weights[0.0][0] + 0.7, atol=1e-3, rtol=1e-3)
    assert_close(weights[0.7][1], weights[0.0][1] - 0.7, atol=1e-3, rtol=1e-3)
    assert model.peft_config["default"].shift == 0.7


def test_no_weights_are_recorded_where_nothing_is_routed() -> None:
    model = tiny.adapted("llama", stage="glad")
    with recorded_weights(model) as recorded:
        model(input_ids=IDS)
        with pytest.raises(AdapterError, match="no router weights were recorded"):
            recorded()


# stages


@pytest.mark.parametrize("stage", ["glad", "unwill"])
def test_a_responder_alone_is_plain_lora(stage: str) -> None:
    plain = tiny.base("llama")
    model = tiny.adapted(copy.deepcopy(plain))
    set_stage(model, stage)
    for path, numbers in oracle.numbers_of(model).items():
        a, b = numbers[stage]
        with torch.no_grad():
            plain.get_submodule(path).weight += numbers["scale"] * (b @ a)
    assert_close(model(input_ids=IDS).logits, plain(input_ids=IDS).logits, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("stage", ["glad", "unwill"])
def test_a_new_responder_changes_nothing(stage: str) -> None:
    plain = tiny.base("llama")
    expected = plain(input_ids=IDS).logits
    model = get_peft_model(plain, MoguConfig(stage=stage)).eval()
    assert torch.equal(model(input_ids=IDS).logits, expected)


@pytest.mark.parametrize("stage", STAGES)
def test_dropout_is_for_training_a_responder_only(stage: str) -> None:
    model = tiny.adapted("llama", lora_dropout=0.5, stage=stage)
    quiet = model(input_ids=IDS).logits
    assert torch.equal(model(input_ids=IDS).logits, quiet)
    assert torch.equal(model.train()(input_ids=IDS).logits, quiet) == (stage == "routed")


def test_what_one_layer_freezes_is_its_own() -> None:
    first, second = [layer for _, layer in mogu_layers(tiny.adapted("llama"))][:2]
    first.set_stage("default", "glad")
    assert second.frozen_peft_weight_names["default"] != first.frozen_peft_weight_names["default"]


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_leaving_disable_adapter_does_not_unfreeze(stage: str, inference: bool) -> None:
    model = tiny.adapted("llama", stage=stage, inference_mode=inference)
    before = trainable(model)
    assert bool(before) != inference
    with model.disable_adapter():
        model(input_ids=IDS)
    assert trainable(model) == before


def test_plain_base_is_the_base_and_restores_what_was() -> None:
    model = tiny.adapted("llama")
    with model.disable_adapter():
        expected = model(input_ids=IDS).logits
        with plain_base(model):
            pass
        assert torch.equal(model(input_ids=IDS).logits, expected)
    routed = model(input_ids=IDS).logits
    with plain_base(model):
        assert torch.equal(model(input_ids=IDS).logits, expected)
    assert torch.equal(model(input_ids=IDS).logits, routed)


# dtypes, checkpointing


def test_a_bf16_base_trains_fp32_adapters() -> None:
    model = tiny.adapted(tiny.base("llama").to(torch.bfloat16), strength=0.1).train()
    assert {p.dtype for name, p in model.named_parameters() if "mogu_" in name} == {torch.float32}
    output = model(input_ids=IDS, labels=IDS)
    assert output.logits.dtype == torch.bfloat16
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_bf16_answers_are_near_those_of_fp32(architecture: str) -> None:
    model = tiny.adapted(architecture, strength=0.1, router="folded")
    expected = model(input_ids=IDS).logits
    low = tiny.adapted(tiny.base(architecture).to(torch.bfloat16), strength=0.1, router="folded")
    difference = (low(input_ids=IDS).logits.float() - expected).abs().mean()
    assert difference < 0.1 * expected.abs().mean()


def penalty_gradients(model: PeftModel) -> dict[str, torch.Tensor]:
    model.zero_grad()
    with recorded_weights(model) as recorded:
        model(input_ids=IDS)
        unwill, glad = recorded()
        router_penalty(unwill, glad, torch.tensor([True]), torch.ones_like(IDS)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def test_non_reentrant_checkpointing_keeps_the_gradient_of_the_router_loss() -> None:
    model = tiny.adapted("llama", strength=0.3).train()
    expected = penalty_gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    actual = penalty_gradients(model)
    assert len(actual) == 30
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, name
        assert_close(actual[name], gradient)


# what is refused


def test_a_regex_target_with_chosen_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match="give target_modules as a list"):
        MoguConfig(target_modules=r".*\.o_proj", layers_to_transform=[1])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"stage": "both"}, "unknown stage 'both'"),
        ({"router": "mlp"}, "unknown router form 'mlp'"),
        ({"r": 0}, "r must be an integer of at least 1"),
        ({"routed_tokens": -1}, "routed_tokens must be an integer of at least 0"),
        ({"lora_dropout": 1.0}, "lora_dropout must be in"),
        ({"bias": "all"}, "bias must be 'none'"),
        ({"layers_pattern": "h"}, "layers_pattern needs layers_to_transform"),
        ({"task_type": "SEQ_CLS"}, "task_type must be CAUSAL_LM"),
    ],
)
def test_wrong_settings_are_refused_at_construction(setting: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MoguConfig(**setting)


def test_an_unknown_architecture_is_told_how_to_name_its_projection() -> None:
    with pytest.raises(AdapterError, match=r"no attention output projection known for model type 'openai-gpt'"):
        get_peft_model(tiny.base("openai-gpt"), MoguConfig())
    named = get_peft_model(tiny.base("openai-gpt"), MoguConfig(target_modules=["attn.c_proj"]))
    assert len(mogu_layers(named)) == tiny.LAYERS


def test_two_active_adapters_are_refused() -> None:
    model = tiny.adapted("llama")
    model.add_adapter("second", MoguConfig(r=4, router_width=8))
    with pytest.raises(AdapterError, match="only one MoGU adapter can be active, not default, second"):
        model.base_model.set_adapter(["default", "second"])


def test_a_second_adapter_takes_over_when_it_is_activated() -> None:
    plain = tiny.base("llama")
    model = tiny.adapted(copy.deepcopy(plain))
    first = model(input_ids=IDS).logits
    model.add_adapter("second", MoguConfig(r=2, router="folded"))
    tiny.randomise(model, "second", seed=5)
    assert torch.equal(model(input_ids=IDS).logits, first)
    model.set_adapter("second")
    expected = oracle.routed_copy(plain, oracle.numbers_of(model, "second"))(input_ids=IDS).logits
    assert_close(model(input_ids=IDS).logits, expected, atol=2e-4, rtol=1e-4)
    model.set_adapter("default")
    model.delete_adapter("second")
    assert torch.equal(model(input_ids=IDS).logits, first)


@pytest.mark.parametrize("how", ["merge_and_unload", "merge_adapter"])
def test_merging_is_refused(how: str) -> None:
    with pytest.raises(AdapterError, match="cannot be merged into the base"):
        getattr(tiny.adapted("llama"), how)()


def test_unloading_gives_the_base_back() -> None:
    plain = tiny.base("llama")
    expected = plain(input_ids=IDS).logits
    back = tiny.adapted(plain).unload()
    assert not mogu_layers(back)
    assert torch.equal(back(input_ids=IDS).logits, expected)
