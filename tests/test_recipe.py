"""Recipes: the shipped ones load and hold the published values; what is wrong in a file is said in one line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from mogu.chat import TEMPLATES
from mogu.errors import ConfigError
from mogu.recipe import AdapterRecipe, ComputeRecipe, Recipe, load_recipe, recipe_names, routed_layers
from mogu.recipe_check import BACKBONE

PAPER = {
    "paper-llama2": ("llama-2", 5e-5, 8, 800, 960),
    "paper-vicuna": ("vicuna", 4e-5, 16, 1120, 2480),
    "paper-falcon": ("falcon", 5e-5, 8, 1120, 2160),
}
"""Template, learning rate, accumulation, and the checkpoints of glad and unwill in pairs (the paper's appendix)."""


def write(folder: Path, text: str) -> Path:
    (folder / "mine.yaml").write_text(text, encoding="utf-8")
    return folder / "mine.yaml"


def message(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as raised:
        load_recipe(write(folder, text))
    assert "\n" not in str(raised.value)
    return str(raised.value)


# shipped recipes


def test_all_of_them_are_there() -> None:
    assert set(recipe_names()) >= {"default", "quickstart", *PAPER}


@pytest.mark.parametrize("name", recipe_names())
def test_a_shipped_recipe_loads_and_comes_back_from_its_yaml(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description
    assert load_recipe(write(tmp_path, recipe.to_yaml())) == recipe


@pytest.mark.parametrize("name", PAPER)
def test_paper_recipes_hold_the_published_values(name: str) -> None:
    template, learning_rate, accumulation, *checkpoints = PAPER[name]
    recipe = load_recipe(name)
    adapter, routers = recipe.adapter, recipe.routers
    assert recipe.template == template
    assert template in TEMPLATES
    assert (adapter.rank, adapter.alpha, adapter.dropout, adapter.router_width) == (8, 16.0, 0.05, 512)
    assert (adapter.layers_from, adapter.layers_to, adapter.routed_tokens) == (0.0, 1.0, 5)
    for responder, checkpoint in zip((recipe.glad, recipe.unwill), checkpoints, strict=True):
        assert responder.loss == "ratio"
        assert (responder.learning_rate, responder.accumulation) == (learning_rate, accumulation)
        assert (responder.batch_size, responder.pairs, responder.epochs) == (1, 300, 10)
        assert (responder.checkpoint_pairs, responder.checkpoint) == (80, checkpoint)
        assert not responder.stop_when_good
    assert (routers.start, routers.penalty, routers.penalty_weight) == ("random", "squared", 2.0)
    assert (routers.learning_rate, routers.accumulation, routers.batch_size) == (5e-4, 16, 1)
    assert (routers.epochs, routers.rows) == (10, 600)
    assert recipe.balance.shifts == (0.0,)


@pytest.mark.parametrize("name", PAPER)
def test_published_checkpoints_are_among_those_that_training_saves(name: str) -> None:
    recipe = load_recipe(name)
    for responder in (recipe.glad, recipe.unwill):
        per_step = responder.batch_size * responder.accumulation
        assert responder.checkpoint is not None
        assert responder.checkpoint % per_step == 0
        assert responder.checkpoint_pairs % per_step == 0
        assert responder.checkpoint % responder.checkpoint_pairs == 0


def test_what_a_file_leaves_out_keeps_its_default(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, "glad: {epochs: 3}\ncompute: {bf16: true}\nbalance: {shifts: [-1, 0.5]}"))
    assert recipe.name == "mine"
    assert recipe.glad == dataclasses.replace(Recipe().glad, epochs=3)
    assert recipe.unwill == Recipe().unwill
    assert recipe.compute == ComputeRecipe(pack=True, bf16=True)
    assert recipe.balance.shifts == (-1.0, 0.5)


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().seed = 1  # type: ignore[misc]


# YAML's own ideas


def test_numbers_that_yaml_reads_as_strings_or_integers(tmp_path: Path) -> None:
    text = "glad: {learning_rate: 5e-5, epochs: 2.0}\nrouters: {l2: 1e-3, penalty_weight: 3}\nname: 2024"
    assert isinstance(yaml.safe_load(text)["glad"]["learning_rate"], str)
    recipe = load_recipe(write(tmp_path, text))
    assert recipe.glad.learning_rate == 5e-5
    assert (recipe.glad.epochs, type(recipe.glad.epochs)) == (2, int)
    assert recipe.routers.l2 == 1e-3
    assert (recipe.routers.penalty_weight, type(recipe.routers.penalty_weight)) == (3.0, float)
    assert recipe.name == "2024"


def test_null_where_it_means_all(tmp_path: Path) -> None:
    recipe = load_recipe(
        write(tmp_path, "template: null\ndata: {limit: null}\nglad: {pairs: null}\nrouters: {rows: ~}")
    )
    assert recipe.template is recipe.data.limit is recipe.glad.pairs is recipe.routers.rows is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("colour: red", "unknown field 'colour'; known: name, description"),
        ("glad: {rate: 1}", "unknown field 'glad.rate'; known: loss, learning_rate"),
        ("5: 1", "unknown field '5'"),
        ("glad: 3", "glad must be a mapping"),
        ("glad: null", "glad must be a mapping"),
        ("seed: null", "seed must not be null"),
        ("seed: soon", "seed: 'soon' is no int"),
        ("seed: 1.5", "seed: 1.5 is no int"),
        ("seed: true", "seed: True is no int"),
        ("seed: [1]", "seed: [1] is no int"),
        ("seed: .inf", "seed: inf is no int"),
        ("glad: {learning_rate: fast}", "glad.learning_rate: 'fast' is no float"),
        ("glad: {learning_rate: .nan}", "glad.learning_rate: nan is no float"),
        ("routers: {l2: .inf}", "routers.l2: inf is no float"),
        ("compute: {bf16: yes please}", "compute.bf16: 'yes please' is no bool"),
        ("glad: {stop_when_good: 1}", "glad.stop_when_good: 1 is no bool"),
        ("glad: {pairs: many}", "glad.pairs: 'many' is no int"),
        ("name: [a]", "name: ['a'] is no str"),
        ("balance: {shifts: 1}", "balance.shifts: 1 is no list of numbers"),
        ("backbone: {modules: q}", "backbone.modules: 'q' is no list of names"),
        ("balance: {shifts: [a]}", "balance.shifts: ['a'] is no list of numbers"),
        ("balance: {shifts: '12'}", "balance.shifts: '12' is no list of numbers"),
        ("balance: {shifts: null}", "balance.shifts must not be null"),
    ],
)
def test_unknown_fields_and_wrong_types_name_file_and_field(tmp_path: Path, text: str, expected: str) -> None:
    assert message(tmp_path, text).startswith(f"{tmp_path / 'mine.yaml'}: {expected}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [", "is not YAML"),
        ("a: b: c", "is not YAML"),
        ("", "must hold a mapping"),
        ("- 1", "must hold a mapping"),
        ("just words", "must hold a mapping"),
    ],
)
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in message(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("glad: {loss: hinge}", "loss: 'hinge' is none of ratio, log_ratio"),
        ("routers: {start: warm}", "start: 'warm' is none of random, fit"),
        ("routers: {penalty: l2}", "penalty: 'l2' is none of squared, l1"),
        ("template: alpaca", "template: 'alpaca' is none of None, llama-2"),
        ("adapter: {rank: 0}", "rank must be at least 1, not 0"),
        ("adapter: {dropout: 1.0}", "dropout must be below 1, not 1.0"),
        ("adapter: {dropout: -0.1}", "dropout must be at least 0, not -0.1"),
        ("adapter: {routed_tokens: -1}", "routed_tokens must be at least 0, not -1"),
        ("adapter: {layers_from: 0.6, layers_to: 0.5}", "shares of the depth, 0 <= from < to <= 1"),
        ("adapter: {layers_to: 1.5}", "shares of the depth"),
        ("glad: {batch_size: 0}", "batch_size must be at least 1, not 0"),
        ("unwill: {learning_rate: 0}", "learning_rate must be above 0, not 0"),
        ("glad: {pairs: 0}", "pairs must be at least 1, not 0"),
        ("glad: {epochs: 0}", "glad.epochs must be at least 1"),
        ("glad: {checkpoint: 0}", "checkpoint must be at least 1, not 0"),
        ("data: {limit: 0}", "limit must be at least 1, not 0"),
        ("routers: {rows: 1}", "routers.rows must be at least 2"),
        ("routers: {epochs: 0}", "routers.epochs must be at least 1 when the routers start at random"),
        ("balance: {shifts: []}", "balance.shifts needs at least one value"),
        ("balance: {prompts: 0}", "prompts must be at least 1, not 0"),
    ],
)
def test_values_out_of_range_are_refused(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in message(tmp_path, text)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"no recipe 'defualt'; choose from default, .*quickstart.* or give a YAML file"
    ):
        load_recipe("defualt")


def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"name: \xff")
    with pytest.raises(ConfigError, match="cannot read"):
        load_recipe(tmp_path / "mine.yaml")


# layers


@pytest.mark.parametrize(
    ("shape", "depth", "expected"),
    [
        ({}, 30, None),
        ({"layers_from": 0.5}, 30, list(range(15, 30))),
        ({"layers_from": 0.45}, 30, list(range(14, 30))),
        ({"layers_from": 0.2, "layers_to": 0.6}, 10, list(range(2, 6))),
        ({"layers_from": 0.99}, 3, [2]),
        ({"layers_to": 0.01}, 3, [0]),
        ({"layers_from": 0.5, "layers_to": 0.51}, 2, [1]),
        ({"layers_to": 0.99}, 4, None),
    ],
)
def test_shares_of_the_depth_become_layers(shape: dict[str, Any], depth: int, expected: list[int] | None) -> None:
    assert routed_layers(AdapterRecipe(**shape), depth) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("backbone: {modules: [q, mlp]}", "backbone.modules: 'mlp' is none of q, k, v, o, up, gate, down"),
        (
            "backbone: {modules: [q]}\nrouters: {start: fit, epochs: 0}",
            "routers.epochs must be at least 1 where backbone.modules are trained with them",
        ),
        ("adapter: {layers: best}", "layers: 'best' is none of range, probe, random"),
        ("adapter: {layers_budget: 0}", "layers_budget must be in (0, 1], not 0.0"),
        ("adapter: {think: often}", "think: 'often' is none of ignore, through"),
    ],
)
def test_values_of_v2_that_are_out_of_range(tmp_path: Path, text: str, expected: str) -> None:
    assert message(tmp_path, text) == f"recipe field {expected}"


def test_backbone_modules_are_those_of_the_adapter() -> None:
    from mogu.adapter.config import BACKBONE_MODULES

    assert tuple(BACKBONE_MODULES) == BACKBONE
