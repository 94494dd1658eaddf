"""Where the losses of a run are shown besides its own log, through transformers' integrations."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import MLflowCallback, WandbCallback

from mogu.errors import ConfigError, MissingExtraError, TrainingError
from mogu.train.trainers import tensorboard

TRACKERS = ("tensorboard", "wandb", "mlflow")
"""Each is also the name of its package, and of the extra that installs it."""
PROJECT = "mogu"
"""Project or experiment, unless ``WANDB_PROJECT`` or ``MLFLOW_EXPERIMENT_NAME`` names another."""


def trackers(names: str | None) -> tuple[str, ...]:
    """Trackers named in ``names``, separated by commas; ``None`` is tensorboard where it is installed.

    Raises:
        ConfigError: An unknown name.
        MissingExtraError: Its package is not installed.
    """
    if names is None:
        return ("tensorboard",) if importlib.util.find_spec("tensorboard") else ()
    chosen = tuple(dict.fromkeys(part.strip() for part in names.split(",") if part.strip()))
    for name in chosen:
        if name not in TRACKERS:
            raise ConfigError(f"unknown tracker {name!r}; choose from {', '.join(TRACKERS)}")
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError(name, name)
    return chosen


def reporters(chosen: tuple[str, ...], out: Path, stage: str) -> list[TrainerCallback]:
    """Callbacks that show one stage of the run in ``out``: event files below it, a run of its own elsewhere."""
    name = f"{out.resolve().name} {stage}"
    made: list[TrainerCallback] = []
    if "tensorboard" in chosen:
        made += tensorboard(out / "tensorboard" / stage)
    if "wandb" in chosen:
        made.append(_StageInWandb(name))
    if "mlflow" in chosen:
        made.append(_StageInMLflow(name))
    return made


class _StageInWandb(WandbCallback):
    """One wandb run for one stage: the next stage counts its steps from one again."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def setup(self, args: Any, state: Any, model: Any, **kwargs: Any) -> None:
        """As :meth:`WandbCallback.setup`, in our project and under the name of the stage."""
        import wandb

        os.environ.setdefault("WANDB_PROJECT", PROJECT)
        args.run_name = self.name
        try:
            super().setup(args, state, model, **kwargs)
        except wandb.Error as error:
            reason = " ".join(str(error).split())[:200]
            raise TrainingError(f"wandb cannot start: {reason}; run wandb login, or set WANDB_MODE=offline") from error

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """As :meth:`WandbCallback.on_train_end`, which leaves the run open."""
        import wandb

        super().on_train_end(args, state, control, **kwargs)
        wandb.finish()


class _StageInMLflow(MLflowCallback):
    """One MLflow run for one stage."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def setup(self, args: Any, state: Any, model: Any) -> None:
        """As :meth:`MLflowCallback.setup`, in our experiment and under the name of the stage."""
        from mlflow.exceptions import MlflowException

        os.environ.setdefault("MLFLOW_EXPERIMENT_NAME", PROJECT)
        args.run_name = self.name
        try:
            super().setup(args, state, model)
        except MlflowException as error:
            reason = " ".join(str(error).split())[:200]
            raise TrainingError(f"mlflow cannot start: {reason}; see MLFLOW_TRACKING_URI") from error
