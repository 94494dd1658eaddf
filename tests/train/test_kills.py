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
from mogu.models import load_base
from mogu.train.run import train

pytestmark = pytest.mark.slow
TESTS = Path(__file__).parents[1]
RECIPES = {recipe.name: recipe for recipe in (small.RECIPE, small.RANDOM)}
KILLS = 6
"""Kills of each recipe that are spread over a run; every second one comes while a file is being written."""
CHAIN = (40, 43, 46, 49, 52, 55)
"""Changes of files between the kills of the run that is killed again and again."""

Life = dict[str, Any]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Path], Life]:
    """A model folder, a data set and recipe files; makes the life that trains with a recipe in a folder."""
    folder = tmp_path_factory.mktemp("world")
    model = small.save_base(folder / "model")
    write_jsonl(folder / "data" / "rows.jsonl", [asdict(row) for row in small.rows()])
    for name, recipe in RECIPES.items():
        (folder / f"{name}.yaml").write_text(recipe.to_yaml())

    def life(name: str, out: Path, die: Any = None, half: bool = False) -> Life:
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
def told(world: Callable[..., Life], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[Path, int]]]:
    """Folder and end of every life, by what it shows; all of them in one process, whose start costs most."""
    folder = tmp_path_factory.mktemp("lives")
    plan = [("whole", world(name, folder / name)) for name in RECIPES]
    for index, name in enumerate(RECIPES):
        for kill in range(KILLS):
            out = folder / f"{name}-{kill}"
            plan.append((f"{name} killed", world(name, out, [index, kill / KILLS], half=kill % 2 == 1)))
            plan.append((f"{name} again", world(name, out)))
    for index, changes in enumerate(CHAIN):
        plan.append(("chain", world("tiny", folder / "chain", changes, half=index % 2 == 1)))
    plan.append(("end", world("tiny", folder / "chain")))
    found: dict[str, list[tuple[Path, int]]] = {}
    for (what, life), end in zip(plan, lives([life for _, life in plan]), strict=True):
        found.setdefault(what, []).append((Path(life["out"]), end["status"]))
    return found


@pytest.mark.parametrize(("index", "name"), enumerate(RECIPES))
def test_a_killed_run_ends_in_the_same_adapter(told: dict[str, list[tuple[Path, int]]], index: int, name: str) -> None:
    whole, status = told["whole"][index]
    assert status == 0
    assert [end for _, end in told[f"{name} killed"]] == [signal.SIGKILL] * KILLS
    assert [end for _, end in told[f"{name} again"]] == [0] * KILLS
    for out, _ in told[f"{name} again"]:
        assert_same(out, whole)
        assert_tidy(out, whole)


def test_a_run_that_is_killed_again_and_again_ends_in_the_same_adapter(
    told: dict[str, list[tuple[Path, int]]],
) -> None:
    assert [end for _, end in told["chain"]][:3] == [signal.SIGKILL] * 3
    assert told["end"] == [(told["end"][0][0], 0)]
    assert_same(told["end"][0][0], told["whole"][0][0])
    assert_tidy(told["end"][0][0], told["whole"][0][0])


def test_another_process_with_the_same_seed_makes_the_same_adapter(
    tmp_path: Path, world: Callable[..., Life], told: dict[str, list[tuple[Path, int]]]
) -> None:
    model = world("tiny", tmp_path)["arguments"][2]
    base, tokenizer = load_base(model, device="cpu")
    train(base, tokenizer, small.rows(), small.RECIPE, tmp_path, model_name=model)
    assert_same(tmp_path, told["whole"][0][0])
