"""A base whose layers wait on disk computes, learns and answers as one that lies in memory."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import small
import tiny
import torch
from safetensors.torch import load_file

from mogu.adapter.model import mogu_layers, set_stage
from mogu.errors import ConfigError
from mogu.models import empty_base, load_base
from mogu.offload import available_memory, budget, is_offloaded, least_bytes, placement
from mogu.train.run import train

IDS = tiny.prompts(9)[0]
DEPTH = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("base")
    small.base(num_hidden_layers=DEPTH).save_pretrained(path)
    small.tokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOGU_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def room(folder: str, layers: int) -> str:
    """Memory for so many layers, besides the rest and one that passes through."""
    base = empty_base(folder)
    one = 4 * sum(p.numel() for p in base.model.layers[0].parameters())
    return str(least_bytes(base, 4) + layers * one)


def pair(folder: str, layers: int = 2) -> tuple[Any, Any]:
    return load_base(folder, device="cpu")[0], load_base(folder, device="cpu", offload=room(folder, layers))[0]


def test_the_upper_layers_stay_and_the_lower_ones_wait_on_disk(folder: str) -> None:
    plain, streamed = pair(folder)
    waiting = [next(layer.parameters()).is_meta for layer in streamed.model.layers]
    assert waiting == [True] * 4 + [False] * 2
    assert (is_offloaded(plain), is_offloaded(streamed)) == (False, True)
    assert streamed.device == torch.device("cpu")
    with torch.no_grad():
        assert torch.equal(streamed(input_ids=IDS).logits, plain(input_ids=IDS).logits)


def test_losses_gradients_and_answers_are_equal(folder: str) -> None:
    models = [tiny.adapted(base, routed_tokens=3) for base in pair(folder)]
    found = []
    for model in models:
        assert all(
            not p.is_meta for _, layer in mogu_layers(model) for n, p in layer.named_parameters() if "mogu_" in n
        )
        answer = model.generate(
            input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=8, do_sample=False
        ).tolist()
        set_stage(model, "glad")
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
        loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
        loss.backward()
        found.append((answer, loss, [p.grad for p in model.parameters() if p.grad is not None]))
    (answer, loss, gradients), (other_answer, other_loss, other_gradients) = found
    assert answer == other_answer
    assert torch.equal(loss, other_loss)
    assert len(gradients) == 2 * DEPTH
    assert all(torch.equal(*both) for both in zip(gradients, other_gradients, strict=True))


def test_without_its_adapter_it_is_the_base_again(folder: str) -> None:
    plain, streamed = pair(folder)
    with torch.no_grad():
        assert torch.equal(tiny.adapted(streamed).unload()(input_ids=IDS).logits, plain(input_ids=IDS).logits)


def test_training_ends_in_the_same_adapter_and_skips_lower_layers(folder: str, tmp_path: Path) -> None:
    """Those below the first routed layer, whose forward a streaming layer has replaced already."""
    compute = dataclasses.replace(small.RECIPE.compute, gradient_checkpointing=True)
    shape = dataclasses.replace(small.RECIPE.adapter, layers_from=0.5)
    recipe = dataclasses.replace(small.RECIPE, adapter=shape, compute=compute)
    tensors = []
    for number, base in enumerate(pair(folder, 1)):
        out = tmp_path / str(number)
        trained = train(base, small.tokenizer(), small.rows(), recipe, out, model_name=folder, track=())
        tensors.append(load_file(trained.adapter / "adapter_model.safetensors"))
        assert "gradient_checkpointing: true" in (out / "recipe.yaml").read_text()
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


# where things go


def test_layers_go_to_the_device_then_to_memory_then_to_disk(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base = empty_base(folder)
    one = 2 * sum(p.numel() for p in base.model.layers[0].parameters())
    monkeypatch.setattr("mogu.offload.available_memory", lambda device: round(2.5 * one / 0.6))
    places = placement(base, 2, "cuda:0", least_bytes(base, 2) + one)
    assert [places[f"model.layers.{index}"] for index in range(DEPTH)] == ["disk"] * 3 + ["cpu"] * 2 + ["cuda:0"]
    assert {places[name] for name in ("model.embed_tokens", "model.norm", "lm_head")} == {"cuda:0"}


@pytest.mark.parametrize("architecture", ["gemma3", "gpt2", "falcon", "gpt_neox"])
def test_every_part_of_a_base_has_a_place(architecture: str) -> None:
    base = tiny.base(architecture)
    places = placement(base, 4, "cpu", least_bytes(base, 4))
    names = [name for name, _ in base.named_parameters()]
    assert all(sum(name.startswith(f"{part}.") for part in places) == 1 for name in names)
    assert sum(place == "disk" for place in places.values()) == tiny.LAYERS


@pytest.mark.parametrize(("text", "size"), [("10GiB", 10 * 2**30), ("1.5 mib", 1.5 * 2**20), ("7", 7), ("2GB", 2e9)])
def test_sizes(text: str, size: float) -> None:
    assert budget(text, "cpu") == size


def test_auto_is_a_share_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_memory("cpu") > 2**20
    monkeypatch.setattr("mogu.offload.available_memory", lambda device: 1000)
    assert budget("auto", "cpu") == 600


def test_what_cannot_be_is_refused(folder: str) -> None:
    with pytest.raises(ConfigError, match="--offload takes auto or a size such as 10GiB, not 'much'"):
        load_base(folder, device="cpu", offload="much")
    with pytest.raises(
        ConfigError, match=r"--offload leaves too little: embeddings and one layer alone take 0\.\d MiB"
    ):
        load_base(folder, device="cpu", offload="1KiB")
    with pytest.raises(ConfigError, match="quantized layers cannot be offloaded; take either --quantize or --offload"):
        load_base(folder, device="cpu", offload="1GiB", quantize="8bit")


def test_what_a_killed_run_left_on_disk_is_removed(folder: str, cache: Path) -> None:
    gone, alive = cache / "offload.999999999.x", cache / f"offload.{os.getpid()}.x"
    gone.mkdir(parents=True)
    alive.mkdir()
    base = pair(folder)[1]
    assert (gone.exists(), alive.exists()) == (False, True)
    own = Path(base.mogu_offload_folder.name)
    assert own.is_dir()
    assert own.parent == cache
