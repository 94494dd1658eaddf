"""Packed rows: what is in them, who reads whom, and that losses and gradients are those of the answers alone."""

from __future__ import annotations

import itertools
from typing import Any

import oracle
import pytest
import small
import tiny
import torch
from torch.testing import assert_close

from mogu.adapter.model import recorded_weights, set_stage
from mogu.data.rows import Row
from mogu.train import packing
from mogu.train.batches import Encoder, PairCollator, RouterCollator
from mogu.train.losses import IGNORED, log_ratio_loss, ratio_loss
from mogu.train.packing import (
    PackedCollator,
    PackedRouterCollator,
    lines_with,
    of_texts,
    pack,
    packed_if_alike,
    pair_cross_entropy,
    predicted,
    segment_mask,
)
from mogu.train.trainers import forward_parameters

ROWS = [row for row in small.rows() if row.split == "train"]
WIDE = {"sliding_window": 64}
"""Beyond all rows; tests/tiny.py gives the models with a window one of 6 tokens."""
WINDOWED = ("gemma2", "gemma3_text", "mistral")
LOSSES = {
    "ratio": lambda wanted, unwanted: ratio_loss(wanted, unwanted),
    "log_ratio": lambda wanted, unwanted: log_ratio_loss(wanted, unwanted, 0.05, 100.0),
}

each_architecture = pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)


def encoder(answer_tokens: int = 12) -> Encoder:
    return Encoder(small.tokenizer(), None, answer_tokens)


def adapted(architecture: str, attention: str | None = None, **changes: Any) -> Any:
    """A base with a strong unwilling responder, and windows wider than all rows unless ``changes`` say otherwise."""
    if architecture in WINDOWED:
        changes = {**WIDE, **changes}
    base = small.base(architecture, **changes)
    if attention is not None:
        base.set_attn_implementation(attention)
    model = tiny.adapted(base, strength=0.3)
    set_stage(model, "unwill")
    return model


def alone(model: Any, encode: Encoder, row: Row) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of the refusal and of the helpful answer, each in a forward of its own, without padding."""
    found = []
    for answer, closed in ((row.unwill, True), (row.glad, False)):
        prompt, response = encode(row.instruction, answer, closed=closed)
        ids = torch.tensor([prompt + response])
        found.append(oracle.cross_entropy(model(input_ids=ids).logits[0], ids[0], len(prompt), ids.shape[1]))
    return found[0], found[1]


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


# rows


def test_a_line_is_the_shared_beginning_then_prompts_then_answers_each_behind_its_last_token() -> None:
    batch = pack([(([5, 6, 7], [8, 9]), ([5, 6, 7], [10, 11, 12])), (([5, 3, 4], [8]), ([5, 3, 4], [9]))], 0)
    assert batch["input_ids"].tolist() == [[5, 6, 3, 7, 8, 7, 10, 11, 4, 4]]
    assert batch["position_ids"].tolist() == [[0, 1, 1, 2, 3, 2, 3, 4, 2, 2]]
    assert batch["segments"].tolist() == [[1, 2, 5, 3, 3, 4, 4, 4, 6, 7]]
    assert batch["prompts"].tolist() == [[1, 2, 5, 2, 2, 2, 2, 2, 5, 5]]
    assert batch["targets"].tolist() == [[IGNORED] * 3 + [8, 9, 10, 11, 12, 8, 9]]
    assert batch["answers"].tolist() == [[-1, -1, -1, 0, 0, 1, 1, 1, 2, 3]]
    assert batch["line"].tolist() == [0, 0]
    assert batch["columns"].tolist() == [[0, 1, 3, 4, 5, 6, 7], [0, 2, 8, 9, -1, -1, -1]]


def test_several_lines_hold_like_numbers_of_columns_padded_on_the_left() -> None:
    """Columns after the beginning: 6, 2 and 3, in lines of about five."""
    pairs = [
        (([5, 6, 7], [8, 9]), ([5, 6, 7], [10, 11, 12])),
        (([5, 4], [8]), ([5, 4], [9])),
        (([5, 3], [1]), ([5, 3], [2, 2])),
    ]
    batch = pack(pairs, 0, line_tokens=7)
    assert batch["line"].tolist() == [0, 1, 1]
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 7, 10, 11], [0, 5, 3, 3, 2, 4, 4]]
    assert batch["answers"].tolist() == [[-1, -1, 0, 0, 1, 1, 1], [-1, -1, 4, 5, 5, 2, 3]]
    assert batch["segments"].tolist()[1] == [0, 1, 3, 4, 4, 6, 7]
    assert batch["columns"].tolist() == [[0, 1, 2, 3, 4, 5, 6], [1, 5, 6, -1, -1, -1, -1], [1, 2, 3, 4, -1, -1, -1]]


def test_a_prompt_of_one_token_and_an_empty_answer() -> None:
    batch = pack([(([5], [6, 7]), ([5], []))], 0)
    assert batch["input_ids"].tolist() == [[5, 6]]
    assert batch["answers"].tolist() == [[0, 0]]
    assert batch["targets"].tolist() == [[6, 7]]


@pytest.mark.parametrize("wants_refusal", [True, False])
def test_the_wanted_answer_comes_first_and_answers_are_cut(wants_refusal: bool) -> None:
    collate = PackedCollator(encoder(3), wants_refusal)
    row = ROWS[0]
    batch = collate([row])
    refusal, glad = (
        encoder(3)(row.instruction, row.unwill, closed=True)[1],
        encoder(3)(row.instruction, row.glad, closed=False)[1],
    )
    wanted, unwanted = (refusal, glad) if wants_refusal else (glad, refusal)
    assert len(refusal) == len(glad) == 3
    assert batch["targets"][batch["answers"] == 0].tolist() == wanted
    assert batch["targets"][batch["answers"] == 1].tolist() == unwanted
    assert batch["input_ids"].shape[1] == collate.length(row)


def test_kinds_lie_apart_and_whole_answers_have_a_column_for_every_token() -> None:
    texts = [(([5, 6], [7, 8]),), (([5, 4], [3]),), (([5, 2], [1]),)]
    batch = pack(texts, 0, line_tokens=6, kinds=[True, False, True], whole=True)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 2, 1], [0, 0, 0, 5, 4, 3]]
    assert batch["targets"].tolist() == [
        [IGNORED, 7, 8, IGNORED, 1, IGNORED],
        [IGNORED, IGNORED, IGNORED, IGNORED, 3, IGNORED],
    ]
    assert batch["answers"].tolist() == [[-1, 0, 0, -1, 2, -1], [-1, -1, -1, -1, 1, -1]]
    assert batch["segments"].tolist() == [[1, 3, 3, 3, 5, 5], [0, 0, 0, 1, 3, 3]]
    assert batch["line"].tolist() == [0, 1, 0]
    assert batch["columns"].tolist() == [[0, 1, 2, 3], [3, 4, 5, -1], [0, 4, 5, -1]]


def test_kinds_lie_in_one_line_where_it_holds_all() -> None:
    texts = [(([5, 6], [7, 8]),), (([5, 4], [3]),), (([5, 2], [1]),)]
    apart, together = (pack(texts, 0, line_tokens=n, kinds=[True, False, True], whole=True) for n in (7, 8))
    assert apart["line"].tolist() == [0, 1, 0]
    assert together["input_ids"].tolist() == [[5, 6, 7, 8, 4, 3, 2, 1]]
    assert together["line"].tolist() == [0, 0, 0]


def test_lengths_are_those_of_unpadded_batches() -> None:
    for collate in (
        PackedCollator(encoder(), True),
        PairCollator(encoder(), True),
        RouterCollator(encoder()),
        PackedRouterCollator(encoder()),
    ):
        assert [collate.length(row) for row in ROWS[:6]] == [collate([row])["input_ids"].shape[1] for row in ROWS[:6]]


# masks


def test_columns_read_the_beginning_their_prompt_and_their_own_answer_up_to_themselves() -> None:
    segments, prompts = [0, 0, 1, 1, 2, 2, 5, 3, 3, 4, 6, 7], [0, 0, 1, 1, 2, 2, 5, 2, 2, 2, 5, 5]
    mask = segment_mask(torch.tensor([segments]), torch.tensor([prompts]))
    assert mask.shape == (1, 1, 12, 12)
    assert mask.dtype == torch.bool
    for reader, read in itertools.product(range(12), repeat=2):
        known = {1, segments[reader], {3: 2, 4: 2, 6: 5, 7: 5}.get(segments[reader])}
        expected = reader == read or (read < reader and segments[read] != 0 and segments[read] in known)
        assert mask[0, 0, reader, read].item() == expected, (reader, read)


def test_texts_without_prompts_of_their_own_read_the_beginning_and_themselves() -> None:
    mask = segment_mask(torch.tensor([[1, 2, 2, 3]]))[0, 0]
    assert mask.tolist() == [
        [True] + [False] * 3,
        [True] * 2 + [False] * 2,
        [True] * 3 + [False],
        [True, False, False, True],
    ]


# losses


@pytest.mark.parametrize("line_tokens", [packing.LINE_TOKENS, 120])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@each_architecture
def test_losses_are_those_of_every_answer_alone(
    architecture: str, attention: str, line_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of unequal lengths, all in one line or in several."""
    monkeypatch.setattr(packing.pack, "__defaults__", (line_tokens,))
    model, collate = adapted(architecture, attention), PackedCollator(encoder(), True)
    rows = ROWS[:5]
    assert len({collate.length(row) for row in rows}) > 2
    batch = collate(rows)
    assert (len(batch["input_ids"]) == 1) == (line_tokens == packing.LINE_TOKENS)
    found = pair_cross_entropy(model, batch, forward_parameters(model))
    expected = [torch.stack(each) for each in zip(*(alone(model, encoder(), row) for row in rows), strict=True)]
    for one, other in zip(found, expected, strict=True):
        assert one.shape == (5,)
        assert_close(one, other, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("loss", LOSSES)
@each_architecture
def test_gradients_are_those_of_every_answer_alone_and_of_two_rows_for_each_pair(architecture: str, loss: str) -> None:
    """Answers cut at four tokens."""
    model, encode = adapted(architecture), encoder(4)
    rows, accepts = ROWS[2:6], forward_parameters(model)
    each = [LOSSES[loss](*(one.unsqueeze(0) for one in alone(model, encode, row))) for row in rows]
    expected = gradients(model, torch.stack(each).mean())
    for collate in (PackedCollator(encode, True), PairCollator(encode, True)):
        found = gradients(model, LOSSES[loss](*pair_cross_entropy(model, collate(rows), accepts)))
        assert max(g.abs().max() for g in expected.values()) > 1e-2
        for name, gradient in expected.items():
            assert_close(found[name], gradient, atol=2e-5, rtol=2e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_without_logits_to_keep_the_losses_are_the_same() -> None:
    model, batch = adapted("llama"), PackedCollator(encoder(), True)(ROWS[:4])
    accepts = forward_parameters(model)
    some, every = (pair_cross_entropy(model, batch, names) for names in (accepts, accepts - {"logits_to_keep"}))
    assert_close(some, every)


def test_the_vocabulary_is_projected_only_where_answers_are() -> None:
    model, batch = adapted("llama"), PackedCollator(encoder(), True)(ROWS[:4])
    widths = []
    model.get_output_embeddings().register_forward_hook(lambda module, args, out: widths.append(out.shape[1]))
    pair_cross_entropy(model, batch, forward_parameters(model))
    assert widths == [int((batch["answers"] >= 0).sum(dim=1).max())]


# rows for the routers


@each_architecture
def test_what_routers_learn_from_is_that_of_every_row_alone(architecture: str) -> None:
    """Cross-entropies and router weights, of tokens that rows share too."""
    model, encode, rows = adapted(architecture), encoder(), ROWS[:5]
    set_stage(model, "routed")
    assert {row.label for row in rows} == {"benign", "malicious"}
    found = []
    for collate in (PackedRouterCollator(encode), RouterCollator(encode)):
        batch = collate(rows)
        with recorded_weights(model) as weights:
            losses = predicted(model, batch, forward_parameters(model)).cross_entropy()
            texts, there = of_texts(weights()[0], batch)
        each = [texts[:, row][:, there[row]] for row in range(len(rows))]
        found.append((losses, each))
    for row, (one, other) in zip(rows, zip(found[0][1], found[1][1], strict=True), strict=True):
        prompt, answer = encode.wanted(row)
        assert one.shape[1] == len(prompt) + len(answer)
        assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert_close(found[0][0], found[1][0], atol=1e-5, rtol=1e-5)


def test_lines_that_hold_some_rows_are_a_batch_of_their_own() -> None:
    model = adapted("llama")
    set_stage(model, "routed")
    texts = [(([5, 6, n], [7, 8, n]),) for n in range(9, 14)]
    batch = pack(texts, 0, line_tokens=10, kinds=[1, 0, 1, 0, 1], whole=True)
    assert batch["line"].tolist() == [0, 2, 1, 2, 0]
    part, held = lines_with(batch, torch.tensor([4, 1]))
    assert held.tolist() == [True, True, False, True, True]
    assert part["line"].tolist() == [0, 1, 1, 0]
    whole, some = (predicted(model, each, forward_parameters(model)) for each in (batch, part))
    mine = held[whole.answers]
    assert whole.targets[mine].tolist() == some.targets.tolist()
    assert_close(whole.logits[mine], some.logits, atol=1e-5, rtol=1e-5)


# whether to pack


def chosen(model: Any) -> type:
    accepts, collators = forward_parameters(model), (PairCollator(encoder(), True), PackedCollator(encoder(), True))

    def losses(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat(pair_cross_entropy(model, batch, accepts))

    return type(packed_if_alike(model, *collators, ROWS, losses, accepts))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@each_architecture
def test_the_ten_architectures_are_packed(architecture: str, attention: str) -> None:
    assert chosen(adapted(architecture, attention)) is PackedCollator


@pytest.mark.parametrize("architecture", ["bloom", "mpt"])
def test_models_without_positions_are_not(architecture: str) -> None:
    assert chosen(adapted(architecture)) is PairCollator


def test_a_model_that_fails_with_such_a_mask_is_not() -> None:
    """Falcon with ALiBi takes positions, but counts them from a mask of two dimensions."""
    assert chosen(adapted("falcon", alibi=True)) is PairCollator


@pytest.mark.parametrize("architecture", WINDOWED)
def test_rows_beyond_a_sliding_window_are_not(architecture: str) -> None:
    assert chosen(adapted(architecture, sliding_window=6)) is PairCollator


def test_attention_that_reads_no_mask_of_ours_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted("llama")
    monkeypatch.setattr(packing, "_attention", lambda model: "flash_attention_2")
    assert chosen(model) is PairCollator


def test_a_model_that_computes_something_else_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by trial: here every column reads all before it."""
    model = adapted("llama")
    real = packing.segment_mask
    monkeypatch.setattr(packing, "segment_mask", lambda segments, prompts: real(segments.clamp(max=1)))
    assert chosen(model) is PairCollator


def test_running_out_of_memory_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(packing, "segment_mask", full)
    with pytest.raises(torch.OutOfMemoryError):
        chosen(adapted("llama"))


def test_trying_leaves_the_model_and_chance_as_they_were() -> None:
    model = adapted("llama").train()
    before = torch.get_rng_state()
    chosen(model)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in model.parameters())


def test_in_half_precision_rounding_is_no_difference() -> None:
    model = adapted("llama").to(torch.bfloat16)
    assert chosen(model) is PackedCollator
