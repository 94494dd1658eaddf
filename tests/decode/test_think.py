"""Answers that begin with a thought: routed through it and m tokens beyond, as decoded by hand without caches."""

from __future__ import annotations

from typing import Any

import pytest
import small
import tiny
import torch
from peft import PeftModel
from transformers.generation.streamers import BaseStreamer

from mogu import MoguConfig
from mogu.adapter.model import active_config, plain_base
from mogu.decode.adaptive import Thinking
from mogu.errors import ConfigError, GenerationError

NEW, M, LIMIT = 20, 2, 11
PROMPTS = tiny.prompts(9, 4, 7, 12, 6, 5)
TEMPLATE = (
    "{% for m in messages %}{{ m['content'] + ' </s> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s> w90 ' + ('w91 ' if enable_thinking is false else '') }}{% endif %}"
)
"""The prompt's end begins a thought, w90, and closes it at once where thinking is switched off."""


def by_hand(model: PeftModel, prompt: torch.Tensor, begin: int, end: int) -> tuple[list[int], int]:
    """New tokens of one prompt and how many of them were routed."""
    ids, start, routed, staying = prompt.clone(), prompt.shape[1], 0, True
    while ids.shape[1] < start + NEW:
        with torch.no_grad():
            if staying:
                scores = model(input_ids=ids, use_cache=False).logits[0, -1]
            else:
                with plain_base(model):
                    scores = model(input_ids=ids, use_cache=False).logits[0, -1]
        ids = torch.cat([ids, scores.argmax().reshape(1, 1)], dim=1)
        if staying:
            routed += 1
            text = ids[0].tolist()
            thinking, after = False, start
            for place, token in enumerate(text):
                if token == begin:
                    thinking = True
                elif token == end:
                    thinking, after = False, max(place + 1, start)
            staying = (thinking or len(text) - after < M) and routed < LIMIT
    return ids[0, start:].tolist(), routed


def made(architecture: str, begin: int, end: int, **settings: Any) -> PeftModel:
    marks = {"think": "through", "think_tokens": [[begin], [end]], "think_limit": LIMIT}
    return tiny.adapted(architecture, router="folded", routed_tokens=M, **{**marks, **settings})


def marks_in(model: PeftModel) -> tuple[int, int]:
    """Tokens that stand in some routed answers, so that thoughts begin and end."""
    with torch.no_grad():
        rows = [model.generate(input_ids=p, max_new_tokens=NEW, handover="all", do_sample=False)[0] for p in PROMPTS]
    first = rows[0][PROMPTS[0].shape[1] :].tolist()
    return first[0], next(token for token in first[3:8] if token != first[0])


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("v2", [False, True])
def test_every_row_is_routed_through_its_thought(architecture: str, v2: bool) -> None:
    more = {"layers_to_transform": [1, 2], "backbone_modules": ["v", "o"]} if v2 else {}
    begin, end = marks_in(made(architecture, 95, 96, **more))
    model = made(architecture, begin, end, **more)
    expected = [by_hand(model, prompt, begin, end) for prompt in PROMPTS]
    output = model.generate(
        **tiny.left_padded(PROMPTS), max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True
    )
    assert output.sequences[:, 12:].tolist() == [tokens for tokens, _ in expected]
    assert output.routed_tokens.tolist() == [routed for _, routed in expected]
    for prompt, (tokens, _) in zip(PROMPTS[:3], expected, strict=False):
        alone = model.generate(input_ids=prompt, max_new_tokens=NEW, do_sample=False)
        assert alone[0, prompt.shape[1] :].tolist() == tokens
    ignored = model.generate(input_ids=PROMPTS[0], max_new_tokens=NEW, do_sample=False, think="ignore")
    published = tiny.adapted(architecture, router="folded", routed_tokens=M, **more)
    assert torch.equal(ignored, published.generate(input_ids=PROMPTS[0], max_new_tokens=NEW, do_sample=False))
    assert len({routed for _, routed in expected}) > 1


def test_what_counts() -> None:
    thinking = Thinking((90,), (91, 92), limit=9)
    rows = torch.tensor(
        [
            [5, 5, 5, 90, 6, 6, 6, 6],  # the prompt's end begins a thought, which goes on
            [5, 5, 90, 5, 91, 92, 6, 6],  # over since two tokens
            [90, 91, 92, 5, 6, 6, 6, 6],  # an earlier turn's
            [5, 90, 91, 92, 6, 6, 6, 6],  # closed in the prompt's end
            [5, 5, 5, 5, 6, 90, 6, 91],  # half an end
            [5, 5, 5, 5, 6, 6, 6, 6],  # none
        ]
    )
    assert thinking.counted(rows, 4).tolist() == [0, 2, 4, 4, 0, 4]
    assert Thinking((90,), (91, 92), limit=4).counted(rows, 4).tolist() == [4, 4, 4, 4, 4, 4]
    assert thinking.counted(rows[:, :1], 0).tolist() == [1, 1, 0, 1, 1, 1]


def test_a_template_that_begins_the_thought() -> None:
    tokenizer = tiny.tokenizer(TEMPLATE)
    begin, end = tokenizer.convert_tokens_to_ids(["w90", "w91"])
    model = made("llama", begin, end, think_limit=7)
    message = [{"role": "user", "content": "w10 w11 w12"}]
    routed = {}
    for switched_on in (True, False):
        text = tokenizer.apply_chat_template(
            message, add_generation_prompt=True, tokenize=False, enable_thinking=switched_on
        )
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        output = model.generate(input_ids=ids, max_new_tokens=10, do_sample=False, return_dict_in_generate=True)
        new = output.sequences[0, ids.shape[1] :].tolist()
        assert not {begin, end} & set(new[:7])
        routed[switched_on] = int(output.routed_tokens[0])
    assert routed == {True: 7, False: M}


def test_what_does_not_go_together() -> None:
    model = made("llama", 90, 91)
    with pytest.raises(GenerationError, match="drop reference or think"):
        model.generate(input_ids=PROMPTS[0], max_new_tokens=2, reference=True)
    with pytest.raises(GenerationError, match="unknown think 'hard'; choose from ignore, through"):
        model.generate(input_ids=PROMPTS[0], max_new_tokens=2, think="hard")
    with pytest.raises(GenerationError, match="needs think_tokens"):
        tiny.adapted("llama").generate(input_ids=PROMPTS[0], max_new_tokens=2, think="through")
    with pytest.raises(ConfigError, match="needs think_tokens"):
        MoguConfig(think="through", think_tokens=[[1], []])


def test_a_recipe_names_them_as_text() -> None:
    import dataclasses

    from mogu.errors import TrainingError
    from mogu.train.shape import adapter_config

    shape = dataclasses.replace(small.RECIPE.adapter, think="through", think_open="<user>", think_close="<system>")
    recipe = dataclasses.replace(small.RECIPE, adapter=shape)
    config = adapter_config(recipe, None, small.tokenizer(), "tiny")
    words = small.tokenizer()
    assert config.think_tokens == [[words.convert_tokens_to_ids(word)] for word in ("<user>", "<system>")]
    unknown = dataclasses.replace(recipe, adapter=dataclasses.replace(shape, think_open="<think>"))
    with pytest.raises(TrainingError, match="the tokenizer does not know '<think>'"):
        adapter_config(unknown, None, words, "tiny")
    assert active_config(made("llama", 90, 91)).think_limit == LIMIT


class Silent(BaseStreamer):
    def put(self, value: torch.Tensor) -> None:
        """Takes any number of rows."""

    def end(self) -> None:
        """Nothing is left."""


def test_a_batch_cannot_be_streamed() -> None:
    model = made("llama", 90, 91)
    with pytest.raises(GenerationError, match="hands over by risk or thought cannot be streamed"):
        model.generate(**tiny.left_padded(PROMPTS), max_new_tokens=2, streamer=Silent())
    assert model.generate(input_ids=PROMPTS[0], max_new_tokens=2, streamer=Silent()).shape[1] == 11
