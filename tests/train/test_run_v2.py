"""A whole v2 run on a tiny model: probed layers, a backbone trained with the routers, one adapter."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import small
import tiny
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from mogu.adapter.model import active_config, mogu_layers, plain_base
from mogu.adapter.store import attach
from mogu.recipe import AdapterRecipe, BackboneRecipe, Recipe, RouterRecipe
from mogu.respond import respond
from mogu.train import layers, packing
from mogu.train.batches import Encoder
from mogu.train.fit import fit_routers
from mogu.train.run import Trained, train

ROWS = small.rows()
V2 = dataclasses.replace(
    small.RECIPE,
    name="tiny-v2",
    adapter=AdapterRecipe(rank=2, alpha=4.0, routed_tokens=2, layers="probe", layers_budget=0.34),
    routers=RouterRecipe(start="fit", epochs=2, rows=8, batch_size=4, accumulation=1, answer_tokens=8),
    backbone=BackboneRecipe(modules=("q", "o"), reach="upper", rank=2, learning_rate=1e-2),
)


def run(out: Path, recipe: Recipe = V2, progress: Any = None) -> Trained:
    return train(small.base(), small.tokenizer(), ROWS, recipe, out, model_name="tiny", batch_size=4, progress=progress)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trained]:
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("v2")
    return out, run(out)


def test_the_layers_are_those_of_the_probe(whole: tuple[Path, Trained]) -> None:
    out, trained = whole
    record = json.loads((out / "stages" / "layers.json").read_text())
    found = layers.probe_layers(small.base(), small.tokenizer(), ROWS, states=(layers.CHOOSING,), batch_size=4)
    assert record["scores"] == found.record(0.34)["scores"]
    assert [index for index, _ in mogu_layers(trained.model)] == record["chosen"]["layers"]
    assert len(record["chosen"]["layers"]) == 1
    said = json.loads((out / "adapter" / "mogu.json").read_text())
    assert (said["layers"], said["backbone"]) == (record["chosen"]["layers"], ["q", "o"])
    assert "| LoRA on the backbone, while routed | q, o |" in (out / "adapter" / "README.md").read_text()


def test_the_backbone_was_trained_and_the_base_is_as_it_was(whole: tuple[Path, Trained]) -> None:
    out, trained = whole
    tensors = load_file(out / "adapter" / "adapter_model.safetensors")
    assert all(tensors[name].abs().max() > 1e-3 for name in tensors if "backbone_B" in name)
    assert any("backbone_B" in name for name in tensors)
    for stage in ("glad", "unwill"):
        assert not any("backbone" in name for name in load_file(out / "stages" / f"{stage}.safetensors"))
    ids = tiny.prompts(6)[0] % 40
    with plain_base(trained.model):
        assert torch.equal(trained.model(input_ids=ids).logits, small.base()(input_ids=ids).logits)
    loaded = attach(small.base(), out)
    assert active_config(loaded).backbone_layers == "upper"
    prompts = [row.instruction for row in ROWS[:4]]
    answers = [respond(model, small.tokenizer(), prompts, max_new_tokens=6) for model in (trained.model, loaded)]
    assert answers[0] == answers[1]


def test_routers_learn_from_packed_lines_what_they_learn_from_rows_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    real = packing.PackedRouterCollator.__call__
    monkeypatch.setattr(packing.PackedRouterCollator, "__call__", lambda self, rows: made.append(1) or real(self, rows))
    adapter = dataclasses.replace(V2.adapter, dropout=0.0)
    found = []
    for pack in (True, False):
        compute = dataclasses.replace(V2.compute, pack=pack)
        run(tmp_path / str(pack), dataclasses.replace(V2, adapter=adapter, compute=compute))
        found.append(load_file(tmp_path / str(pack) / "adapter" / "adapter_model.safetensors"))
        assert bool(made) == pack
        made.clear()
    for name, tensor in found[0].items():
        assert_close(tensor, found[1][name], atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("step", ["layers", "routers", "balance"])
def test_an_interrupted_run_ends_in_the_same_adapter(step: str, whole: tuple[Path, Trained], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, progress=small.Interrupts(step))
    again = small.Interrupts()
    run(tmp_path, progress=again)
    assert ("layers" in again.began) == (step == "layers")
    one, two = (load_file(out / "adapter" / "adapter_model.safetensors") for out in (whole[0], tmp_path))
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def test_another_backbone_keeps_the_responders(whole: tuple[Path, Trained], tmp_path: Path) -> None:
    run(tmp_path)
    began = small.Interrupts()
    other = dataclasses.replace(V2, backbone=BackboneRecipe(modules=("down",), rank=3, anchor_weight=0.0))
    run(tmp_path, other, began)
    assert began.began[0] == "routers"


def test_layers_drawn_by_chance(tmp_path: Path) -> None:
    recipe = dataclasses.replace(
        small.RECIPE, adapter=dataclasses.replace(V2.adapter, layers="random", layers_budget=0.67), seed=3
    )
    found = [index for index, _ in mogu_layers(run(tmp_path, recipe).model)]
    assert found == list(layers.random_layers(tiny.LAYERS, 0.67, 3))
    assert not (tmp_path / "stages" / "layers.json").exists()


def test_routers_are_fitted_on_so_many_rows_of_each_kind(tmp_path: Path) -> None:
    routers = RouterRecipe(start="fit", epochs=0, answer_tokens=8, fit_rows=2)
    trained = run(tmp_path, dataclasses.replace(small.RECIPE, routers=routers))
    saved = load_file(tmp_path / "stages" / "routers.safetensors")
    rows = layers.sampled([row for row in ROWS if row.split == "train"], 2)
    assert 4 <= len(rows) < sum(row.split == "train" for row in ROWS)
    fit_routers(trained.model, Encoder(small.tokenizer(), None, 8), rows)
    again = trained.model.state_dict()
    names = [name for name in saved if "router" in name]
    assert [name for name in names if not torch.allclose(saved[name], again[name], atol=1e-5)] == []
    assert names
