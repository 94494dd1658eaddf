"""Two processes, joined by gloo, train as one does with the same steps: losses, adapter, decisions, files."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import several
import small
import torch
from safetensors.torch import load_file

from mogu import processes
from mogu.cli.errors import explain
from mogu.errors import TrainingError
from mogu.recipe import Recipe
from mogu.train import run as module
from mogu.train.run import LOG_FILE, train
from mogu.train.trainers import ResponderTrainer


def change(recipe: Recipe, section: str, **values: Any) -> Recipe:
    return dataclasses.replace(recipe, **{section: dataclasses.replace(getattr(recipe, section), **values)})


NO_DRAWS = {"dropout": 0.0}
FITTED = change(change(small.RECIPE, "adapter", **NO_DRAWS, layers_from=0.4), "glad", pairs=7, accumulation=2)
"""Seven pairs in steps of two batches of two: the last step of an epoch is two pairs and one. Lower layers are kept."""
END_TO_END = change(change(small.RANDOM, "adapter", **NO_DRAWS), "routers", epochs=1)
END_TO_END = change(change(END_TO_END, "glad", epochs=1), "unwill", epochs=1, loss="ratio", learning_rate=1e-3)
"""Three steps for each responder, two for the routers."""
RECIPES = {"fitted": FITTED, "end to end": END_TO_END}
FILES = {"adapter_config.json", "adapter_model.safetensors", "README.md", "mogu.json", "recipe.yaml"}


@pytest.fixture(autouse=True)
def every_step_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    real = module.training_arguments

    def arguments(*args: Any, **kwargs: Any) -> Any:
        made = real(*args, **kwargs)
        made.logging_steps = 1
        return made

    monkeypatch.setattr(module, "training_arguments", arguments)


def run(out: Path, recipe: Recipe) -> dict[str, torch.Tensor]:
    torch.manual_seed(99)  # a run seeds itself; what came before must not matter
    base, words = small.base(), small.tokenizer()
    trained = train(base, words, small.rows(), recipe, out, model_name="tiny", batch_size=4, track=())
    return {name: tensor.clone() for name, tensor in trained.model.state_dict().items() if "mogu_" in name}


def log(out: Path) -> list[tuple[str, int, float, float]]:
    lines = [json.loads(line) for line in (out / LOG_FILE).read_text().splitlines()]
    return [(line["stage"], line["step"], line["loss"], line["grad_norm"]) for line in lines if "loss" in line]


def tensors(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "adapter" / "adapter_model.safetensors")


def rounded(value: Any) -> Any:
    """Decisions of a record; divergences and areas are of numbers that were rounded differently on the way."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return round(value, 3) if isinstance(value, float) else value


def assert_trained_alike(one: Path, two: Path) -> None:
    alone, shared = log(one), log(two)
    assert [line[:2] for line in alone] == [line[:2] for line in shared]
    for (_, _, loss, norm), (_, _, other_loss, other_norm) in zip(alone, shared, strict=True):
        assert math.isclose(loss, other_loss, rel_tol=1e-5)
        assert math.isclose(norm, other_norm, rel_tol=1e-4)
    weights, others = tensors(one), tensors(two)
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        # L-BFGS ends a fit within a tolerance, from where rounding takes it; gradient steps agree to rounding.
        fitted = "router" in name and (one / "stages" / "balance.json").is_file()
        tolerance = 1e-3 * float(tensor.abs().max()) if fitted else 1e-5
        assert (tensor - others[name]).abs().max() <= tolerance, name
    records = [json.loads((out / "adapter" / "mogu.json").read_text()) for out in (one, two)]
    assert rounded(records[0]) == rounded(records[1])
    assert {path.name for path in (two / "adapter").iterdir()} == FILES
    assert {path.name for path in two.iterdir()} == {"adapter", "recipe.yaml", "stages", LOG_FILE}
    assert {path.name for path in (one / "stages").iterdir()} == {path.name for path in (two / "stages").iterdir()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A run of one process with each recipe."""
    with pytest.MonkeyPatch.context() as patch:
        every_step_is_logged.__wrapped__(patch)
        folders = {name: tmp_path_factory.mktemp("alone") for name in RECIPES}
        for name, recipe in RECIPES.items():
            run(folders[name], recipe)
        yield folders


@pytest.mark.parametrize("name", RECIPES)
def test_two_processes_train_as_one(alone: dict[str, Path], tmp_path: Path, name: str) -> None:
    states = several.run(2, lambda: run(tmp_path / "out", RECIPES[name]), tmp_path)
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert_trained_alike(alone[name], tmp_path / "out")


def test_fsdp_trains_as_one(alone: dict[str, Path], tmp_path: Path) -> None:
    """The frozen base is spread: each process holds half of every decoder layer's parameters."""

    def spread() -> Any:
        from torch.distributed.tensor import DTensor

        held: dict[str, tuple[int, int]] = {}
        real = module.shard_base

        def look(model: Any) -> None:
            real(model)
            held.update(
                {n: (p.to_local().numel(), p.numel()) for n, p in model.named_parameters() if isinstance(p, DTensor)}
            )
            assert not any(
                "mogu_" in name or parameter.requires_grad
                for name, parameter in model.named_parameters()
                if isinstance(parameter, DTensor)
            )

        module.shard_base = look
        run(tmp_path / "out", END_TO_END)
        return held

    for held in several.run(2, spread, tmp_path, ACCELERATE_USE_FSDP="true"):
        assert any("q_proj" in name for name in held)
        assert any("o_proj.base_layer" in name for name in held)
        assert all(2 * mine == whole for mine, whole in held.values())
    assert_trained_alike(alone["end to end"], tmp_path / "out")


def test_one_process_goes_on_where_two_were_killed(alone: dict[str, Path], tmp_path: Path) -> None:
    """Killed at the first checkpoint of the second stage."""

    def killed() -> None:
        real = module.CheckpointWatch.catch_up

        def catch_up(self: Any, step: int) -> bool:
            if self.stage == "unwill" and step == 2:
                processes.wait()
                raise KeyboardInterrupt
            return real(self, step)

        module.CheckpointWatch.catch_up = catch_up
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "out", END_TO_END)

    several.run(2, killed, tmp_path)
    assert (tmp_path / "out" / "stages" / "unwill.work" / "checkpoint-2" / "rng_state_1.pth").is_file()
    run(tmp_path / "out", END_TO_END)
    alike, whole = tensors(tmp_path / "out"), tensors(alone["end to end"])
    assert all((alike[name] - whole[name]).abs().max() <= 1e-5 for name in whole)
    assert max(step for stage, step, *_ in log(tmp_path / "out") if stage == "unwill") == 3


def test_a_step_that_cannot_be_divided_is_refused_at_once(tmp_path: Path) -> None:
    def refused() -> str:
        with pytest.raises(TrainingError) as caught:
            run(tmp_path / "out", FITTED)
        return str(explain(caught.value))

    assert (
        several.run(3, refused, tmp_path)
        == [
            "a step of 4 rows (batch_size · accumulation) cannot be divided among 3 processes; start another "
            "number, or change the recipe"
        ]
        * 3
    )
    assert not (tmp_path / "out").exists()


def test_what_fails_in_one_process_ends_all_with_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The second process meets an infinite loss; the first could wait for its gradients for ever."""
    from mogu.cli import main as cli

    base, data = small.save_base(tmp_path / "base"), tmp_path / "data"
    data.mkdir()
    (data / "rows.jsonl").write_text("".join(json.dumps(dataclasses.asdict(row)) + "\n" for row in small.rows()))
    (tmp_path / "recipe.yaml").write_text(END_TO_END.to_yaml())
    real = ResponderTrainer.finite

    def finite(self: Any, loss: torch.Tensor) -> torch.Tensor:
        bad = processes.rank() == 1 and self.state.global_step == 1
        return real(self, loss * math.inf if bad else loss)

    monkeypatch.setattr(ResponderTrainer, "finite", finite)

    def command() -> None:
        arguments = ["train", "--model", base, "--data", str(data), "--recipe", str(tmp_path / "recipe.yaml")]
        try:
            cli.app([*arguments, "--out", str(tmp_path / "out")])
        except SystemExit as end:
            os.write(2, f"status {end.code}\n".encode())
            os._exit(int(end.code or 0))

    with pytest.raises(AssertionError, match="exit statuses"):
        several.run(2, command, tmp_path)
    said = capfd.readouterr()
    errors = [line for line in said.err.splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert re.fullmatch(r"error: the loss is -?inf at step 1; lower the learning rate \(earlier .*\)", errors[0])
    assert "status 2" in said.err
    assert "Traceback" not in said.err
    assert said.out == ""
