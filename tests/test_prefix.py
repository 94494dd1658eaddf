"""What all prompts begin with, read once: the same answers."""

from __future__ import annotations

from typing import Any

import pytest
import small
import tiny
import torch
from transformers import DynamicCache

from mogu import prefix as module
from mogu import respond as responding
from mogu.adapter.model import set_stage
from mogu.chat import prompt_ids
from mogu.prefix import can_hold, fits, pad_after, shares, template_prefix
from mogu.respond import respond

SYSTEM = "<system> you are a very kind and helpful machine that answers all there is </s> "
PROMPTS = [row.instruction for row in small.rows()][:10]


def tokenizer() -> Any:
    made = small.tokenizer()
    made.chat_template = SYSTEM + small.CHAT
    return made


def answers(model: Any, monkeypatch: pytest.MonkeyPatch, *, shared: bool, **options: Any) -> list[str]:
    with monkeypatch.context() as patch:
        if not shared:
            patch.setattr(responding, "shares", lambda *_: False)
        return respond(model, tokenizer(), PROMPTS, max_new_tokens=8, batch_size=4, **options)


class Forwards:
    """Columns of every forward of the decoder."""

    def __init__(self, model: Any) -> None:
        self.shapes: list[tuple[int, ...]] = []
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        inner.base_model.register_forward_pre_hook(self._keep, with_kwargs=True)

    def _keep(self, module: Any, args: Any, kwargs: Any) -> None:
        self.shapes.append(tuple((args[0] if args else kwargs["input_ids"]).shape))


PLAIN = ["llama", "falcon", "gpt_neox", "qwen2", "qwen3", "phi", "gpt2"]


@pytest.mark.parametrize("architecture", PLAIN)
def test_a_base_answers_the_same_and_reads_the_prefix_once_a_batch(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small.base(architecture)
    expected = answers(model, monkeypatch, shared=False)
    forwards = Forwards(model)
    assert answers(model, monkeypatch, shared=True) == expected
    length = len(template_prefix(tokenizer(), None))
    assert length >= module.WORTHWHILE
    assert sum(shape == (1, length) for shape in forwards.shapes) == 1 + 3  # the trial, and three batches
    assert all(rows == 1 or columns < length for rows, columns in forwards.shapes[3:])


@pytest.mark.parametrize("stage", ["routed", "glad"])
@pytest.mark.parametrize("architecture", PLAIN)
def test_a_mogu_model_answers_the_same(architecture: str, stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.adapted(small.base(architecture), routed_tokens=3)
    set_stage(model, stage)
    expected = answers(model, monkeypatch, shared=False)
    assert len(set(expected)) > 1
    forwards = Forwards(model)
    assert answers(model, monkeypatch, shared=True) == expected
    length = len(template_prefix(tokenizer(), None))
    twice = 2 if stage == "routed" else 1  # by the head, and by the tail
    assert sum(shape == (1, length) for shape in forwards.shapes) == 1 + 3 * twice


@pytest.mark.parametrize("routed_tokens", [0, 1, 8])
def test_whatever_is_routed(routed_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.adapted(small.base(), routed_tokens=routed_tokens)
    expected = answers(model, monkeypatch, shared=False)
    assert answers(model, monkeypatch, shared=True) == expected


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3_text", "mistral"])
def test_a_cache_with_a_window_is_left_alone(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small.base(architecture)
    expected = answers(model, monkeypatch, shared=False)
    forwards = Forwards(model)
    assert answers(model, monkeypatch, shared=True) == expected
    assert all(rows > 1 for rows, _ in forwards.shapes)
    assert not can_hold(DynamicCache(config=model.config))


def test_a_static_cache_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.adapted(small.base(), routed_tokens=3)
    options = {"cache_implementation": "static"}
    expected = answers(model, monkeypatch, shared=False, **options)
    assert answers(model, monkeypatch, shared=True, **options) == expected


def test_a_model_that_says_something_else_after_it_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small.base()
    ids = [prompt_ids(tokenizer(), prompt) for prompt in PROMPTS]
    beginning = template_prefix(tokenizer(), None)
    assert shares(model, tokenizer(), beginning, ids)
    real = module.prefilled
    monkeypatch.setattr(module, "prefilled", lambda model, ids, rows: real(model, ids.roll(1), rows))
    assert not shares(model, tokenizer(), beginning, ids)

    def refuses(*_: Any) -> None:
        raise ValueError("no masks with holes here")

    monkeypatch.setattr(module, "prefilled", refuses)
    assert not shares(model, tokenizer(), beginning, ids)


def test_without_a_system_prompt_there_is_nothing_to_share() -> None:
    ids = [prompt_ids(small.tokenizer(), prompt) for prompt in PROMPTS]
    beginning = template_prefix(small.tokenizer(), None)
    assert 0 < len(beginning) < module.WORTHWHILE
    assert not shares(small.base(), small.tokenizer(), beginning, ids)


def test_conversations_with_their_own_system_prompt_are_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    own = [{"role": "system", "content": "a bank"}, {"role": "user", "content": PROMPTS[0]}]
    words = small.tokenizer()
    words.chat_template = "{% if messages[0]['role'] != 'system' %}" + SYSTEM + "{% endif %}" + small.CHAT
    prompts = [own, *PROMPTS[:7]]
    model = small.base()
    expected = [respond(model, words, [prompt], max_new_tokens=6)[0] for prompt in prompts]  # type: ignore[list-item]
    assert respond(model, words, prompts, max_new_tokens=6, batch_size=3) == expected  # type: ignore[arg-type]


def test_padding_lies_between_the_prefix_and_the_rest() -> None:
    batch = pad_after(small.tokenizer(), [7, 8], [[7, 8, 9, 10], [7, 8, 11]], "cpu")
    assert batch["input_ids"].tolist() == [[7, 8, 9, 10], [7, 8, 0, 11]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 1]]
    assert fits([7, 8], [[7, 8, 9], [7, 8, 1, 2]])
    assert not fits([7, 8], [[7, 8, 9], [7, 8]])
    assert not fits([7, 8], [[7, 8, 9], [7, 9, 9]])
    assert torch.equal(batch["input_ids"][:, :2], torch.tensor([[7, 8], [7, 8]]))
