"""Rows as tensors: what is masked, where the padding is, and that saving work does not change the loss."""

from __future__ import annotations

import dataclasses

import pytest
import small
import tiny
import torch
from torch.testing import assert_close

from mogu.chat import prompt_ids
from mogu.train.batches import Encoder, PairCollator, RouterCollator, answer_logits, encode_pair, pad
from mogu.train.losses import IGNORED, response_cross_entropy

ROWS = small.rows()
BAD, GOOD = ROWS[0], ROWS[1]
PLAIN = frozenset({"input_ids", "attention_mask", "position_ids"})


def encoder(answer_tokens: int = 32) -> Encoder:
    return Encoder(small.tokenizer(), None, answer_tokens)


def read(batch: dict[str, torch.Tensor], row: int) -> tuple[str, str]:
    """The whole text and the labelled text of one row, without padding."""
    words = small.tokenizer()
    real = batch["input_ids"][row][batch["attention_mask"][row].bool()]
    labels = batch["labels"][row]
    return words.decode(real), words.decode(labels[labels != IGNORED])


# encoding


def test_an_answer_is_closed_if_asked() -> None:
    prompt, answer = encoder()(BAD.instruction, "I cannot help", closed=True)
    assert prompt == prompt_ids(small.tokenizer(), BAD.instruction)
    assert small.tokenizer().decode(answer) == "I cannot help</s>" or answer[-1] == 2
    assert encoder()(BAD.instruction, "I cannot help", closed=False)[1] == answer[:-1]


def test_an_answer_is_cut_with_its_end() -> None:
    prompt, answer = encoder(2)(BAD.instruction, "I cannot help", closed=True)
    assert small.tokenizer().decode(answer) == "I cannot"
    assert prompt == encoder()(BAD.instruction, "", closed=False)[0]


def test_a_published_template_is_used() -> None:
    encode = Encoder(small.tokenizer(), "vicuna", 8)
    assert encode("How do", "I", closed=False)[0] == prompt_ids(small.tokenizer(), "How do", template="vicuna")


def test_only_refusals_are_closed() -> None:
    assert encoder().wanted(BAD)[1][-1] == 2
    assert encoder().wanted(GOOD)[1][-1] != 2
    assert small.tokenizer().decode(encoder().wanted(GOOD)[1]) == GOOD.glad


@pytest.mark.parametrize("refuses", [True, False])
def test_a_begun_answer_stands_behind_the_prompt(refuses: bool) -> None:
    """Together with what is left to unlearn it is the whole answer, and the wanted one stays."""
    said = set()
    for row in ROWS:
        whole = encode_pair(encoder(), row, refuses)
        (prompt, wanted), (other_prompt, unwanted) = encode_pair(encoder(), row, refuses, 1.0)
        assert prompt == other_prompt
        assert wanted == whole[0][1]
        assert prompt + unwanted == whole[1][0] + whole[1][1]
        assert unwanted
        said.add(len(prompt) - len(whole[0][0]))
    assert min(said) > 0
    assert len(said) > 2


def test_a_share_of_the_answers_has_begun() -> None:
    rows = [dataclasses.replace(GOOD, id=str(number)) for number in range(200)]
    whole = encode_pair(encoder(), GOOD, True)
    begun = [row for row in rows if encode_pair(encoder(), row, True, 0.25) != whole]
    assert 30 < len(begun) < 70
    assert all(encode_pair(encoder(), row, True, 0.5) != whole for row in begun)
    assert all(encode_pair(encoder(), row, True, 0.0) == whole for row in rows)


# padding


def test_prompt_and_padding_are_masked_and_padding_is_on_the_left() -> None:
    batch = pad([([5, 6], [7]), ([8, 9, 10], [11, 12, 13])], 0)
    assert batch["input_ids"].tolist() == [[0, 0, 0, 5, 6, 7], [8, 9, 10, 11, 12, 13]]
    assert batch["attention_mask"].tolist() == [[0, 0, 0, 1, 1, 1], [1] * 6]
    assert batch["labels"].tolist() == [[IGNORED] * 5 + [7], [IGNORED] * 3 + [11, 12, 13]]


def test_positions_count_real_tokens_from_zero() -> None:
    batch = pad([([5, 6], [7]), ([8, 9, 10], [11, 12, 13])], 0)
    assert batch["position_ids"][0, 3:].tolist() == [0, 1, 2]
    assert batch["position_ids"][1].tolist() == [0, 1, 2, 3, 4, 5]
    assert batch["position_ids"].min() >= 0


def test_a_real_token_that_equals_the_pad_token_still_counts() -> None:
    batch = pad([([5, 2], [7, 2]), ([8], [9])], 2)
    assert batch["attention_mask"][0].tolist() == [1, 1, 1, 1]
    assert batch["labels"][0].tolist() == [IGNORED, IGNORED, 7, 2]


# collators


@pytest.mark.parametrize("wants_refusal", [True, False])
def test_pairs_have_the_wanted_answers_first(wants_refusal: bool) -> None:
    batch = PairCollator(encoder(), wants_refusal)([BAD, GOOD])
    assert batch["input_ids"].shape[0] == 4
    texts = [read(batch, row) for row in range(4)]
    refusals = [f"{row.unwill} </s>" for row in (BAD, GOOD)]
    helps = [row.glad for row in (BAD, GOOD)]
    expected = [*refusals, *helps] if wants_refusal else [*helps, *refusals]
    assert [label for _, label in texts] == expected
    for (whole, label), row in zip(texts, [BAD, GOOD] * 2, strict=True):
        assert whole == f"<user> {row.instruction} </s> <assistant> {label}"


def test_router_rows_hold_what_is_wanted_and_what_they_are() -> None:
    batch = RouterCollator(encoder())([BAD, GOOD])
    assert batch["malicious"].tolist() == [True, False]
    assert [read(batch, row)[1] for row in (0, 1)] == [f"{BAD.unwill} </s>", GOOD.glad]


# work saved


@pytest.mark.parametrize("model_type", ["llama", "falcon", "gpt2", "gemma2"])
def test_logits_only_where_answers_are_give_the_same_loss(model_type: str) -> None:
    model = small.base(model_type)
    batch = PairCollator(encoder(), True)(ROWS[:5])
    full, labels = answer_logits(model, batch, PLAIN)
    kept, kept_labels = answer_logits(model, batch, PLAIN | {"logits_to_keep"})
    assert kept.shape[1] == kept_labels.shape[1] < full.shape[1] == labels.shape[1]
    assert_close(response_cross_entropy(kept, kept_labels), response_cross_entropy(full, labels))


def test_a_batch_without_a_prompt_keeps_all_logits() -> None:
    batch = pad([([], [5, 6, 7])], 0)
    logits, labels = answer_logits(tiny.base("llama"), batch, PLAIN | {"logits_to_keep"})
    assert logits.shape[1] == labels.shape[1] == 3


@pytest.mark.parametrize("model_type", ["llama", "falcon", "gpt2", "gemma2"])
def test_a_padded_batch_has_the_losses_of_its_rows_alone(model_type: str) -> None:
    model = small.base(model_type)
    collate = RouterCollator(encoder())
    together = response_cross_entropy(*answer_logits(model, collate(ROWS[:4]), PLAIN | {"logits_to_keep"}))
    alone = [response_cross_entropy(*answer_logits(model, collate([row]), PLAIN)) for row in ROWS[:4]]
    assert len({row.instruction.count(" ") for row in ROWS[:4]}) > 1
    assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)
