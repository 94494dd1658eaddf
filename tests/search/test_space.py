"""What is varied around a recipe, and what values make of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import small

from mogu.errors import ConfigError
from mogu.recipe import Recipe, SearchRecipe, load_recipe, recipe_names
from mogu.search.space import Setting, checkpoints, described, own_values, settings, settle, shifts

ROWS = small.rows()
FITTED = {"rate", "glad_checkpoint", "unwill_checkpoint", "sharpness", "l2", "borderline_weight", "borderline"}
TRAINED = {"rate", "glad_checkpoint", "unwill_checkpoint", "router_rate", "penalty_weight", "borderline"}


def names(recipe: Recipe, rows: Any = ROWS) -> set[str]:
    return {one.name for one in settings(recipe, rows)}


def with_search(recipe: Recipe, **values: Any) -> Recipe:
    return dataclasses.replace(recipe, search=dataclasses.replace(recipe.search, **values))


def test_fitted_and_trained_routers_have_settings_of_their_own() -> None:
    assert names(small.RECIPE) == FITTED
    assert names(small.RANDOM) == TRAINED
    both = dataclasses.replace(small.RECIPE, routers=dataclasses.replace(small.RECIPE.routers, epochs=1))
    assert names(both) == FITTED | TRAINED


def test_what_the_recipe_holds_fast_or_has_at_zero_is_left_alone() -> None:
    assert names(with_search(small.RECIPE, sharpness_by=(1.0, 1.0), rates=(1.0,), checkpoints=())) == {
        "l2",
        "borderline_weight",
        "borderline",
    }
    zero = dataclasses.replace(small.RECIPE, routers=dataclasses.replace(small.RECIPE.routers, l2=0.0))
    assert names(zero) == FITTED - {"l2"}
    assert names(small.RECIPE, [row for row in ROWS if not row.borderline]) == FITTED - {"borderline"}


def test_a_share_of_rows_does_not_grow_beyond_all_of_them() -> None:
    recipe = with_search(small.RECIPE, borderline_by=(0.5, 4.0))
    half = dataclasses.replace(recipe, routers=dataclasses.replace(recipe.routers, borderline=0.5))
    for one, high in ((recipe, 1.0), (half, 2.0)):
        assert next(s for s in settings(one, ROWS) if s.name == "borderline").high == high


@pytest.mark.parametrize("name", recipe_names())
def test_own_values_leave_a_recipe_exactly_as_it_is(name: str) -> None:
    recipe = load_recipe(name)
    found = settings(recipe, ROWS)
    assert settle(recipe, own_values(found)) == recipe
    assert described(recipe, own_values(found)) == {}
    assert all(one.own in one.choices if one.choices else one.low <= one.own <= one.high for one in found)


def test_values_change_their_fields_and_say_so() -> None:
    values = {"rate": 2.0, "unwill_checkpoint": 8.0, "sharpness": 1.51234, "borderline": 0.5}
    new = settle(small.RECIPE, values)
    assert (new.glad.learning_rate, new.unwill.learning_rate) == (0.02, 0.02)
    assert (new.glad.checkpoint, new.unwill.checkpoint) == (None, 8)
    assert (new.routers.sharpness, new.routers.borderline, new.routers.l2) == (1.51, 0.5, small.RECIPE.routers.l2)
    assert described(small.RECIPE, values) == {
        "learning rate": 0.02,
        "unwill pairs": 8,
        "sharpness": 1.51,
        "borderline share": 0.5,
    }


@pytest.mark.parametrize(
    ("changes", "wanted", "pairs", "expected"),
    [
        ({}, None, 6, (4.0, 8.0)),  # 6 pairs x 2 epochs in steps of 2, a checkpoint every 4: 4, 8, 12
        ({"epochs": 4}, None, 6, (4.0, 8.0, 16.0)),
        ({}, None, 3, (4.0, 8.0)),  # 2 steps an epoch
        ({}, None, 2, (4.0,)),
        ({}, (7.0, 12.0, 100.0), 6, (8.0, 12.0)),
        ({"checkpoint": 8}, None, 6, (4.0,)),  # half; its own is there already, twice it is too much
        ({}, (), 6, ()),
    ],
)
def test_a_responder_is_taken_where_training_saves_it(
    changes: dict[str, Any], wanted: Any, pairs: int, expected: tuple[float, ...]
) -> None:
    assert checkpoints(dataclasses.replace(small.RESPONDER, **changes), wanted, pairs) == expected


def test_shifts_are_those_of_the_balance_or_around_its_only_one() -> None:
    assert shifts(small.RECIPE) == (-1.0, 0.0, 1.0)
    assert shifts(small.RANDOM) == (-0.5, 0.0, 0.5, 1.0, 1.5)
    assert shifts(with_search(small.RANDOM, shifts=(2.0, -1.0, 2.0))) == (-1.0, 2.0)


def test_a_setting_is_a_choice_or_a_range() -> None:
    for one in settings(small.RECIPE, ROWS):
        assert isinstance(one, Setting)
        assert bool(one.choices) != (one.low < one.high)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"sharpness_by": (2.0, 4.0)}, "search.sharpness_by must be two factors, 0 < lowest <= 1 <= highest"),
        ({"l2_by": (0.5,)}, "search.l2_by must be two factors"),
        ({"l2_by": (0.0, 2.0)}, "search.l2_by must be two factors"),
        ({"rates": (0.5, 2.0)}, "search.rates must hold 1, the recipe's own rate"),
        ({"rates": (1.0, -1.0)}, "search.rates must hold 1"),
        ({"checkpoints": (0.0,)}, "search.checkpoints must hold numbers of pairs"),
        ({"shifts": ()}, "search.shifts needs at least one value, or null"),
        ({"beaten_times": 0}, "beaten_times must be at least 1"),
    ],
)
def test_a_space_without_the_recipe_in_it_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Recipe(search=SearchRecipe(**values))


def test_a_space_is_read_from_a_file(tmp_path: Any) -> None:
    (tmp_path / "mine.yaml").write_text("search: {rates: [1, 3], checkpoints: null, shifts: [-1, 0], l2_by: [1, 1]}")
    found = load_recipe(tmp_path / "mine.yaml").search
    assert (found.rates, found.checkpoints, found.shifts, found.l2_by) == ((1.0, 3.0), None, (-1.0, 0.0), (1.0, 1.0))
    (tmp_path / "again.yaml").write_text(load_recipe(tmp_path / "mine.yaml").to_yaml())
    assert load_recipe(tmp_path / "again.yaml").search == found
