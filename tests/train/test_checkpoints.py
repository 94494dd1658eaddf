"""Broken checkpoints and full disks: one line, nothing half-written, and what was finished is kept."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import small
import torch
from safetensors.torch import load_file, save_file

from mogu.errors import AdapterError, TrainingError
from mogu.progress import Progress
from mogu.train import checkpoints
from mogu.train import run as module
from mogu.train.checkpoints import keep_whole, storage
from mogu.train.run import train

STAGES = {f"{stage}.{kind}" for stage in ("glad", "unwill") for kind in ("json", "safetensors")}


def run(out: Path, progress: Progress | None = None) -> None:
    train(
        small.base(),
        small.tokenizer(),
        small.rows(),
        small.RECIPE,
        out,
        model_name="tiny",
        batch_size=4,
        progress=progress,
    )


def checkpoint(folder: Path, step: int) -> Path:
    """What Trainer saves, as small as can be."""
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    save_file({"a": torch.ones(64)}, path / "adapter_model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"a": torch.ones(64)}, path / name)
    (path / "trainer_state.json").write_text('{"global_step": 2}')
    return path


# which checkpoints count


def test_the_last_of_whole_checkpoints_is_gone_on_from(tmp_path: Path) -> None:
    for step in (2, 10, 4):
        checkpoint(tmp_path, step)
    assert keep_whole(tmp_path) == tmp_path / "checkpoint-10"
    assert len(list(tmp_path.iterdir())) == 3


def test_without_checkpoints_there_is_none(tmp_path: Path) -> None:
    assert keep_whole(tmp_path) is None


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
)
@pytest.mark.parametrize("damage", ["missing", "half", "empty"])
def test_a_broken_checkpoint_and_those_after_it_are_removed(tmp_path: Path, name: str, damage: str) -> None:
    for step in (2, 4, 6):
        checkpoint(tmp_path, step)
    path = tmp_path / "checkpoint-4" / name
    if damage == "missing":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size // 2 if damage == "half" else 0)
    assert keep_whole(tmp_path) == tmp_path / "checkpoint-2"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


def test_flipped_bits_are_noticed(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 2) / "optimizer.pt"
    content = path.read_bytes()
    place = content.index(torch.ones(64).numpy().tobytes())
    path.write_bytes(content[:place] + b"\1" + content[place + 1 :])
    assert keep_whole(tmp_path) is None


# what is said of a full disk


@contextmanager
def small_files() -> Iterator[None]:
    """Inside, this process can write no file of more than 4 KiB: writes fail as on a full disk. pytest's own, too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("kind", ["text", "torch", "safetensors"])
def test_a_write_that_fails_is_one_line(tmp_path: Path, kind: str) -> None:
    tensor, path = {"a": torch.ones(4096)}, tmp_path / "a"
    write = {
        "text": lambda: path.write_text("a" * 10_000),
        "torch": lambda: torch.save(tensor, path),
        "safetensors": lambda: save_file(tensor, path),
    }[kind]
    with pytest.raises(TrainingError) as raised, storage(tmp_path), small_files():
        write()
    said = str(raised.value)
    assert said.startswith(f"cannot write to {tmp_path}: ")
    assert said.endswith("; make room and run it again: it goes on after what is finished")
    assert "\n" not in said


@pytest.mark.parametrize(
    "error",
    [RuntimeError("shapes do not match"), FileNotFoundError(errno.ENOENT, "No such file"), torch.OutOfMemoryError("x")],
    ids=lambda error: type(error).__name__,
)
def test_other_errors_pass(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as raised, storage(tmp_path):
        raise error
    assert raised.value is error


def _full_after(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, count: int) -> None:
    """From the call after ``count`` on, ``where.name`` writes half of its file and then finds the disk full."""
    real, calls = getattr(where, name), 0

    def save(what: Any, file: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        real(what, file, *args, **kwargs)
        if calls > count:
            os.truncate(file, Path(file).stat().st_size // 2)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))

    monkeypatch.setattr(where, name, save)


def _same(one: Path, two: Path) -> bool:
    first, second = (load_file(out / "adapter" / "adapter_model.safetensors") for out in (one, two))
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    run(out)
    return out


def test_a_disk_that_is_full_at_a_checkpoint_leaves_the_earlier_ones(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        _full_after(patch, torch, "save", 3 * 3 + 3 + 1)  # three checkpoints, one, and a part of one
        with pytest.raises(TrainingError, match=r"No space left on device; make room"):
            run(tmp_path)
    stages = tmp_path / "stages"
    assert {path.name for path in stages.iterdir()} == {"glad.json", "glad.safetensors", "unwill.work"}
    assert [path.name for path in (stages / "unwill.work").glob("checkpoint-*")] == ["checkpoint-2"]
    run(tmp_path)
    assert _same(tmp_path, whole)


def test_a_disk_that_is_full_at_the_end_of_a_stage_leaves_no_half_file(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        _full_after(patch, checkpoints, "save_file", 2)
        with pytest.raises(TrainingError, match="No space left on device"):
            run(tmp_path)
    assert {path.name for path in (tmp_path / "stages").iterdir()} == STAGES
    run(tmp_path)
    assert _same(tmp_path, whole)


def test_a_disk_that_is_full_at_the_adapter_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import peft.peft_model

    run(tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}
    with monkeypatch.context() as patch:
        _full_after(patch, peft.peft_model, "safe_save_file", 0)
        with pytest.raises(AdapterError, match="No space left on device"):
            run(tmp_path)
    assert {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()} == before
    assert not list(tmp_path.glob("*.partial")) + list(tmp_path.glob(".*"))


def test_what_a_killed_save_left_is_cleared(tmp_path: Path, whole: Path) -> None:
    (tmp_path / ".adapter.killed.partial" / "new").mkdir(parents=True)
    (tmp_path / "stages" / "old.work").mkdir(parents=True)
    (tmp_path / "stages" / "glad.json.x1").write_text("{")
    run(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in whole.iterdir()}
    assert {path.name for path in (tmp_path / "stages").iterdir()} == {
        path.name for path in (whole / "stages").iterdir()
    }


def test_a_chosen_checkpoint_that_cannot_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = module.best_checkpoint

    def broken(checks: Any) -> Any:
        best = real(checks)
        path = tmp_path / "stages" / "glad.work" / f"checkpoint-{best.pairs // 2}" / "adapter_model.safetensors"
        path.write_bytes(b"half")
        return best

    monkeypatch.setattr(module, "best_checkpoint", broken)
    with pytest.raises(TrainingError, match=r"cannot read .*checkpoint-\d: .*; start over with --no-resume"):
        run(tmp_path)


# numbers that are none


class Breaks(Progress):
    """Puts a NaN into the adapter after some steps, as a finite loss with an infinite gradient does."""

    def __init__(self, model: Any, step: str, after: int) -> None:
        self.model, self.step, self.after, self.now = model, step, after, ""

    def begin(self, step: str, text: str) -> None:
        self.now = step

    def update(self, done: int, total: int) -> None:
        if (self.now, done) == (self.step, self.after):
            part = "glad_B" if self.now == "glad" else "router"
            parameter = next(p for name, p in self.model.named_parameters() if part in name)
            parameter.data.fill_(float("nan"))


def test_weights_that_are_not_finite_are_never_a_checkpoint(tmp_path: Path, whole: Path) -> None:
    base = small.base()
    with pytest.raises(TrainingError) as raised:
        train(
            *(base, small.tokenizer(), small.rows(), small.RECIPE, tmp_path),
            **{"model_name": "tiny", "batch_size": 4, "progress": Breaks(base, "glad", 4)},
        )
    assert str(raised.value) == (
        "the weights are no longer finite at step 4; lower the learning rate (earlier checkpoints are kept)"
    )
    assert [path.name for path in (tmp_path / "stages" / "glad.work").glob("checkpoint-*")] == ["checkpoint-2"]
    run(tmp_path)
    assert _same(tmp_path, whole)


def test_fitted_routers_that_are_not_finite_are_not_kept(tmp_path: Path) -> None:
    base = small.base()
    with pytest.raises(TrainingError, match="the routers stage ends in weights that are not finite"):
        train(
            *(base, small.tokenizer(), small.rows(), small.RECIPE, tmp_path),
            **{"model_name": "tiny", "batch_size": 4, "progress": Breaks(base, "routers", 3)},
        )
    assert {path.name for path in (tmp_path / "stages").iterdir()} == STAGES
