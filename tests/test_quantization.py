"""Quantized bases: what is loaded, what it weighs, and that MoGU on it computes what the paper says of any base."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import oracle
import pytest
import small
import tiny
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

import mogu
from mogu.adapter.model import mogu_layers, set_stage
from mogu.errors import ConfigError, MissingExtraError, TrainingError
from mogu.models import empty_base, load_base
from mogu.progress import Progress
from mogu.quantization import (
    check_trainable,
    quantization_of,
    quantized_bytes,
    saved_quantization,
    stored_bytes,
)
from mogu.train.estimate import estimate
from mogu.train.run import Run, train

IDS = tiny.prompts(9)[0]
SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "max_position_embeddings": 512}


def needs(module: str, extra: str) -> Any:
    missing = importlib.util.find_spec(module) is None
    return pytest.mark.skipif(missing, reason=f"{module} is not installed: pip install 'mogu-llm[{extra}]'")


WAYS = [
    pytest.param("4bit", marks=needs("bitsandbytes", "quantize")),
    pytest.param("8bit", marks=needs("bitsandbytes", "quantize")),
    pytest.param("torchao-8bit", marks=needs("torchao", "torchao")),
]
each_way = pytest.mark.parametrize("way", WAYS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("base")
    small.base(**SHAPE).save_pretrained(path)
    small.tokenizer().save_pretrained(path)
    return str(path)


def loaded(folder: str | Path, way: str | None) -> Any:
    return load_base(folder, device="cpu", dtype="float32", quantize=way)[0]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


# the base


@each_way
def test_a_quantized_base_is_near_the_base(folder: str, way: str) -> None:
    plain, quantized = loaded(folder, None), loaded(folder, way)
    error = (logits(quantized) - logits(plain)).std() / logits(plain).std()
    assert 0 < error < (0.8 if way == "4bit" else 0.2)
    assert (quantization_of(plain), quantization_of(quantized)) == (None, way)
    assert quantized.num_parameters() == plain.num_parameters()


@each_way
def test_what_is_not_quantized_is_bfloat16_unless_said(folder: str, way: str) -> None:
    base = load_base(folder, device="cpu", quantize=way)[0]
    assert base.get_input_embeddings().weight.dtype == torch.bfloat16
    assert loaded(folder, way).get_input_embeddings().weight.dtype == torch.float32


@each_way
def test_the_weight_is_foretold(folder: str, way: str) -> None:
    """To the scales of rows, which a tiny model has many of."""
    found = sum(stored_bytes(p) for p in loaded(folder, way).parameters())
    assert quantized_bytes(empty_base(folder), way, 4) == pytest.approx(found, rel=0.06)
    assert quantized_bytes(empty_base(folder), None, 4) == sum(
        stored_bytes(p) for p in loaded(folder, None).parameters()
    )


@each_way
def test_a_base_that_was_saved_quantized_is_loaded_as_it_is(folder: str, way: str, tmp_path: Path) -> None:
    base = loaded(folder, way)
    base.save_pretrained(tmp_path)
    small.tokenizer().save_pretrained(tmp_path)
    again = loaded(tmp_path, None)
    assert quantization_of(again) == way
    assert_close(logits(again), logits(base))
    assert saved_quantization(empty_base(tmp_path).config) == (None if way == "torchao-8bit" else way)


@each_way
def test_a_dry_run_tries_every_stage(folder: str, way: str) -> None:
    base = loaded(folder, way)
    found = estimate(base, small.tokenizer(), small.rows(), small.RANDOM, model_name="tiny", batch_size=4)
    assert (found.dtype, found.lighter) == (way, {})
    assert found.parameters == small.base(**SHAPE).num_parameters()
    assert found.weights < 4 * found.parameters
    assert found.seconds is not None


# the adapter on it


@each_way
def test_a_routed_projection_is_the_papers_equation(folder: str, way: str) -> None:
    model = tiny.adapted(loaded(folder, way))
    _, layer = mogu_layers(model)[0]
    assert (layer.in_features, layer.out_features) == (64, 64)
    numbers = next(iter(oracle.numbers_of(model).values()))
    x = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        plain, actual = layer.base_layer(x), layer(x)
    u = oracle.router_weight(numbers["unwill_router"], x, 0)[..., None]
    g = oracle.router_weight(numbers["glad_router"], x, 0)[..., None]
    deltas = [numbers["scale"] * (x @ numbers[who][0].T) @ numbers[who][1].T for who in ("unwill", "glad")]
    assert_close(actual, (u + g) * plain + u * deltas[0] + g * deltas[1], rtol=1e-4, atol=1e-4)
    assert actual.dtype == torch.float32


def routed_copy(base: Any, numbers: dict[str, dict[str, Any]]) -> Any:
    """As the oracle's, over what the quantized projection gives."""
    model = copy.deepcopy(base)

    def route(own: dict[str, Any], x: torch.Tensor, plain: torch.Tensor) -> torch.Tensor:
        u = oracle.router_weight(own["unwill_router"], x, own["shift"])[..., None]
        g = oracle.router_weight(own["glad_router"], x, -own["shift"])[..., None]
        deltas = {who: own["scale"] * ((x @ own[who][0].T) @ own[who][1].T) for who in ("unwill", "glad")}
        return (u + g) * plain + u * deltas["unwill"] + g * deltas["glad"]

    for path, own in numbers.items():
        model.get_submodule(path).register_forward_hook(lambda m, args, out, own=own: route(own, args[0], out))
    return model


@each_way
def test_routed_answers_are_the_oracles(folder: str, way: str) -> None:
    base = loaded(folder, way)
    base.generation_config.eos_token_id = None
    plain = copy.deepcopy(base)
    model = tiny.adapted(base, routed_tokens=5)
    expected = oracle.decode(routed_copy(plain, oracle.numbers_of(model)), plain, IDS, m=5, new=10)
    mask = torch.ones_like(IDS)
    answer = model.generate(input_ids=IDS, attention_mask=mask, max_new_tokens=10, do_sample=False)
    assert answer[:, IDS.shape[1] :].tolist() == expected
    assert expected != oracle.decode(plain, plain, IDS, m=0, new=10)
    assert torch.equal(logits(model.unload()), logits(plain))


@each_way
def test_gradients_after_an_answer_are_those_before(folder: str, way: str) -> None:
    """bitsandbytes 0.50.2 packs 4-bit weights at the first answer on some CPUs, and gradients then stop there."""

    def gradients(answers_first: bool) -> list[torch.Tensor]:
        model = tiny.adapted(loaded(folder, way), strength=0.3)
        set_stage(model, "glad")
        if answers_first:
            logits(model)
        model.train()
        model(input_ids=IDS, labels=IDS).loss.backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    before, after = gradients(False), gradients(True)
    assert len(before) == 2 * tiny.LAYERS
    assert all(g.abs().max() > 0 for g in before)
    assert_close(after, before)


@each_way
@pytest.mark.parametrize("recipe", [small.RECIPE, small.RANDOM], ids=lambda recipe: recipe.name)
def test_an_adapter_is_trained_saved_and_loaded(folder: str, way: str, recipe: Any, tmp_path: Path) -> None:
    upper = dataclasses.replace(recipe, adapter=dataclasses.replace(recipe.adapter, layers_from=0.5))
    trained = train(loaded(folder, way), small.tokenizer(), small.rows(), upper, tmp_path, model_name=folder, track=())
    tensors = load_file(trained.adapter / "adapter_model.safetensors")
    assert all("mogu_" in name for name in tensors)
    assert any(value.abs().max() > 0 for name, value in tensors.items() if "glad_B" in name)
    model, _ = mogu.load(folder, tmp_path, device="cpu", dtype="float32", quantize=way)
    assert_close(logits(model), logits(trained.model))


@each_way
def test_another_quantization_is_another_stage(folder: str, way: str, tmp_path: Path) -> None:
    def precision(way: str | None) -> list[Any]:
        arguments = (small.tokenizer(), small.rows(), small.RECIPE, tmp_path, "tiny", 4, Progress())
        return Run(loaded(folder, way), *arguments).precision

    assert precision(way) == ["torch.float32", way]
    assert precision(None) == ["torch.float32", False]


# what is refused


def test_an_unknown_way_is_refused(folder: str) -> None:
    with pytest.raises(
        ConfigError, match="unknown quantization '2bit'; choose from 4bit, 8bit, torchao-8bit, torchao-4"
    ):
        load_base(folder, quantize="2bit")


@pytest.mark.parametrize("settings", [{"device": "cpu"}, {"device": "cuda", "dtype": "float32"}], ids=str)
def test_torchaos_four_bits_need_a_gpu(folder: str, settings: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="torchao-4bit needs a CUDA device and bfloat16; take 4bit or torchao-8bit"):
        load_base(folder, quantize="torchao-4bit", **settings)


@pytest.mark.parametrize(
    ("module", "way", "extra"), [("bitsandbytes", "4bit", "quantize"), ("torchao", "torchao-8bit", "torchao")]
)
def test_what_is_not_installed_is_named(
    folder: str, module: str, way: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == module else find(name, *rest))
    with pytest.raises(MissingExtraError, match=rf"{module} is not installed; run: pip install 'mogu-llm\[{extra}\]'"):
        load_base(folder, device="cpu", quantize=way)


def test_a_base_without_gradients_is_refused_before_training(tmp_path: Path) -> None:
    base = small.base()
    quantizer = type("Quantizer", (), {"is_trainable": False, "quantization_config": None})()
    quantizer.quantization_config = type("Settings", (), {"quant_method": "fbgemm_fp8"})()
    base.hf_quantizer = quantizer
    with pytest.raises(TrainingError, match="no gradients pass through a base quantized as fbgemm_fp8; train on 4bit"):
        train(base, small.tokenizer(), small.rows(), small.RECIPE, tmp_path / "out", model_name="tiny", track=())
    base.hf_quantizer = None
    check_trainable(base)


# a GGUF file


@pytest.mark.slow
def test_a_gguf_base_counts_as_any_other() -> None:
    """Its weights are float32 once loaded; transformers would refuse to train it."""
    from transformers.trainer_utils import validate_quantization_for_training

    from mogu.models import _embedded_gguf

    pytest.importorskip("gguf")
    base, _ = load_base(_embedded_gguf(), device="cpu")
    assert quantization_of(base) is None
    validate_quantization_for_training(tiny.adapted(base, layers_to_transform=[29]))
