"""Adapters on disk: ours, peft's own ways in, and what a user is told when something is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from torch.testing import assert_close

import mogu
from mogu.adapter.model import mogu_layers
from mogu.adapter.store import attach, read_config, save
from mogu.errors import AdapterError, MoguError

IDS = tiny.prompts(9)[0]


@pytest.fixture
def model() -> PeftModel:
    return tiny.adapted("llama", router="folded", base_model="tiny", routed_tokens=3)


@pytest.fixture
def saved(model: PeftModel, tmp_path: Path) -> Path:
    return save(model, tmp_path / "run" / "adapter", {"recipe.yaml": "seed: 1\n"})


def one_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    assert len(text) < 500
    return text


# ways in


def test_attach_reads_what_save_wrote(model: PeftModel, saved: Path) -> None:
    loaded = attach(tiny.base("llama"), saved)
    assert torch.equal(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits)
    assert not loaded.training
    assert not any(p.requires_grad for name, p in loaded.named_parameters() if "mogu_" in name)
    config = loaded.peft_config["default"]
    assert (config.base_model, config.routed_tokens, config.stage) == ("tiny", 3, "routed")
    assert (saved / "recipe.yaml").read_text() == "seed: 1\n"


def test_load_takes_a_run_folder_and_answers_routed_then_plain(model: PeftModel, saved: Path, tmp_path: Path) -> None:
    tiny.base("llama").save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    loaded, tokenizer = mogu.load(tmp_path / "base", adapter=saved.parent, device="cpu")
    assert tokenizer.padding_side == "left"
    expected = model.generate(input_ids=IDS, max_new_tokens=8, do_sample=False)
    assert torch.equal(loaded.generate(input_ids=IDS, max_new_tokens=8, do_sample=False), expected)
    plain, _ = mogu.load(tmp_path / "base", device="cpu")
    assert not mogu_layers(plain)


@pytest.mark.parametrize("form", ["factored", "folded"])
def test_peft_loads_it_by_itself(form: str, tmp_path: Path) -> None:
    model = tiny.adapted("llama", router=form)
    expected = model(input_ids=IDS).logits
    save(model, tmp_path / "adapter")
    base = tiny.base("llama")
    base.save_pretrained(tmp_path / "base")

    first = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert torch.equal(first(input_ids=IDS).logits, expected)
    first.load_adapter(tmp_path / "adapter", adapter_name="again")
    first.set_adapter("again")
    assert torch.equal(first(input_ids=IDS).logits, expected)

    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tmp_path / "base")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    auto = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    assert torch.equal(auto(input_ids=IDS).logits, expected)
    routed = model.generate(input_ids=IDS, max_new_tokens=9, do_sample=False)
    assert torch.equal(auto.generate(input_ids=IDS, max_new_tokens=9, do_sample=False), routed)


def test_an_adapter_of_another_name_is_saved_where_any_other_is(tmp_path: Path) -> None:
    model = tiny.adapted("llama", name="guard", router="folded")
    model.add_adapter("idle", mogu.MoguConfig())
    save(model, tmp_path / "adapter")
    assert {p.name for p in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
    }
    loaded = attach(tiny.base("llama"), tmp_path / "adapter")
    assert torch.equal(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits)


def test_a_bf16_base_is_served_in_bf16_from_a_router_folded_in_fp32(tmp_path: Path) -> None:
    model = tiny.adapted("llama", strength=0.3)
    save(model, tmp_path / "adapter")
    loaded = attach(tiny.base("llama").to(torch.bfloat16), tmp_path / "adapter")
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    for (_, low), (_, layer) in zip(mogu_layers(loaded), mogu_layers(model), strict=True):
        folded = layer.mogu_glad_router["default"].fold()
        assert torch.equal(low.mogu_glad_router["default"].weight, folded.weight.to(torch.bfloat16))
    loaded.generate(input_ids=IDS, max_new_tokens=8, do_sample=False)


# saving


def test_two_saves_of_one_adapter_are_equal_byte_for_byte(model: PeftModel, tmp_path: Path) -> None:
    first, second = save(model, tmp_path / "a"), save(model, tmp_path / "b")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_a_saved_folder_is_as_open_as_any_other(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert saved.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_saving_again_replaces_everything(model: PeftModel, saved: Path) -> None:
    save(model, saved, {"new.yaml": "x"})
    assert (saved / "new.yaml").is_file()
    assert not (saved / "recipe.yaml").exists()
    assert [p.name for p in saved.parent.iterdir()] == ["adapter"]


def fail_in_peft(model: PeftModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(folder: Path, **_: object) -> None:
        Path(folder).mkdir()
        (Path(folder) / "adapter_model.safetensors").write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(model, "save_pretrained", broken)


def fail_in_the_last_rename(model: PeftModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def broken(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError("disk full")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", broken)


@pytest.mark.parametrize("fail", [fail_in_peft, fail_in_the_last_rename])
def test_a_failed_save_leaves_the_old_adapter_and_nothing_else(
    fail: object, model: PeftModel, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    fail(model, monkeypatch)
    with pytest.raises(AdapterError, match=r"cannot write the adapter to .*: disk full") as caught:
        save(model, saved, {"recipe.yaml": "seed: 2\n"})
    one_line(caught.value)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before
    assert [p.name for p in saved.parent.iterdir()] == ["adapter"]


def test_a_folder_that_cannot_be_made_is_one_line(model: PeftModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(AdapterError, match="cannot write to") as caught:
        save(model, tmp_path / "file" / "adapter")
    one_line(caught.value)


# what is wrong


def missing_folder(saved: Path) -> None:
    for file in saved.iterdir():
        file.unlink()
    saved.rmdir()


def missing_weights(saved: Path) -> None:
    (saved / "adapter_model.safetensors").unlink()


def cut_weights(saved: Path) -> None:
    file = saved / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def broken_config(saved: Path) -> None:
    (saved / "adapter_config.json").write_text("{")


def list_config(saved: Path) -> None:
    (saved / "adapter_config.json").write_text("[]")


def impossible_config(saved: Path) -> None:
    config = json.loads((saved / "adapter_config.json").read_text())
    (saved / "adapter_config.json").write_text(json.dumps({**config, "stage": "both"}))


def lora_adapter(saved: Path) -> None:
    get_peft_model(tiny.base("llama"), LoraConfig(target_modules=["o_proj"])).save_pretrained(saved)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (missing_folder, r"no adapter in .*adapter_config.json is missing"),
        (missing_weights, r"no adapter in .*adapter_model.safetensors is missing"),
        (cut_weights, r"cannot read the adapter in .*train it again"),
        (broken_config, r"cannot read .*adapter_config.json"),
        (list_config, r"cannot read .*adapter_config.json"),
        (impossible_config, r"unknown stage 'both'"),
        (lora_adapter, r"holds a LORA adapter, not a MoGU one"),
    ],
)
def test_a_spoilt_adapter_is_one_clear_line(spoil: object, message: str, saved: Path) -> None:
    spoil(saved)
    with pytest.raises(MoguError, match=message) as caught:
        attach(tiny.base("llama"), saved)
    one_line(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 64},
        {"num_hidden_layers": 2},
        {"num_hidden_layers": 4},
        {"model_type": "falcon"},
    ],
    ids=str,
)
def test_another_base_is_one_clear_line(changes: dict, saved: Path) -> None:
    changes = dict(changes)
    other = tiny.base(changes.pop("model_type", "llama"), **changes)
    with pytest.raises(AdapterError, match="does not fit this model") as caught:
        attach(other, saved)
    one_line(caught.value)


def test_a_missing_adapter_is_found_out_before_the_base_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no adapter in"):
        mogu.load("no-such-model", adapter=tmp_path)


def test_read_config_takes_a_run_folder(saved: Path) -> None:
    assert read_config(saved.parent).routed_tokens == 3


def test_a_float32_round_trip_of_factors_is_exact_before_folding(tmp_path: Path) -> None:
    model = tiny.adapted("gpt2", router="factored", strength=0.3)
    save(model, tmp_path / "adapter")
    loaded = attach(tiny.base("gpt2"), tmp_path / "adapter")
    assert_close(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits, atol=1e-3, rtol=1e-3)
