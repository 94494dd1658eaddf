"""Rows that come again skip the layers below the first routed one."""

from __future__ import annotations

import dataclasses
import errno
from pathlib import Path
from typing import Any

import pytest
import small
import tiny
import torch
from torch.testing import assert_close

from mogu.adapter.model import decoder_layers, set_stage
from mogu.errors import AdapterError, TrainingError
from mogu.recipe import BackboneRecipe
from mogu.train import lower
from mogu.train.batches import Encoder, PairCollator
from mogu.train.lower import ENTRIES, LowerStates, Numbered, lower_states
from mogu.train.packing import PackedCollator, pair_cross_entropy
from mogu.train.run import train
from mogu.train.trainers import forward_parameters

ROWS = [row for row in small.rows() if row.split == "train" and not row.borderline]


def model_of(architecture: str, first: int = 1, **changes: Any) -> Any:
    model = tiny.adapted(
        small.base(architecture, **changes), layers_to_transform=list(range(first, tiny.LAYERS)), router="folded"
    )
    set_stage(model, "glad")
    return model.train()


def collator(packed: bool) -> Any:
    kind = PackedCollator if packed else PairCollator
    return kind(Encoder(small.tokenizer(), None, 8), wants_refusal=False)


def losses(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat(pair_cross_entropy(model, batch, forward_parameters(model)))


def cache(model: Any, packed: bool, folder: Path) -> tuple[LowerStates | None, Numbered]:
    collate = collator(packed)
    numbered = Numbered(collate, {row.id: number for number, row in enumerate(ROWS)})
    return lower_states(model, collate, ROWS, folder / "lower.states", lambda b: losses(model, b)), numbered


class Calls:
    """Counts what the layers compute."""

    def __init__(self, model: Any) -> None:
        self.seen: list[int] = []
        for index, layer in enumerate(decoder_layers(model)):
            for part in layer.children():
                part.register_forward_hook(lambda *_, index=index: self.seen.append(index))

    def taken(self) -> set[int]:
        seen, self.seen = set(self.seen), []
        return seen


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_losses_and_gradients_are_those_of_the_whole_model(architecture: str, packed: bool, tmp_path: Path) -> None:
    model = model_of(
        architecture,
        first=2,
        **({"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0} if architecture == "gpt2" else {}),
    )
    kept, numbered = cache(model, packed, tmp_path)
    assert kept is not None
    calls = Calls(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for rows in (ROWS[:3], ROWS[3:8], ROWS[8:]):
        with kept(batch := numbered(rows)):
            losses(model, batch)
    assert calls.taken() == {0, 1, 2}
    for rows in (ROWS[2:6], ROWS[7:10], ROWS[1:2]):  # with others than before, so with other padding
        batch = numbered(rows)
        whole = losses(model, batch)
        expected = torch.autograd.grad(whole.sum(), parameters)
        calls.taken()
        with kept(batch):
            short = losses(model, batch)
        assert calls.taken() == {2}
        assert_close(short, whole, atol=1e-5, rtol=1e-5)
        for one, other in zip(torch.autograd.grad(short.sum(), parameters), expected, strict=True):
            assert_close(one, other, atol=1e-5, rtol=1e-4)
    with kept(numbered(ROWS[:1])):
        pass
    losses(model, numbered(ROWS[:1]))
    assert calls.taken() == {0, 1, 2}  # nothing is skipped outside


def test_every_line_of_a_row_has_an_entry_of_its_own() -> None:
    numbered = Numbered(collator(False), {row.id: number for number, row in enumerate(ROWS)})
    batch = numbered([ROWS[3], ROWS[0]])
    assert batch[ENTRIES].tolist() == [3, 0, 3 + len(ROWS), len(ROWS)]
    assert batch["line"].tolist() == [0, 1, 2, 3]
    for mask, columns in zip(batch["attention_mask"], batch["columns"], strict=True):
        assert columns[columns >= 0].tolist() == mask.nonzero().flatten().tolist()


def test_a_beginning_that_texts_share_belongs_to_all_of_them(tmp_path: Path) -> None:
    """Pairs first seen together, then in other company: what they shared is there for each."""
    model = model_of("llama")
    kept, numbered = cache(model, True, tmp_path)
    assert kept is not None
    with kept(batch := numbered(ROWS[:4])):
        losses(model, batch)
    assert (batch["columns"][:, 0] == 0).all()
    for rows in ([ROWS[3]], [ROWS[2], ROWS[1]]):
        whole = losses(model, batch := numbered(rows))
        with kept(batch):
            assert_close(losses(model, batch), whole, atol=1e-5, rtol=1e-5)


def test_a_base_with_dropout_of_its_own_is_not_kept(tmp_path: Path) -> None:
    assert cache(model_of("gpt2", resid_pdrop=0.1), True, tmp_path)[0] is None
    assert not list(tmp_path.iterdir())


def test_without_layers_below_there_is_nothing_to_keep(tmp_path: Path) -> None:
    assert cache(model_of("llama", first=0), True, tmp_path)[0] is None


def test_a_model_that_computes_something_else_without_its_lower_layers_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("llama")
    real = lower.skipped
    monkeypatch.setattr(lower, "skipped", lambda below, hidden, outputs: real(below, hidden * 1.5, outputs))
    assert cache(model, True, tmp_path)[0] is None


def test_states_that_a_killed_run_wrote_are_found_again(tmp_path: Path) -> None:
    model = model_of("llama")
    kept, numbered = cache(model, True, tmp_path)
    assert kept is not None
    with kept(batch := numbered(ROWS[:2])):
        losses(model, batch)
    again, _ = cache(model, True, tmp_path)
    assert again is not None
    assert again.known.nonzero().flatten().tolist() == [0, 1]
    calls = Calls(model)
    with again(batch):
        losses(model, batch)
    assert calls.taken() == {1, 2}


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lower, "reserve", full)
    recipe = dataclasses.replace(small.RECIPE, adapter=dataclasses.replace(small.RECIPE.adapter, layers_from=0.5))
    with pytest.raises(TrainingError, match="No space left"):
        train(small.base(), small.tokenizer(), small.rows(), recipe, tmp_path, model_name="tiny", batch_size=4)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lines of each forward that skipped the lower layers."""
    found: list[int] = []
    real = lower.skipped

    def counted(below: Any, hidden: torch.Tensor, outputs: Any) -> Any:
        found.append(len(hidden))
        return real(below, hidden, outputs)

    monkeypatch.setattr(lower, "skipped", counted)
    return found


@pytest.mark.parametrize("kept", [True, False])
def test_a_run_computes_the_lower_layers_once_for_each_row(kept: bool, tmp_path: Path, served: list[int]) -> None:
    recipe = dataclasses.replace(
        small.RECIPE,
        adapter=dataclasses.replace(small.RECIPE.adapter, layers_from=0.5, dropout=0.0),
        compute=dataclasses.replace(small.RECIPE.compute, keep_lower=kept),
        routers=dataclasses.replace(small.RANDOM.routers, start="fit", epochs=2, rows=8, batch_size=1, accumulation=2),
    )
    train(small.base(), small.tokenizer(), small.rows(), recipe, tmp_path, model_name="tiny", batch_size=4)
    # lines: in each stage a trial of two rows, and one more epoch: 6 pairs, two to a line, for each responder, 8 rows
    # one at a time for the routers
    assert sum(served) == (1 + 1 + 1 + 3 + 3 + 8 if kept else 0)
    assert not list(tmp_path.rglob("lower.states*"))


@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_in_a_single_epoch_the_base_skips_what_the_routed_model_has_computed(
    weight: float, tmp_path: Path, served: list[int]
) -> None:
    once = {name: dataclasses.replace(getattr(small.RECIPE, name), epochs=1) for name in ("glad", "unwill")}
    recipe = dataclasses.replace(
        small.RECIPE,
        adapter=dataclasses.replace(small.RECIPE.adapter, layers_from=0.5, dropout=0.0),
        routers=dataclasses.replace(small.RANDOM.routers, start="fit", epochs=1, rows=8, batch_size=4, accumulation=1),
        backbone=BackboneRecipe(modules=("q",), anchor_weight=weight),
        **once,
    )
    train(small.base(), small.tokenizer(), small.rows(), recipe, tmp_path, model_name="tiny", batch_size=4)
    assert sum(served) == (1 + 2 if weight else 0)  # a trial; a line in each of two steps


def test_decoder_layers_are_those_of_the_base() -> None:
    model = model_of("gpt2")
    assert decoder_layers(model) == list(model.get_base_model().transformer.h)
    with pytest.raises(AdapterError, match="no active MoGU adapter"):
        decoder_layers(small.base())
