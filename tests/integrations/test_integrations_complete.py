"""Answers with their ends and costs, checked against one prompt at a time and transformers' own generate."""

from __future__ import annotations

from typing import Any

import pytest
import small
import tiny
import torch

from mogu.chat import prompt_ids
from mogu.integrations.complete import Completion, Settings, complete

TOKENIZER = small.tokenizer()
TEXTS = ["How do I steal a car?", "Write me a short poem about a bank", "How do I paint a boat?"]
PROMPTS = [prompt_ids(TOKENIZER, text) for text in TEXTS]


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny.adapted(small.base(), routed_tokens=2, layers_to_transform=[1, 2])


def greedy(model: Any, prompt: list[int], new_tokens: int) -> list[int]:
    output = model.generate(input_ids=torch.tensor([prompt]), max_new_tokens=new_tokens, do_sample=False)
    return output[0, len(prompt) :].tolist()


def test_a_batch_gives_what_each_prompt_gives_alone(model: Any) -> None:
    answers = complete(model, TOKENIZER, PROMPTS, Settings(new_tokens=7))
    for prompt, (one,) in zip(PROMPTS, answers, strict=True):
        ids = greedy(model, prompt, 7)
        assert one == Completion(TOKENIZER.decode(ids, skip_special_tokens=True).strip(), 7, "length")


def test_an_end_of_turn_ends_an_answer_and_counts(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = greedy(model, PROMPTS[0], 7)
    end = next(token for token in ids[3:] if token not in ids[:3])
    monkeypatch.setattr(model.generation_config, "eos_token_id", [2, end])
    ((one,),) = complete(model, TOKENIZER, PROMPTS[:1], Settings(new_tokens=7))
    assert one == Completion(TOKENIZER.decode(ids[: ids.index(end)]).strip(), ids.index(end) + 1, "stop")


@pytest.mark.parametrize("place", [1, 4], ids=["routed", "plain"])
def test_a_stop_text_ends_an_answer_and_is_no_part_of_it(model: Any, place: int) -> None:
    ids = greedy(model, PROMPTS[0], 7)
    place = ids.index(ids[place])
    stop = TOKENIZER.decode([ids[place]])
    (one,), *_ = complete(model, TOKENIZER, PROMPTS, Settings(new_tokens=7, stop=(stop,)))
    assert one.text == TOKENIZER.decode(ids).split(stop)[0].strip()
    assert one.ended_by == "stop"
    assert one.tokens <= place + 1


def test_greedy_choices_are_copies(model: Any) -> None:
    ((first, second),) = complete(model, TOKENIZER, PROMPTS[:1], Settings(new_tokens=4, choices=2))
    assert first == second


def test_a_seed_repeats_answers_and_leaves_the_random_numbers_alone(model: Any) -> None:
    settings = Settings(new_tokens=8, temperature=2.0, seed=1, choices=3)
    before = torch.get_rng_state()
    (first,) = complete(model, TOKENIZER, PROMPTS[:1], settings)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(first) == 3
    assert len({one.text for one in first}) > 1
    assert complete(model, TOKENIZER, PROMPTS[:1], settings) == [first]
    other = Settings(new_tokens=8, temperature=2.0, seed=2, choices=3)
    assert complete(model, TOKENIZER, PROMPTS[:1], other) != [first]


def test_choices_of_several_prompts_stay_with_their_prompt(model: Any) -> None:
    answers = complete(model, TOKENIZER, PROMPTS, Settings(new_tokens=5, top_k=1, choices=2))
    expected = complete(model, TOKENIZER, PROMPTS, Settings(new_tokens=5))
    assert answers == [[one, one] for (one,) in expected]


@pytest.mark.parametrize(
    ("given", "sampled"),
    [
        ({}, False),
        ({"temperature": 0.0}, False),
        ({"temperature": 0.0, "top_p": 0.9}, False),
        ({"seed": 1}, False),
        ({"temperature": 0.7}, True),
        ({"top_p": 0.9}, True),
        ({"top_k": 5}, True),
    ],
)
def test_what_counts_as_sampling(given: dict[str, Any], sampled: bool) -> None:
    assert Settings(new_tokens=1, **given).sampled is sampled
    assert Settings(new_tokens=1, **{"seed": 3, **given}).alone is sampled
