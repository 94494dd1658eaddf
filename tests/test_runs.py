"""Run folders are found, and what they say about themselves is read; broken files say nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mogu.errors import ConfigError
from mogu.runs import FINISHED, TRAINED, find_runs


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def begun(folder: Path, recipe: str = "mine") -> Path:
    write(folder / "recipe.yaml", f"name: {recipe}\nseed: 0\n")
    return folder


def trained(folder: Path, **record: Any) -> Path:
    begun(folder)
    for stage in ("glad", "unwill", "routers"):
        write(folder / "stages" / f"{stage}.json", {})
    write(folder / "adapter" / "adapter_config.json", {})
    write(folder / "adapter" / "recipe.yaml", "name: mine\n")
    write(folder / "adapter" / "mogu.json", {"model": "base", "shift": -0.4, "layers": [3, 4], **record})
    return folder


def rates(n: int, rate: float) -> dict[str, Any]:
    return {"n": n, "rates": {"refusal": {"rate": rate, "low": 0.0, "high": 1.0}}}


def finished(folder: Path, *suites: dict[str, Any], **summary: Any) -> Path:
    settings = {"shift": 0.5, "layers": [1, 2, 3]}
    write(trained(folder) / "summary.json", {"model": "base", "settings": settings, "suites": suites, **summary})
    return folder


def suite(kind: str, n: int, mogu: float, none: float) -> dict[str, Any]:
    return {"kind": kind, "n": n, "systems": {"none": rates(n, none), "mogu": rates(n, mogu)}}


def state(folder: Path) -> str:
    (one,) = find_runs(folder)
    return one.state


# where


def test_runs_are_found_at_any_depth_by_path(tmp_path: Path) -> None:
    for name in ("b", "a/c", "a/b/d"):
        begun(tmp_path / name)
    assert [one.folder for one in find_runs(tmp_path)] == [tmp_path / "a/b/d", tmp_path / "a/c", tmp_path / "b"]


def test_a_run_itself_can_be_named(tmp_path: Path) -> None:
    assert [one.folder for one in find_runs(begun(tmp_path))] == [tmp_path]


def test_what_lies_inside_a_run_is_none(tmp_path: Path) -> None:
    trained(tmp_path / "run")
    begun(tmp_path / "run" / "evaluation" / "other")
    assert [one.folder for one in find_runs(tmp_path)] == [tmp_path / "run"]


def test_adapters_data_sets_and_evaluations_are_no_runs(tmp_path: Path) -> None:
    write(tmp_path / "published" / "adapter_config.json", {})
    write(tmp_path / "published" / "recipe.yaml", "name: a\n")
    write(tmp_path / "data" / "rows.jsonl", "")
    write(tmp_path / "data" / "manifest.json", {})
    write(tmp_path / "evaluation" / "summary.json", {"suites": []})
    begun(tmp_path / ".hidden")
    assert find_runs(tmp_path) == []


def test_a_missing_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^no folder .*nix; mogu harden and mogu train make runs"):
        find_runs(tmp_path / "nix")


# how far


def test_each_stage_is_told_from_the_files(tmp_path: Path) -> None:
    begun(tmp_path)
    assert state(tmp_path) == "data"
    write(tmp_path / "data" / "rows.partial.jsonl", "")
    assert state(tmp_path) == "data"
    (tmp_path / "search").mkdir()
    assert state(tmp_path) == "search"
    (tmp_path / "stages").mkdir()
    for stage, then in (("glad", "unwill"), ("unwill", "routers"), ("routers", "balance")):
        assert state(tmp_path) == stage
        (tmp_path / "stages" / f"{stage}.work").mkdir()
        assert state(tmp_path) == stage
        write(tmp_path / "stages" / f"{stage}.json", {})
        (tmp_path / "stages" / f"{stage}.work").rmdir()
        assert state(tmp_path) == then
    write(tmp_path / "adapter" / "adapter_config.json", {})
    assert state(tmp_path) == "evaluation"
    write(tmp_path / "summary.json", {})
    assert state(tmp_path) == FINISHED


def test_a_run_without_data_of_its_own_ends_trained(tmp_path: Path) -> None:
    assert state(trained(tmp_path)) == TRAINED


def test_a_finished_run_that_is_trained_anew_is_in_that_stage(tmp_path: Path) -> None:
    finished(tmp_path, suite("benign", 2, 0.5, 0.0))
    (tmp_path / "stages" / "unwill.work").mkdir()
    assert state(tmp_path) == "unwill"


def test_checkpoints_that_a_finished_stage_left_are_of_no_account(tmp_path: Path) -> None:
    finished(tmp_path, suite("benign", 2, 0.5, 0.0))
    write(tmp_path / "stages" / "unwill.json", {"inputs": "abc"})
    write(tmp_path / "stages" / "unwill.work" / "inputs", "abc")
    assert state(tmp_path) == FINISHED
    write(tmp_path / "stages" / "unwill.work" / "inputs", "of another recipe")
    assert state(tmp_path) == "unwill"


# what it says


def test_a_finished_run_has_figures(tmp_path: Path) -> None:
    finished(
        tmp_path, suite("malicious", 10, 0.9, 0.1), suite("benign", 20, 0.05, 0.0), suite("borderline", 4, 0.25, 0)
    )
    (one,) = find_runs(tmp_path)
    assert one.refused == {"malicious": 0.9, "benign": 0.05, "borderline": 0.25}
    assert one.base_refused == {"malicious": 0.1, "benign": 0.0, "borderline": 0.0}
    assert (one.model, one.recipe, one.shift, one.layers) == ("base", "mine", 0.5, (1, 2, 3))


def test_two_suites_of_one_kind_are_weighed_by_their_prompts(tmp_path: Path) -> None:
    finished(tmp_path, suite("malicious", 10, 1.0, 0), suite("malicious", 30, 0.0, 0), suite("jailbreak", 5, 0.3, 0))
    (one,) = find_runs(tmp_path)
    assert one.refused == {"malicious": 0.25}


def test_a_trained_run_has_what_its_adapter_records(tmp_path: Path) -> None:
    (one,) = find_runs(trained(tmp_path))
    assert (one.model, one.shift, one.layers, one.refused) == ("base", -0.4, (3, 4), {})


def test_an_imported_adapter_is_a_run_without_layers(tmp_path: Path) -> None:
    write(tmp_path / "adapter" / "adapter_config.json", {})
    write(tmp_path / "adapter" / "recipe.yaml", "name: imported\n")
    write(tmp_path / "adapter" / "mogu.json", {"model": "vicuna"})
    (one,) = find_runs(tmp_path)
    assert (one.model, one.recipe, one.state, one.shift, one.layers) == ("vicuna", "imported", TRAINED, None, None)


def test_an_unfinished_run_knows_its_base_from_its_data(tmp_path: Path) -> None:
    write(begun(tmp_path) / "data" / "manifest.json", {"inputs": {"model": "base"}})
    (one,) = find_runs(tmp_path)
    assert one.model == "base"


def test_the_date_is_that_of_the_newest_mark(tmp_path: Path) -> None:
    trained(tmp_path)
    for number, path in enumerate(sorted(path for path in tmp_path.rglob("*") if path.is_file())):
        os.utime(path, (1000 + number, 1000 + number))
    os.utime(tmp_path / "stages" / "unwill.json", (5000, 5000))
    write(tmp_path / "notes.txt", "of no account")
    os.utime(tmp_path / "notes.txt", (9000, 9000))
    (one,) = find_runs(tmp_path)
    assert one.changed == 5000


@pytest.mark.parametrize("broken", ["", "{", "[1]", "null", '{"suites": [{"kind": "benign"}], "settings": 3}'])
def test_broken_files_say_nothing(tmp_path: Path, broken: str) -> None:
    write(begun(tmp_path) / "summary.json", broken)
    write(tmp_path / "adapter" / "mogu.json", broken)
    (one,) = find_runs(tmp_path)
    assert (one.model, one.refused, one.shift, one.layers) == (None, {}, None, None)


@pytest.mark.parametrize("broken", ["a: [", "- 1", "", "\xff"])
def test_a_broken_recipe_has_no_name(tmp_path: Path, broken: str) -> None:
    (tmp_path / "recipe.yaml").write_text(broken, encoding="latin-1")
    (one,) = find_runs(tmp_path)
    assert one.recipe is None
