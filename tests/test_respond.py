"""Answers in batches, and the batch size that is good for a machine."""

from __future__ import annotations

import pytest
import small
import torch

from mogu import respond as module
from mogu.respond import as_text, good_batch_size, respond, response_ids

PROMPTS = ["How do I paint a boat?", "Name a colour.", "How do I paint a very old wooden boat in the rain?"]


def test_answers_come_in_the_order_of_the_prompts_whatever_the_batches() -> None:
    model, tokenizer = small.base(), small.tokenizer()
    alone = [respond(model, tokenizer, [prompt], max_new_tokens=5)[0] for prompt in PROMPTS]
    assert len(set(alone)) > 1
    for size in (1, 2, 3):
        told: dict[int, str] = {}
        answers = respond(model, tokenizer, PROMPTS, max_new_tokens=5, batch_size=size, on_done=told.__setitem__)
        assert answers == alone
        assert told == dict(enumerate(alone))
    ids = dict(response_ids(model, tokenizer, PROMPTS, max_new_tokens=5))
    assert [as_text(tokenizer, ids[index]) for index in range(3)] == alone
    assert all(new.shape == (5,) and new.dtype == torch.int64 for new in ids.values())


class Machine:
    """Takes so many seconds for a batch of a size; more rows than ``memory`` do not fit."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float], memory: int = 10**9) -> None:
        self.now, self.seconds, self.memory, self.asked = 0.0, seconds, memory, []
        monkeypatch.setattr(module.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(module, "respond", self.respond)

    def respond(self, model: object, tokenizer: object, sample: list[str], batch_size: int, **_: object) -> None:
        self.asked.append(len(sample))
        assert len(sample) == batch_size
        if batch_size > self.memory:
            raise torch.OutOfMemoryError
        warm_up = 5.0 if len(self.asked) == 1 else 0.0
        self.now += self.seconds[batch_size] + warm_up

    def choose(self) -> int:
        return good_batch_size(small.base(), small.tokenizer(), PROMPTS, sizes=(8, 16, 32))


def test_the_smallest_size_that_is_nearly_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Machine(monkeypatch, {8: 1.0, 16: 1.0, 32: 1.9}).choose() == 16
    assert Machine(monkeypatch, {8: 1.0, 16: 1.95, 32: 3.9}).choose() == 8
    assert Machine(monkeypatch, {8: 1.0, 16: 2.1, 32: 2.0}).choose() == 32  # one slow trial between does not end it


def test_what_does_not_fit_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Machine(monkeypatch, {8: 1.0, 16: 1.0, 32: 1.0}, memory=16).choose() == 16
    assert Machine(monkeypatch, {}, memory=4).choose() == 8
