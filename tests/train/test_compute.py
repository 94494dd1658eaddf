"""How a step is computed: order and size of its batches, and the options of the recipe's ``compute``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import small
import tiny
import torch
from torch.testing import assert_close

from mogu.adapter.model import set_stage
from mogu.data.rows import Row
from mogu.errors import TrainingError
from mogu.recipe import ComputeRecipe, ResponderRecipe, RouterRecipe
from mogu.train import trainers
from mogu.train.batches import Encoder, RouterCollator
from mogu.train.packing import PackedCollator
from mogu.train.trainers import ResponderTrainer, RouterTrainer, RowDataset, StepSampler, training_arguments

ROWS = [row for row in small.rows() if row.split == "train"][:16]
ENCODE = Encoder(small.tokenizer(), None, 12)


class Recording:
    """A collator that remembers its batches."""

    def __init__(self, collate: Any) -> None:
        self.collate = collate
        self.batches: list[list[str]] = []

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        self.batches.append([row.id for row in rows])
        return self.collate(rows)


def adapted(stage: str = "glad", **settings: Any) -> Any:
    model = tiny.adapted(small.base(), strength=0.3, **settings)
    set_stage(model, stage)  # type: ignore[arg-type]
    return model


def trainer(folder: Path, model: Any, stage: str = "glad", rows: Sequence[Row] = ROWS, **settings: Any) -> Any:
    """Two steps of 8 rows; ``settings`` are of training_arguments."""
    collate = RouterCollator(ENCODE) if stage == "routed" else PackedCollator(ENCODE, stage == "unwill")
    arguments = {
        **{"learning_rate": 3e-3, "batch_size": 8, "accumulation": 1, "epochs": 1, "max_steps": -1},
        **{"save_steps": 1, "seed": 5, "quiet": True, "use_cpu": True, **settings},
    }
    return (RouterTrainer if stage == "routed" else ResponderTrainer)(
        model=model,
        recipe=RouterRecipe() if stage == "routed" else ResponderRecipe(),
        args=training_arguments(folder, **arguments),
        train_dataset=RowDataset(rows, collate.length),
        data_collator=Recording(collate),
    )


def trained(folder: Path, stage: str = "glad", model: Any = None, **settings: Any) -> dict[str, torch.Tensor]:
    """What two steps make of the same adapter."""
    model = model or adapted(stage)
    trainer(folder, model, stage, **settings).train()
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def assert_near(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 2e-5) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_close(found[name], tensor, atol=tolerance, rtol=tolerance)


# order


def test_an_epoch_holds_every_row_once_sorted_inside_each_step() -> None:
    lengths = [7, 3, 9, 3, 5, 8, 1, 2, 6, 4, 4]
    order = list(StepSampler(lengths, 4, seed=1))
    assert sorted(order) == list(range(11))
    for start in (0, 4, 8):
        step = [lengths[index] for index in order[start : start + 4]]
        assert step == sorted(step, reverse=True)
    assert len(StepSampler(lengths, 4, seed=1)) == 11


def test_which_rows_share_a_step_does_not_depend_on_their_lengths() -> None:
    def steps(lengths: Sequence[int]) -> list[set[int]]:
        order = list(StepSampler(lengths, 4, seed=1))
        return [set(order[start : start + 4]) for start in range(0, 12, 4)]

    assert steps(range(12)) == steps([1] * 12)


def test_order_comes_from_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = StepSampler([1] * 30, 4, seed)
        sampler.set_epoch(epoch)
        torch.rand(seed + epoch + 1)
        return list(sampler)

    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(seed, epoch)) for seed, epoch in ((1, 0), (1, 1), (2, 5), (9, 9))}) == 4


def test_every_epoch_has_another_order_and_an_interrupted_one_goes_on_in_its_own(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"batch_size": 2, "accumulation": 2, "epochs": 3}
    whole = trainer(tmp_path / "whole", adapted(), **settings)
    whole.train()
    seen = whole.data_collator.batches
    assert len({tuple(name for batch in seen[at : at + 8] for name in batch) for at in (0, 8, 16)}) == 3
    broken = trainer(tmp_path / "broken", adapted(), **{**settings, "max_steps": 6})
    broken.train()
    on = trainer(tmp_path / "broken", adapted(), **settings)
    on.train(resume_from_checkpoint=str(tmp_path / "broken" / "checkpoint-6"))
    assert broken.data_collator.batches[:12] == seen[:12]  # the next one is read ahead
    assert on.data_collator.batches == seen[12:]


# micro-batches


@pytest.mark.parametrize("stage", ["glad", "unwill", "routed"])
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_a_step_in_parts_is_the_step_in_one(tmp_path: Path, stage: str, batch_size: int) -> None:
    whole = trained(tmp_path / "whole", stage)
    parts = trained(tmp_path / "parts", stage, batch_size=batch_size, accumulation=8 // batch_size)
    assert_near(parts, whole)
    before = dict(adapted(stage).named_parameters())
    assert max((whole[name] - before[name]).abs().max() for name in whole) > 1e-3


# options


@pytest.mark.parametrize("stage", ["glad", "routed"])
def test_gradient_checkpointing_changes_nothing_and_is_off_afterwards(tmp_path: Path, stage: str) -> None:
    plain = trained(tmp_path / "plain", stage)
    model = adapted(stage)
    saved = trained(tmp_path / "saved", stage, model, compute=ComputeRecipe(gradient_checkpointing=True))
    assert_near(saved, plain)
    assert not model.is_gradient_checkpointing


@pytest.mark.parametrize("checkpointing", [False, True])
def test_no_graph_is_kept_below_the_lowest_layer_that_is_trained(tmp_path: Path, checkpointing: bool) -> None:
    model = adapted(layers_to_transform=[1, 2])
    needs: dict[int, bool] = {}
    for index, layer in enumerate(model.get_base_model().model.layers):
        layer.register_forward_hook(lambda module, args, out, index=index: needs.update({index: out.requires_grad}))
    compute = ComputeRecipe(gradient_checkpointing=checkpointing)
    trainer(tmp_path, model, compute=compute).train()
    assert needs == {0: False, 1: True, 2: True}


@pytest.mark.parametrize("stage", ["glad", "routed"])
def test_bf16_is_near_and_only_while_training(tmp_path: Path, stage: str) -> None:
    plain, model = trained(tmp_path / "plain", stage), adapted(stage)
    seen = set()
    model.get_base_model().model.layers[0].mlp.register_forward_hook(lambda module, args, out: seen.add(out.dtype))
    rough = trained(tmp_path / "rough", stage, model, compute=ComputeRecipe(bf16=True))
    assert seen == {torch.bfloat16}
    assert {tensor.dtype for tensor in rough.values()} == {torch.float32}
    assert_near(rough, plain, 2e-2)
    assert any(not torch.equal(rough[name], plain[name]) for name in plain)
    seen.clear()
    model(input_ids=torch.tensor([[5, 6]]))
    assert seen == {torch.float32}


@pytest.mark.parametrize("stage", ["glad", "routed"])
def test_compiled_training_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    """With dynamo's capture only, not inductor's code, which needs a compiler and minutes."""
    real = trainers.TrainingArguments
    called = []

    def captured(*args: Any, torch_compile: bool, **kwargs: Any) -> Any:
        called.append(torch_compile)
        return real(*args, torch_compile_backend="eager" if torch_compile else None, **kwargs)

    monkeypatch.setattr(trainers, "TrainingArguments", captured)
    monkeypatch.setattr(trainers.shutil, "which", lambda name: name)
    plain = trained(tmp_path / "plain", stage, max_steps=1)
    compiled = trained(tmp_path / "compiled", stage, max_steps=1, compute=ComputeRecipe(torch_compile=True))
    assert called == [False, True]
    assert_near(compiled, plain)


def test_what_the_machine_cannot_do_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainers.shutil, "which", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    for compute, use_cpu, expected in (
        (ComputeRecipe(torch_compile=True), True, r"compute\.torch_compile needs a C\+\+ compiler on a CPU"),
        (ComputeRecipe(bf16=True), False, r"this GPU cannot compute in bfloat16; set compute\.bf16 to false"),
    ):
        with pytest.raises(TrainingError, match=expected) as raised:
            trainer(tmp_path, adapted(), compute=compute, use_cpu=use_cpu)
        assert "\n" not in str(raised.value)


def test_the_defaults_save_work_and_leave_the_rest_off() -> None:
    assert dataclasses.asdict(ComputeRecipe()) == {
        "pack": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "torch_compile": False,
        "keep_lower": True,
    }
