"""The shipped recipes find their layers in every family of chat models that people use."""

from __future__ import annotations

import copy
from pathlib import Path

import oracle
import pytest
import small
import tiny
import torch
from peft import get_peft_model

from mogu import MoguConfig
from mogu.adapter.config import TARGET_MODULES
from mogu.adapter.model import mogu_layers, set_stage
from mogu.chat import TEMPLATES
from mogu.recipe import load_recipe, recipe_names, routed_layers
from mogu.train.batches import Encoder, PairCollator
from mogu.train.packing import PackedCollator, packed_if_alike, pair_cross_entropy
from mogu.train.trainers import forward_parameters

DEPTH = 6
WIDE = {name: {"sliding_window": 64} for name in ("mistral", "ministral", "gemma2", "gemma3_text", "gemma3")}
"""Windows that a small row fits into, as every row fits into those of the real models."""

each_family = pytest.mark.parametrize("family", tiny.FAMILIES)


def base(family: str) -> torch.nn.Module:
    model_type, changes = tiny.FAMILIES[family]
    return tiny.base(model_type, num_hidden_layers=DEPTH, **changes)


@pytest.mark.parametrize("recipe", recipe_names())
@each_family
def test_a_recipe_routes_the_layers_that_it_names(family: str, recipe: str) -> None:
    shape = load_recipe(recipe).adapter
    model = base(family)
    assert model.config.get_text_config().num_hidden_layers == DEPTH
    layers = routed_layers(shape, DEPTH)
    routed = get_peft_model(model, MoguConfig(router="folded", layers_to_transform=layers))
    found = [index for index, _ in mogu_layers(routed)]
    assert found == [
        index for index in range(DEPTH) if shape.layers_from * DEPTH - 0.5 <= index < shape.layers_to * DEPTH
    ]


@each_family
def test_what_is_routed_is_the_output_of_attention(family: str) -> None:
    """As wide as all heads together, and as wide as the residual stream."""
    model = base(family)
    config = model.config.get_text_config()
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    for _, layer in mogu_layers(get_peft_model(model, MoguConfig(router="folded"))):
        assert (layer.in_features, layer.out_features) == (width, config.hidden_size)


@each_family
def test_routing_changes_the_answer_and_a_disabled_adapter_does_not(family: str) -> None:
    plain = base(family)
    ids = tiny.prompts(9)[0]
    with torch.no_grad():
        expected = plain(input_ids=ids).logits
        model = tiny.adapted(copy.deepcopy(plain))
        assert not torch.allclose(model(input_ids=ids).logits, expected, atol=0.1)
        with model.disable_adapter():
            assert torch.equal(model(input_ids=ids).logits, expected)


@each_family
def test_a_packed_pair_is_learnt_from_and_the_answer_is_the_oracles(family: str) -> None:
    model_type, changes = tiny.FAMILIES[family]
    plain = small.base(model_type, **{**WIDE.get(model_type, {}), **changes})
    plain.generation_config.eos_token_id = None
    model = tiny.adapted(copy.deepcopy(plain), routed_tokens=3, router="folded", strength=0.5)

    set_stage(model, "glad")
    pairs = [row for row in small.rows() if row.label == "malicious"][:2]
    accepts = forward_parameters(model)
    encode = Encoder(small.tokenizer(), None, 8)
    collators: tuple[PairCollator, PairCollator] = PairCollator(encode, False), PackedCollator(encode, False)
    collate = packed_if_alike(
        model, *collators, pairs, lambda batch: torch.cat(pair_cross_entropy(model, batch, accepts)), accepts
    )
    assert isinstance(collate, PackedCollator)
    wanted, unwanted = pair_cross_entropy(model.train(), collate(pairs), accepts)
    (wanted / unwanted).sum().backward()
    learnt = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(learnt) == 2 * tiny.LAYERS
    assert all("glad_" in name and g.isfinite().all() and g.abs().max() > 0 for name, g in learnt.items())

    set_stage(model.eval(), "routed")
    ids = tiny.prompts(9)[0]
    answer = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    routed = oracle.routed_copy(plain, oracle.numbers_of(model))
    assert answer[:, 9:].tolist() == oracle.decode(routed, plain, ids, m=3, new=6)


# the table that users read


def test_the_documented_families_are_these() -> None:
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    table = {cells[0].strip(): [cell.strip().strip("`") for cell in cells[1:]] for cells in lines if len(cells) == 6}
    header = table.pop("family")
    table.pop("---")
    assert set(table) == set(tiny.FAMILIES)
    for family, cells in table.items():
        row = dict(zip(header, cells, strict=True))
        model_type, _ = tiny.FAMILIES[family]
        assert row["model type"] == model_type
        assert [row["routed projection"]] == TARGET_MODULES[model_type]
        assert row["template"] in {"its own", *TEMPLATES}
        assert row["recipe"] in recipe_names()
