"""A LoRA that is merged into the base first: known by its hash, demanded by the adapter that was trained on it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import small
import tiny
import torch
from peft import LoraConfig, get_peft_model
from torch.testing import assert_close

import mogu
from mogu.adapter.store import attach, read_config, save
from mogu.errors import AdapterError, ModelError
from mogu.finetuned import LORA_FOLDER, lora_hash, merge_lora, merged_lora
from mogu.loading import load_run

IDS = tiny.prompts(9)[0] % 40


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small.save_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    model = get_peft_model(small.base(), LoraConfig(r=2, target_modules=["q_proj", "o_proj"], init_lora_weights=False))
    model.save_pretrained(tmp_path_factory.mktemp("lora") / "mine")
    return tmp_path_factory.getbasetemp() / "lora0" / "mine"


@pytest.fixture(scope="module")
def run_folder(base_folder: str, lora: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = merge_lora(small.base(), lora)
    model = tiny.adapted(base, router="folded", base_model=base_folder, base_lora=merged_lora(base))
    folder = tmp_path_factory.mktemp("run")
    save(model, folder / "adapter")
    return folder


def test_the_merged_base_is_the_fine_tuned_model(lora: Path) -> None:
    from peft import PeftModel

    expected = PeftModel.from_pretrained(small.base(), str(lora))(input_ids=IDS).logits
    merged = merge_lora(small.base(), lora)
    assert_close(merged(input_ids=IDS).logits, expected)
    assert (expected - small.base()(input_ids=IDS).logits).abs().max() > 0.1
    assert merged_lora(merged) == lora_hash(lora)
    assert merged_lora(small.base()) is None


def test_its_hash_knows_weights_and_shape_but_no_path(lora: Path, tmp_path: Path) -> None:
    shutil.copytree(lora, tmp_path / "copy")
    config = json.loads((tmp_path / "copy" / "adapter_config.json").read_text())
    for change, same in (({"base_model_name_or_path": "/home/me"}, True), ({"lora_alpha": 3}, False)):
        (tmp_path / "copy" / "adapter_config.json").write_text(json.dumps({**config, **change}))
        assert (lora_hash(tmp_path / "copy") == lora_hash(lora)) == same


def test_loading_the_adapter_merges_the_same_lora_again(base_folder: str, lora: Path, run_folder: Path) -> None:
    expected = merge_lora(small.base(), lora)(input_ids=IDS).logits
    assert read_config(run_folder).base_lora == lora_hash(run_folder / "adapter" / LORA_FOLDER) == lora_hash(lora)
    model, _ = mogu.load(base_folder, run_folder, device="cpu")
    with model.disable_adapter():
        assert_close(model(input_ids=IDS).logits, expected)
    plain = load_run(run_folder, plain=True, device="cpu").model
    assert_close(plain(input_ids=IDS).logits, expected)
    assert str(lora) not in (run_folder / "adapter" / LORA_FOLDER / "adapter_config.json").read_text()


def test_an_adapter_demands_its_lora(base_folder: str, lora: Path, run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="belongs on a base with a LoRA merged into it"):
        attach(small.base(), run_folder)
    other = save(tiny.adapted(small.base(), router="folded"), tmp_path / "other" / "adapter")
    with pytest.raises(AdapterError, match="as it was before a LoRA was merged"):
        attach(merge_lora(small.base(), lora), other)
    shutil.copytree(run_folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "adapter" / LORA_FOLDER)
    with pytest.raises(AdapterError, match=r"base_adapter/ is missing there or holds another one"):
        mogu.load(base_folder, tmp_path / "run", device="cpu")


def test_what_is_no_lora(lora: Path, run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="a fine-tuned model goes to --model"):
        merge_lora(small.base(), tmp_path)
    with pytest.raises(ModelError, match="holds a MOGU adapter, not a LoRA"):
        merge_lora(small.base(), run_folder / "adapter")
    with pytest.raises(ModelError, match="does not go into this base"):
        merge_lora(small.base(hidden_size=16), lora)
    with pytest.raises(ModelError, match="merged into this base already"):
        merge_lora(merge_lora(small.base(), lora), lora)
