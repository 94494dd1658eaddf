"""Trackers: named, missing, and what they are told; wandb and mlflow are stood in for by modules that remember."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import small

from mogu.errors import ConfigError, MissingExtraError, TrainingError
from mogu.train.run import train
from mogu.train.track import trackers


def module(monkeypatch: pytest.MonkeyPatch, name: str, **contents: Any) -> ModuleType:
    """An importable module of that name."""
    made = ModuleType(name)
    made.__spec__ = ModuleSpec(name, None, is_package=True)
    made.__path__ = []
    vars(made).update(contents)
    monkeypatch.setitem(sys.modules, name, made)
    return made


def run(out: Path, *track: str) -> None:
    train(
        *(small.base(), small.tokenizer(), small.rows(), small.RANDOM, out),
        **{"model_name": "tiny", "batch_size": 4, "track": track},
    )


# names


def test_without_names_tensorboard_is_used_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    module(monkeypatch, "tensorboard")
    assert trackers(None) == ("tensorboard",)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert trackers(None) == ()


def test_names_are_taken_in_order_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("wandb", "mlflow"):
        module(monkeypatch, name)
    assert trackers("mlflow, wandb,mlflow") == ("mlflow", "wandb")
    assert trackers("") == ()


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^unknown tracker 'wand'; choose from tensorboard, wandb, mlflow$"):
        trackers("wand")


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError) as raised:
        trackers(name)
    assert str(raised.value) == f"{name} is not installed; run: pip install 'mogu-llm[{name}]'"


def test_the_extras_exist_and_are_not_needed_for_development() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert {"tensorboard", "wandb", "mlflow"} <= set(extras)
    assert not [need for need in extras["dev"] if "wandb" in need or "mlflow" in need]


# what they are told


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A wandb that remembers its runs: names, projects, logged steps and whether they were closed."""
    seen = SimpleNamespace(runs=[], failing=False)
    for name in ("wandb.sdk", "wandb.sdk.lib"):
        module(monkeypatch, name)
    module(monkeypatch, "wandb.sdk.lib.config_util", ConfigError=type("ConfigError", (Exception,), {}))
    made = module(monkeypatch, "wandb", run=None, Error=type("Error", (Exception,), {}))

    class Config(dict):
        def update(self, values: dict[str, Any], allow_val_change: bool = False) -> None:
            super().update(values)

    def init(project: str, name: str, **more: Any) -> None:
        if seen.failing:
            raise made.Error("no API key\nconfigured")
        seen.runs.append(SimpleNamespace(project=project, name=name, logs=[], open=True))
        made.run = SimpleNamespace(_label=lambda **_: None, summary={}, id="1", name=name)

    def finish() -> None:
        seen.runs[-1].open, made.run = False, None

    made.init, made.finish, made.config = init, finish, Config()
    made.log = lambda values: seen.runs[-1].logs.append(values)
    made.define_metric = made.termwarn = lambda *_, **__: None
    return seen


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a tracker sets in the environment is gone after the test."""
    for name in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_every_stage_is_a_wandb_run_of_its_own(tmp_path: Path, wandb: SimpleNamespace) -> None:
    run(tmp_path / "mine", "wandb")
    assert [one.name for one in wandb.runs] == ["mine glad", "mine unwill", "mine routers"]
    assert {one.project for one in wandb.runs} == {"mogu"}
    assert not any(one.open for one in wandb.runs)
    for one, steps in zip(wandb.runs, ([1, 5], [1, 5], [1]), strict=True):
        assert [log["train/global_step"] for log in one.logs if "train/loss" in log] == steps
    assert not (tmp_path / "mine" / "tensorboard").exists()


def test_wandb_takes_the_users_project(tmp_path: Path, wandb: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    run(tmp_path, "wandb")
    assert {one.project for one in wandb.runs} == {"theirs"}


def test_a_wandb_that_cannot_start_is_one_line(tmp_path: Path, wandb: SimpleNamespace) -> None:
    wandb.failing = True
    with pytest.raises(TrainingError) as raised:
        run(tmp_path, "wandb")
    assert str(raised.value) == (
        "wandb cannot start: no API key configured; run wandb login, or set WANDB_MODE=offline"
    )


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """An mlflow that remembers its runs."""
    seen = SimpleNamespace(runs=[], experiment=None, failing=False)
    failure = type("MlflowException", (Exception,), {})
    module(monkeypatch, "mlflow.exceptions", MlflowException=failure)
    active: list[Any] = [None]

    def start_run(run_name: str, nested: bool) -> None:
        if seen.failing:
            raise failure("no server at the tracking URI")
        seen.runs.append(SimpleNamespace(name=run_name, steps=[], parameters={}, open=True))
        active[0] = SimpleNamespace(info=SimpleNamespace(run_id="1"))

    def end_run() -> None:
        seen.runs[-1].open, active[0] = False, None

    module(
        monkeypatch,
        "mlflow",
        __version__="3.0.0",
        utils=SimpleNamespace(
            validation=SimpleNamespace(MAX_PARAM_VAL_LENGTH=250, MAX_PARAMS_TAGS_PER_BATCH=100),
        ),
        is_tracking_uri_set=lambda: True,
        get_tracking_uri=lambda: "here",
        active_run=lambda: active[0],
        set_experiment=lambda name: setattr(seen, "experiment", name),
        start_run=start_run,
        end_run=end_run,
        log_params=lambda values, synchronous: seen.runs[-1].parameters.update(values),
        log_metrics=lambda metrics, step, synchronous: seen.runs[-1].steps.append(step) if "loss" in metrics else None,
    )
    return seen


def test_every_stage_is_an_mlflow_run_of_its_own(tmp_path: Path, mlflow: SimpleNamespace) -> None:
    run(tmp_path / "mine", "mlflow")
    assert [one.name for one in mlflow.runs] == ["mine glad", "mine unwill", "mine routers"]
    assert mlflow.experiment == "mogu"
    assert not any(one.open for one in mlflow.runs)
    assert [one.steps for one in mlflow.runs] == [[1, 5], [1, 5], [1]]
    assert all(one.parameters["learning_rate"] == 1e-2 for one in mlflow.runs)


def test_an_mlflow_that_cannot_start_is_one_line(tmp_path: Path, mlflow: SimpleNamespace) -> None:
    mlflow.failing = True
    with pytest.raises(TrainingError, match=r"^mlflow cannot start: no server at the tracking URI; see MLFLOW"):
        run(tmp_path, "mlflow")


def test_tensorboard_can_be_left_out(tmp_path: Path) -> None:
    run(tmp_path)
    assert not (tmp_path / "tensorboard").exists()
