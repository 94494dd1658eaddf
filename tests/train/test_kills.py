"""``mogu train`` killed by SIGKILL wherever it touches the disk: run again, it ends in the same adapter."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import small
import torch
from safetensors.torch import load_file

from mogu.data.rows import write_jsonl
from mogu.recipe import Recipe

pytestmark = pytest.mark.slow
TESTS = Path(__file__).parents[1]
RECIPES = {recipe.name: recipe for recipe in (small.RECIPE, small.RANDOM)}
KILLS = 10
"""Kills of each recipe that are spread over a run; every second one comes while a file is being written."""
CHAIN = 40
"""Changes of files between two kills of the run that is killed again and again."""

Life = dict[str, Any]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Path], Life]:
    """A model folder, a data set and recipe files; makes the life that trains with a recipe in a folder."""
    folder = tmp_path_factory.mktemp("world")
    model = small.save_base(folder / "model")
    write_jsonl(folder / "data" / "rows.jsonl", [asdict(row) for row in small.rows()])
    for name, recipe in RECIPES.items():
        (folder / f"{name}.yaml").write_text(recipe.to_yaml())

    def life(name: str, out: Path, die: int | None = None, half: bool = False) -> Life:
        arguments = [
            "train",
            "--model",
            model,
            "--data",
            str(folder / "data"),
            "--recipe",
            str(folder / f"{name}.yaml"),
        ]
        return {"arguments": [*arguments, "--out", str(out)], "out": str(out), "die": die, "half": half}

    return life


def lives(told: list[Life]) -> list[dict[str, int]]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent / "src"), str(TESTS), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",  # a process that has forked cannot use it
    }
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("lives.py"))],
        input=json.dumps(told),
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, int]] = json.loads(done.stdout)
    return found


def adapter(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "adapter" / "adapter_model.safetensors")


def assert_same(out: Path, whole: Path) -> None:
    one, two = adapter(out), adapter(whole)
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    for name in ("adapter_config.json", "mogu.json", "README.md", "recipe.yaml"):
        assert (out / "adapter" / name).read_text() == (whole / "adapter" / name).read_text()


def assert_tidy(out: Path, whole: Path) -> None:
    """Nothing half-written and nothing temporary is left."""
    assert {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()}
    assert {path.name for path in (out / "stages").iterdir()} == {path.name for path in (whole / "stages").iterdir()}


@pytest.fixture(scope="module")
def whole(world: Callable[..., Life], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, int]]:
    """Run folder of an uninterrupted run of each recipe, and how often it changed a file."""
    folders = {name: tmp_path_factory.mktemp("whole") / name for name in RECIPES}
    found = lives([world(name, out) for name, out in folders.items()])
    assert [one["status"] for one in found] == [0, 0]
    return {name: (out, one["events"]) for (name, out), one in zip(folders.items(), found, strict=True)}


@pytest.mark.parametrize("name", RECIPES)
def test_a_killed_run_ends_in_the_same_adapter(
    tmp_path: Path, world: Callable[..., Life], whole: dict[str, tuple[Path, int]], name: str
) -> None:
    path, events = whole[name]
    points = [2 + (events - 2) * index // KILLS for index in range(KILLS)]
    folders = [tmp_path / str(point) for point in points]
    told = []
    for index, (point, out) in enumerate(zip(points, folders, strict=True)):
        told += [world(name, out, point, half=index % 2 == 1), world(name, out)]
    found = lives(told)
    assert [one["status"] for one in found] == [signal.SIGKILL, 0] * KILLS
    for out in folders:
        assert_same(out, path)
        assert_tidy(out, path)


@pytest.mark.parametrize("half", [False, True], ids=["between writes", "while writing"])
def test_a_run_that_is_killed_again_and_again_ends_in_the_same_adapter(
    tmp_path: Path, world: Callable[..., Life], whole: dict[str, tuple[Path, int]], half: bool
) -> None:
    path, events = whole["tiny"]
    out = tmp_path / "run"
    kills = events // CHAIN + 4  # some work is done twice
    found = lives([world("tiny", out, CHAIN + 3 * index, half) for index in range(kills)] + [world("tiny", out)])
    assert [one["status"] for one in found[:3]] == [signal.SIGKILL] * 3
    assert found[-1]["status"] == 0
    assert_same(out, path)
    assert_tidy(out, path)


def test_two_processes_with_one_seed_make_the_same_adapter(
    tmp_path: Path, world: Callable[..., Life], whole: dict[str, tuple[Path, int]]
) -> None:
    recipe: Recipe = RECIPES["tiny"]
    assert recipe.seed == 0
    assert [one["status"] for one in lives([world("tiny", tmp_path / "again")])] == [0]
    assert_same(tmp_path / "again", whole["tiny"][0])
