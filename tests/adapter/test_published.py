"""The authors' files: what their code computes is what ours computes, and what does not fit is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from peft import PeftModel
from published_reference import FOLDER, NAMES, expected_of, reference_base, reference_model
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from mogu.adapter.model import mogu_layers, recorded_weights
from mogu.adapter.published import import_published
from mogu.adapter.store import attach, save
from mogu.errors import AdapterError

each_reference = pytest.mark.parametrize("name", NAMES)
each_prompt = pytest.mark.parametrize("prompt", ["a", "b"])


@pytest.fixture(scope="module", params=NAMES)
def reference(request: pytest.FixtureRequest) -> tuple[PeftModel, dict[str, torch.Tensor]]:
    return reference_model(request.param), expected_of(request.param)


# what the authors' code computes


@each_prompt
def test_logits_and_weights_are_those_of_the_authors(reference: tuple, prompt: str) -> None:
    model, expected = reference
    with torch.no_grad(), recorded_weights(model) as recorded:
        logits = model(input_ids=expected[f"{prompt}.input_ids"]).logits
        unwill, glad = recorded()
    assert_close(logits, expected[f"{prompt}.mogu_logits"], atol=1e-4, rtol=0)
    assert_close(unwill, expected[f"{prompt}.unwill_weight"], atol=1e-4, rtol=0)
    assert_close(glad, expected[f"{prompt}.glad_weight"], atol=1e-4, rtol=0)


@each_prompt
def test_base_logits_are_those_of_the_authors(reference: tuple, prompt: str) -> None:
    model, expected = reference
    with torch.no_grad(), model.disable_adapter():
        logits = model(input_ids=expected[f"{prompt}.input_ids"]).logits
    assert_close(logits, expected[f"{prompt}.base_logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("way", [{"reference": True}, {}])
@each_prompt
def test_answers_are_those_of_the_authors(
    reference: tuple, prompt: str, way: dict, folded: bool, tmp_path: Path
) -> None:
    model, expected = reference
    if folded:
        name = model.peft_config["default"].base_model.removeprefix("reference-")
        model = attach(reference_base(name), save(model, tmp_path / "adapter"))
    ids, answer = expected[f"{prompt}.input_ids"], expected[f"{prompt}.generated_ids"]
    heads: list[torch.Tensor] = []
    new = answer.shape[1]
    output = model.generate(input_ids=ids, max_new_tokens=new, do_sample=False, on_handover=heads.append, **way)
    assert output[:, ids.shape[1] :].tolist() == answer.tolist()
    assert heads[0][:, ids.shape[1] :].tolist() == expected[f"{prompt}.routed_ids"].tolist()


def test_the_adapter_is_what_the_files_say(reference: tuple) -> None:
    config = reference[0].peft_config["default"]
    assert (config.r, config.lora_alpha, config.router, config.router_width) == (8, 16, "factored", 512)
    assert (config.stage, config.routed_tokens, config.shift) == ("routed", 5, 0.0)
    assert config.base_model.startswith("reference-")


# other forms of the same files


@pytest.fixture
def files(tmp_path: Path) -> Path:
    shutil.copytree(FOLDER / "llama", tmp_path / "llama")
    return tmp_path / "llama"


def imported(files: Path, base: torch.nn.Module | None = None) -> PeftModel:
    base = reference_base("llama") if base is None else base
    return import_published(
        base, files / "resp_glad", files / "resp_unwill", files / "router_layer" / "router.pth", base_name="tiny-llama"
    )


def change_responder(files: Path, change: Callable[[dict], object], name: str = "resp_glad") -> None:
    file = files / name / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def change_routers(files: Path, change: Callable[[dict], object]) -> None:
    file = files / "router_layer" / "router.pth"
    tensors = torch.load(file, weights_only=True)
    change(tensors)
    torch.save(tensors, file)


def as_bin(files: Path) -> None:
    for name in ("resp_glad", "resp_unwill"):
        file = files / name / "adapter_model.safetensors"
        torch.save(load_file(file), file.with_name("adapter_model.bin"))
        file.unlink()


def with_config(files: Path) -> None:
    for name in ("resp_glad", "resp_unwill"):
        text = json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["o_proj"]})
        (files / name / "adapter_config.json").write_text(text)


@pytest.mark.parametrize("form", [as_bin, with_config])
def test_other_forms_of_the_files_give_the_same(form: Callable, files: Path) -> None:
    form(files)
    expected = expected_of("llama")
    with torch.no_grad():
        logits = imported(files)(input_ids=expected["a.input_ids"]).logits
    assert_close(logits, expected["a.mogu_logits"], atol=1e-4, rtol=0)


def test_lora_alpha_is_taken_from_the_config(files: Path) -> None:
    with_config(files)
    for name in ("resp_glad", "resp_unwill"):
        (files / name / "adapter_config.json").write_text(json.dumps({"r": 8, "lora_alpha": 32}))
    assert mogu_layers(imported(files))[0][1].mogu_scaling == {"default": 4.0}


def test_a_half_precision_base_gets_a_float32_adapter(files: Path) -> None:
    model = imported(files, reference_base("llama").to(torch.bfloat16))
    layer = mogu_layers(model)[0][1]
    published = load_file(files / "resp_glad" / "adapter_model.safetensors")
    a = published["base_model.model.model.layers.0.self_attn.o_proj.lora_A.weight"]
    assert torch.equal(layer.mogu_glad_A["default"], a)


# what is refused

LORA = "base_model.model.model.layers.{}.self_attn.o_proj.lora_{}.weight"
ROUTER = "model.routers.{}.{}.{}"


class Trap:
    def __reduce__(self) -> tuple:
        return (exec, ("raise SystemExit('ran')",))


def drop_layer(t: dict) -> None:
    del t[LORA.format(1, "A")], t[LORA.format(1, "B")]


def fewer_ranks(t: dict) -> None:
    for n in range(3):
        t[LORA.format(n, "A")] = t[LORA.format(n, "A")][:4].clone()
        t[LORA.format(n, "B")] = t[LORA.format(n, "B")][:, :4].clone()


def one_layer_of_fewer_ranks(t: dict) -> None:
    t[LORA.format(1, "A")] = t[LORA.format(1, "A")][:4].clone()


def not_a_number(t: dict) -> None:
    t[LORA.format(0, "A")][0, 0] = float("nan")


def write_config(files: Path, **settings: object) -> None:
    (files / "resp_glad" / "adapter_config.json").write_text(json.dumps(settings))


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (lambda f: shutil.rmtree(f / "resp_glad"), r"no responder in .*resp_glad: .* is missing"),
    "no router": (lambda f: (f / "router_layer" / "router.pth").unlink(), r"no file .*router.pth"),
    "cut responder": (
        lambda f: (f / "resp_unwill" / "adapter_model.safetensors").write_bytes(b"\x08"),
        r"cannot read .*resp_unwill/adapter_model.safetensors: .*download it again",
    ),
    "cut router": (
        lambda f: (p := f / "router_layer" / "router.pth").write_bytes(p.read_bytes()[:9000]),
        r"cannot read .*router.pth: .*download it again",
    ),
    "text for router": (
        lambda f: (f / "router_layer" / "router.pth").write_text("hello"),
        r"cannot read .*router.pth: .*download it again",
    ),
    "empty router": (lambda f: (f / "router_layer" / "router.pth").write_bytes(b""), r"cannot read .*router.pth"),
    "code in router": (
        lambda f: torch.save({"x": Trap()}, f / "router_layer" / "router.pth"),
        r"router.pth is no plain PyTorch file of tensors, and loading it could run code",
    ),
    "list for router": (
        lambda f: torch.save([torch.ones(1)], f / "router_layer" / "router.pth"),
        r"router.pth is no dict of named tensors",
    ),
    "responder without a layer": (
        lambda f: change_responder(f, drop_layer),
        r"resp_glad/.* lacks .*layers\.1\.self_attn\.o_proj\.lora_A\.weight for tiny-llama",
    ),
    "other module": (
        lambda f: change_responder(f, lambda t: t.update({"x.up_proj.lora_A.weight": torch.ones(8, 64)})),
        r"has a place too many: x\.up_proj\.lora_A\.weight",
    ),
    "no LoRA key": (
        lambda f: change_responder(f, lambda t: t.update({"lm_head.weight": torch.ones(2)})),
        r"resp_glad/.* holds 'lm_head.weight', which is no LoRA matrix",
    ),
    "unequal ranks": (
        lambda f: change_responder(f, fewer_ranks),
        r"resp_unwill/.* has r 8 but .*resp_glad/.* has 4",
    ),
    "mixed ranks": (
        lambda f: change_responder(f, one_layer_of_fewer_ranks),
        r"resp_glad/.* mixes the ranks \[4, 8\]",
    ),
    "not finite": (
        lambda f: change_responder(f, not_a_number),
        r"resp_glad/.*layers\.0\..*lora_A\.weight holds values that are not finite",
    ),
    "other rank in the config": (lambda f: write_config(f, r=16), r"has rank 8 but adapter_config.json .* says 16"),
    "other alpha": (lambda f: write_config(f, lora_alpha=32), r"has lora_alpha 16 but .*resp_glad/.* has 32"),
    "rslora": (lambda f: write_config(f, use_rslora=True), r"sets use_rslora"),
    "no LoRA config": (lambda f: write_config(f, peft_type="IA3"), r"describes no LoRA adapter"),
    "broken config": (
        lambda f: (f / "resp_glad" / "adapter_config.json").write_text("{"),
        r"cannot read .*adapter_config.json: .*remove it",
    ),
    "router without a layer": (
        lambda f: change_routers(f, lambda t: [t.pop(k) for k in list(t) if ".routers.2." in k]),
        r"router.pth lacks routers\.2\.alpha_\.linear_0\.weight for tiny-llama",
    ),
    "router of a deeper base": (
        lambda f: change_routers(f, lambda t: t.update({ROUTER.format(3, "alpha_", "linear_2.bias"): torch.ones(1)})),
        r"router.pth has a place too many: routers\.3\.alpha_\.linear_2\.bias",
    ),
    "router without a bias": (
        lambda f: change_routers(f, lambda t: t.pop(ROUTER.format(0, "beta_", "linear_1.bias"))),
        r"router.pth lacks routers\.0\.beta_\.linear_1\.bias",
    ),
    "router of a wrong shape": (
        lambda f: change_routers(f, lambda t: t.update({ROUTER.format(1, "beta_", "linear_2.weight"): torch.ones(64)})),
        r"router.pth: routers\.1\.beta_\.linear_2\.weight has shape \(64,\) where tiny-llama needs \(1, 64\)",
    ),
    "base weights in the router": (
        lambda f: change_routers(f, lambda t: t.update({"model.norm.weight": torch.ones(64)})),
        r"router.pth holds 'model.norm.weight', which is no router weight",
    ),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_spoilt_files_are_refused_in_one_line_and_leave_the_base_as_it_was(fault: str, files: Path) -> None:
    spoil, message = SPOILT[fault]
    spoil(files)
    base = reference_base("llama")
    with pytest.raises(AdapterError, match=message) as caught:
        imported(files, base)
    assert "\n" not in str(caught.value)
    assert not mogu_layers(base)
    expected = expected_of("llama")
    assert_close(base(input_ids=expected["a.input_ids"]).logits, expected["a.base_logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (lambda: tiny.base("llama", hidden_size=48), r"has shape \(8, 64\) where tiny-llama needs \(8, 48\)"),
        (lambda: tiny.base("llama", hidden_size=64, num_hidden_layers=4), r"lacks .*layers\.3\."),
        (lambda: tiny.base("falcon", hidden_size=64), r"lacks .*transformer\.h\.0\.self_attention\.dense"),
        (lambda: tiny.base("openai-gpt"), r"no attention output projection known"),
        (lambda: tiny.adapted("llama"), r"the base already carries an adapter"),
    ],
    ids=["narrower", "deeper", "falcon", "unknown", "adapted"],
)
def test_another_base_is_refused(base: Callable, message: str, files: Path) -> None:
    with pytest.raises(AdapterError, match=message):
        imported(files, base())


def test_a_second_try_with_the_right_files_works_on_the_same_base(files: Path) -> None:
    base = reference_base("llama")
    change_responder(files, drop_layer)
    with pytest.raises(AdapterError):
        imported(files, base)
    expected = expected_of("llama")
    with torch.no_grad():
        logits = imported(FOLDER / "llama", base)(input_ids=expected["b.input_ids"]).logits
    assert_close(logits, expected["b.mogu_logits"], atol=1e-4, rtol=0)
