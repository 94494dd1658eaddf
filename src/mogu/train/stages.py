"""What finished stages leave in the run folder: a record and tensors, with a hash of all that they depend on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from mogu import processes
from mogu.data.rows import write_text
from mogu.errors import DivergedError
from mogu.train.checkpoints import read_checkpoint, save_tensors

_TRAINED = ("glad", "unwill", "routers")
"""Stages that leave tensors."""


class Stages:
    """The stages of one run, or of several that share what they have in common. Of several processes, main writes."""

    def __init__(self, folder: Path, model: Any, shared: bool = False) -> None:
        """
        Args:
            folder: Where they lie.
            model: peft model that is trained.
            shared: Stages are kept under their hashes, and the checkpoints of a responder stay, for runs that take
                another one of the same training.
        """
        self.folder, self.model, self.shared = folder, model, shared

    def place(self, stage: str, inputs: str, kind: str) -> Path:
        """Where a stage with these inputs keeps its ``json``, ``safetensors`` or ``work``."""
        return self.folder / (f"{stage}-{inputs}.{kind}" if self.shared else f"{stage}.{kind}")

    def finished(self, stage: str, inputs: str) -> list[dict[str, Any]] | None:
        """The report of a finished stage with the same inputs, its tensors loaded; else ``None``."""
        try:
            record = json.loads(self.place(stage, inputs, "json").read_text(encoding="utf-8"))
            if record["inputs"] != inputs:
                return None
            if stage in _TRAINED:
                self.load(load_file(self.place(stage, inputs, "safetensors")))
            report: list[dict[str, Any]] = record["report"]
            return report
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            return None

    def finish(self, stage: str, inputs: str, report: list[dict[str, Any]]) -> None:
        """Keep the report of a stage, and the tensors that it trained.

        Raises:
            DivergedError: They are not finite.
        """
        processes.from_main(lambda: self._write(stage, inputs, report))

    def _write(self, stage: str, inputs: str, report: list[dict[str, Any]]) -> None:
        record = self.place(stage, inputs, "json")
        if stage in _TRAINED:
            # Without the record of other inputs first, an interruption between the files would match it with these.
            record.unlink(missing_ok=True)
            tensors = self.tensors()
            if stage != "routers":  # which come last, and train the backbone's
                tensors = {name: tensor for name, tensor in tensors.items() if "mogu_backbone" not in name}
            if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
                raise DivergedError(f"the {stage} stage ends in weights that are not finite; load the base as float32")
            save_tensors(tensors, self.place(stage, inputs, "safetensors"))
        write_text(record, json.dumps({"inputs": inputs, "report": report}, indent=1))

    def drop(self, stage: str, inputs: str) -> None:
        """Forget the report of a stage without tensors."""
        processes.from_main(lambda: self.place(stage, inputs, "json").unlink(missing_ok=True))

    def work_folder(self, stage: str, inputs: str) -> Path:
        """Folder of Trainer's checkpoints, emptied if it belongs to other inputs."""
        return processes.from_main(lambda: _emptied(self.place(stage, inputs, "work"), inputs))

    def clear_leftovers(self) -> None:
        """Remove what killed runs left among the stages: checkpoints, and files under a temporary name."""
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.suffix not in (".json", ".safetensors"):
                path.unlink()

    def tensors(self) -> dict[str, torch.Tensor]:
        """The adapter's, by their names in the model."""
        return {k: v.contiguous() for k, v in self.model.state_dict().items() if "mogu_" in k}

    def tensors_without(self, stage: str) -> dict[str, torch.Tensor]:
        """Copies of the other tensors: checkpoints of a shared training have those of the run that began it."""
        own = f"mogu_{stage}_A", f"mogu_{stage}_B"
        return {k: v.clone() for k, v in self.tensors().items() if not any(name in k for name in own)}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Into the model.

        Raises:
            ValueError: One of them is not the model's.
        """
        result = self.model.load_state_dict(tensors, strict=False)
        if result.unexpected_keys:
            raise ValueError(f"unknown tensor {result.unexpected_keys[0]}")

    def load_checkpoint(self, checkpoint: Path) -> None:
        """A checkpoint of Trainer's into the model."""
        self.load(read_checkpoint(checkpoint, self.model))


def _emptied(folder: Path, inputs: str) -> Path:
    marker = folder / "inputs"
    if not marker.is_file() or marker.read_text() != inputs:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        marker.write_text(inputs)
    return folder
