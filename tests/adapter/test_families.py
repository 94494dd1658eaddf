"""The shipped recipes find their layers in every family of chat models that people use."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from peft import get_peft_model

from mogu import MoguConfig
from mogu.adapter.model import mogu_layers
from mogu.recipe import load_recipe, recipe_names, routed_layers

DEPTH = 6

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
