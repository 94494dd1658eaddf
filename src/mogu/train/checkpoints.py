"""What an interrupted stage leaves on disk: only whole checkpoints count, and a disk that fails is one line."""

from __future__ import annotations

import errno
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

from mogu.errors import TrainingError

RNG_NAMES = "rng_state*.pth"
"""One of each process."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def keep_whole(folder: Path) -> Path | None:
    """Trainer's last whole checkpoint in ``folder``; the first broken one and all after it are removed.

    What comes after a broken checkpoint could be gone on with, but the broken one could then not be chosen.
    """
    last = None
    found = sorted(folder.glob("checkpoint-*"), key=step_of)
    for index, checkpoint in enumerate(found):
        if not _is_whole(checkpoint):
            for broken in found[index:]:
                shutil.rmtree(broken)
            break
        last = checkpoint
    return last


def step_of(checkpoint: Path) -> int:
    """Optimizer steps that a checkpoint has behind it."""
    return int(checkpoint.name.rpartition("-")[2])


def read_checkpoint(checkpoint: Path, model: PeftModel) -> dict[str, torch.Tensor]:
    """The adapter's tensors in ``checkpoint``, under the names that ``model`` has for them.

    Raises:
        TrainingError: They cannot be read.
    """
    try:
        saved = load_file(checkpoint / SAFETENSORS_WEIGHTS_NAME)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"cannot read {checkpoint}: {error}; start over with --no-resume") from error
    name, known = str(model.active_adapter), model.state_dict()
    return {_with_adapter_name(key, name, known): value for key, value in saved.items()}


def _with_adapter_name(key: str, name: str, known: dict[str, torch.Tensor]) -> str:
    """The model's name of a tensor of a saved adapter, whose names leave the adapter's own out."""
    head, _, last = key.rpartition(".")
    return f"{key}.{name}" if f"{key}.{name}" in known else f"{head}.{name}.{last}"


def _is_whole(checkpoint: Path) -> bool:
    """True if every file that training goes on from can be read to its end."""
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        load_file(checkpoint / SAFETENSORS_WEIGHTS_NAME)
        states = [path.name for path in checkpoint.glob(RNG_NAMES)]
        if not states:
            return False
        for name in (OPTIMIZER_NAME, SCHEDULER_NAME, *states):
            with zipfile.ZipFile(checkpoint / name) as archive:  # which is what torch.save writes
                if archive.testzip() is not None:
                    return False
    except (OSError, ValueError, SafetensorError, zipfile.BadZipFile):
        return False
    return True


def save_tensors(tensors: dict[str, torch.Tensor], file: Path) -> None:
    """Write ``file`` whole or not at all."""
    half = file.with_suffix(".tmp")
    save_file(tensors, half)
    half.replace(file)


@contextmanager
def storage(out: Path) -> Iterator[None]:
    """Around all that writes to the run folder ``out``: a write that fails leaves nothing half-written in its stages.

    Raises:
        TrainingError: There is no room left, or a file of weights could not be written.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = _write_failure(error)
        if reason is None:
            raise
        for work in (out / "stages").glob("*.work"):
            keep_whole(work)
        for half in (out / "stages").rglob("*.tmp"):
            half.unlink()
        raise TrainingError(
            f"cannot write to {out}: {reason}; make room and run it again: it goes on after what is finished"
        ) from error


def _write_failure(error: Exception) -> str | None:
    """Why a write failed; ``None`` if that is not what went wrong."""
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno in _NO_ROOM else None
    text = " ".join(str(error).split())
    # torch writes archives in C++, and says no more than this.
    if isinstance(error, SafetensorError) or "PytorchStreamWriter" in text or "inline_container" in text:
        return text[:200]
    return None
