"""Routed head, plain tail: token for token what two models without caches decode, and every option of generate."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import oracle
import pytest
import tiny
import torch
import transformers
from peft import PeftModel
from torch import nn
from transformers import (
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from mogu.adapter.model import mogu_layers, set_stage
from mogu.errors import GenerationError

NEW = 12
PROMPTS = tiny.prompts(9, 4, 7)


class Pair(NamedTuple):
    """The model under test and the oracle's two."""

    model: PeftModel
    routed: nn.Module
    base: nn.Module

    def expected(self, prompt: torch.Tensor, **options: Any) -> list[list[int]]:
        return oracle.decode(self.routed, self.base, prompt, **{"new": NEW, **options})

    def answers(self, prompts: list[torch.Tensor] | torch.Tensor, **options: Any) -> list[list[int]]:
        inputs = tiny.left_padded(prompts) if isinstance(prompts, list) else {"input_ids": prompts}
        output = self.model.generate(**inputs, **{"max_new_tokens": NEW, "do_sample": False, **options})
        return output[:, inputs["input_ids"].shape[1] :].tolist()


def pair(architecture: str) -> Pair:
    base = tiny.base(architecture)
    model = tiny.adapted(copy.deepcopy(base), router="folded")
    return Pair(model, oracle.routed_copy(base, oracle.numbers_of(model)), base)


@pytest.fixture(scope="module", params=tiny.ARCHITECTURES)
def each(request: pytest.FixtureRequest) -> Pair:
    return pair(request.param)


@pytest.fixture(scope="module")
def llama() -> Pair:
    return pair("llama")


# the same tokens


def test_the_three_ways_to_decode_differ(each: Pair) -> None:
    """Otherwise the tests below could not fail."""
    for prompt in PROMPTS[:2]:
        handed_over, routed, plain = (tuple(each.expected(prompt, m=m)[0]) for m in (5, NEW, 0))
        assert len({handed_over, routed, plain}) == 3


def test_one_prompt(each: Pair) -> None:
    for prompt in PROMPTS:
        assert each.answers(prompt) == each.expected(prompt)


def test_a_left_padded_batch(each: Pair) -> None:
    assert each.answers(PROMPTS) == [each.expected(prompt)[0] for prompt in PROMPTS]


def test_rows_that_end_in_the_head_and_in_the_tail(each: Pair) -> None:
    free = [each.expected(prompt)[0] for prompt in PROMPTS]

    def cut(ends: set[int]) -> list[list[int]]:
        ended = [next((n for n, token in enumerate(row) if token in ends), NEW) for row in free]
        return [row[: n + 1] for row, n in zip(free, ended, strict=True)]

    pairs = ({in_head, in_tail} for in_head in free[0][1:4] for in_tail in free[1][6:-1] + free[2][6:-1])
    ends = next(ends for ends in pairs if len(cut(ends)[0]) <= 4 and any(6 < len(row) < NEW for row in cut(ends)))
    expected = [each.expected(prompt, stop=lambda answer: answer[-1] in ends)[0] for prompt in PROMPTS]
    assert expected == cut(ends)
    width = max(len(row) for row in expected)
    padded = [row + [0] * (width - len(row)) for row in expected]
    assert each.answers(PROMPTS, eos_token_id=sorted(ends), pad_token_id=0) == padded


def test_a_static_cache_of_several_answers(llama: Pair) -> None:
    options = {"do_sample": True, "top_k": 0, "num_return_sequences": 2}
    torch.manual_seed(5)
    expected = llama.answers(PROMPTS[0], **options)
    torch.manual_seed(5)
    assert llama.answers(PROMPTS[0], cache_implementation="static", **options) == expected


def test_a_static_cache(each: Pair) -> None:
    answers = each.answers(PROMPTS[:2], cache_implementation="static")
    assert answers == [each.expected(prompt)[0] for prompt in PROMPTS[:2]]


def test_sampling_is_two_phase_sampling_with_the_same_random_numbers(each: Pair) -> None:
    expected = each.expected(PROMPTS[0], choose=oracle.sampler(5, temperature=1.5))
    options = {"do_sample": True, "temperature": 1.5, "top_k": 0, "top_p": 1.0}
    torch.manual_seed(5)
    assert each.answers(PROMPTS[0], **options) == expected
    torch.manual_seed(6)
    assert each.answers(PROMPTS[0], **options) != expected


def test_without_a_named_task_the_answer_is_still_handed_over(llama: Pair) -> None:
    """peft's model without a task calls the base's own generate, which would route every token."""
    model = tiny.adapted(tiny.base("llama"), router="folded", task_type=None)
    output = model.generate(input_ids=PROMPTS[0], max_new_tokens=NEW, do_sample=False)
    assert output[:, 9:].tolist() == llama.expected(PROMPTS[0])


# lengths


@pytest.mark.parametrize("new", [1, 3, 5, 6])
def test_short_answers(llama: Pair, new: int) -> None:
    answers = llama.answers(PROMPTS, max_new_tokens=new)
    assert answers == [llama.expected(prompt, new=new)[0] for prompt in PROMPTS]


@pytest.mark.parametrize("m", [0, 1, 4, 11, 12, 40])
def test_any_number_of_routed_tokens(llama: Pair, m: int) -> None:
    answers = llama.answers(PROMPTS, routed_tokens=m)
    assert answers == [llama.expected(prompt, m=m)[0] for prompt in PROMPTS]


def test_the_adapter_says_how_many_tokens_are_routed(llama: Pair) -> None:
    config = llama.model.peft_config["default"]
    config.routed_tokens = 2
    try:
        assert llama.answers(PROMPTS[0]) == llama.expected(PROMPTS[0], m=2)
    finally:
        config.routed_tokens = 5


def test_no_routed_tokens_is_the_base(llama: Pair) -> None:
    plain = llama.base.generate(input_ids=PROMPTS[0], max_new_tokens=NEW, do_sample=False)
    assert llama.answers(PROMPTS[0], routed_tokens=0) == plain[:, 9:].tolist()


def test_max_length_and_a_generation_config(llama: Pair) -> None:
    config = GenerationConfig(max_length=9 + 7, do_sample=False, pad_token_id=0)
    output = llama.model.generate(PROMPTS[0], config)
    assert output[:, 9:].tolist() == llama.expected(PROMPTS[0], new=7)


def test_min_new_tokens_counts_head_and_tail_together(llama: Pair) -> None:
    end = llama.expected(PROMPTS[0])[0][6]

    def choose(tokens: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone()
        if tokens.shape[1] < 9 + 10:
            logits[:, end] = float("-inf")
        return logits.argmax(-1)

    expected = llama.expected(PROMPTS[0], choose=choose, stop=lambda answer: answer[-1] == end)
    assert llama.answers(PROMPTS[0], eos_token_id=end, min_new_tokens=10) == expected


# other options of generate


def test_repetition_penalty_sees_prompt_head_and_tail(llama: Pair) -> None:
    expected = llama.expected(PROMPTS[0], choose=oracle.penalised(3.0))
    assert expected != llama.expected(PROMPTS[0])
    assert llama.answers(PROMPTS[0], repetition_penalty=3.0) == expected


def test_several_answers_per_prompt(llama: Pair) -> None:
    expected = llama.expected(PROMPTS[0].repeat(3, 1), choose=oracle.sampler(5))
    torch.manual_seed(5)
    answers = llama.answers(PROMPTS[0], do_sample=True, top_k=0, num_return_sequences=3)
    assert answers == expected
    assert len({tuple(answer) for answer in answers}) == 3


def test_without_a_cache(llama: Pair) -> None:
    assert llama.answers(PROMPTS[0], use_cache=False) == llama.expected(PROMPTS[0])


def test_stop_strings_end_in_the_head_and_in_the_tail(llama: Pair) -> None:
    tokenizer = tiny.tokenizer()
    words = [tokenizer.convert_ids_to_tokens(llama.expected(prompt)[0]) for prompt in PROMPTS[:2]]
    strings = [words[0][2], words[1][8]]
    expected = [
        llama.expected(p, stop=lambda a: any(s in tokenizer.decode(a) for s in strings))[0] for p in PROMPTS[:2]
    ]
    assert len(expected[0]) == 3
    assert len(expected[1]) == 9
    padded = [answer + [0] * (9 - len(answer)) for answer in expected]
    assert llama.answers(PROMPTS[:2], stop_strings=strings, tokenizer=tokenizer) == padded
    config = GenerationConfig(stop_strings=strings, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    inputs = tiny.left_padded(PROMPTS[:2])
    output = llama.model.generate(**inputs, generation_config=config, tokenizer=tokenizer)
    assert output[:, 9:].tolist() == padded
    assert config.stop_strings == strings


def test_stop_strings_without_a_tokenizer_say_so(llama: Pair) -> None:
    with pytest.raises(GenerationError, match="pass tokenizer="):
        llama.answers(PROMPTS[0], stop_strings=["w5"])


class Ending(StoppingCriteria):
    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.tensor([input_ids.shape[1] - 9 >= n for n in self.lengths])


@pytest.mark.parametrize("lengths", [(3, 8), (8, 3), (6, 9), (5, 12), (2, 3)])
def test_stopping_criteria_of_the_caller_end_rows_for_good(llama: Pair, lengths: tuple[int, int]) -> None:
    answers = llama.answers(PROMPTS[:2], stopping_criteria=StoppingCriteriaList([Ending([*lengths])]))
    rows = [llama.expected(prompt)[0][:n] for prompt, n in zip(PROMPTS, lengths, strict=False)]
    assert answers == [row + [0] * (max(lengths) - len(row)) for row in rows]


@pytest.mark.parametrize("new", [4, NEW])
def test_a_dict_holds_one_score_per_new_token(llama: Pair, new: int) -> None:
    output = llama.model.generate(
        input_ids=PROMPTS[0],
        **{"max_new_tokens": new, "do_sample": False, "return_dict_in_generate": True},
        **{"output_scores": True, "output_logits": True, "output_hidden_states": True},
    )
    assert output.sequences[:, 9:].tolist() == llama.expected(PROMPTS[0], new=new)
    for steps in (output.scores, output.logits, output.hidden_states):
        assert len(steps) == new
    for step, logits in enumerate(output.logits):
        model = llama.routed if step < 5 else llama.base
        expected = model(input_ids=output.sequences[:, : 9 + step]).logits[:, -1]
        torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)


# streaming


class Recorder:
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ends = 0

    def put(self, value: torch.Tensor) -> None:
        assert not self.ends
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.ends += 1


@pytest.mark.parametrize(
    "options",
    [{}, {"max_new_tokens": 3}, {"routed_tokens": 0}, {"routed_tokens": 40}, {"eos_token_id": 2}, {"eos_token_id": 8}],
    ids=str,
)
def test_a_streamer_gets_prompt_and_answer_and_one_end(llama: Pair, options: dict) -> None:
    free = llama.expected(PROMPTS[0])[0]
    if "eos_token_id" in options:  # here an index into the answer: in the head, in the tail
        options = {"eos_token_id": free[options["eos_token_id"]]}
    streamer = Recorder()
    answers = llama.answers(PROMPTS[0], streamer=streamer, **options)
    assert streamer.tokens == PROMPTS[0][0].tolist() + answers[0]
    assert streamer.ends == 1
    if "eos_token_id" in options:
        assert len(answers[0]) < NEW


def test_text_iterator_streamer(llama: Pair) -> None:
    tokenizer = tiny.tokenizer()
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=5)
    answers = llama.answers(PROMPTS[0], streamer=streamer)
    assert "".join(streamer) == tokenizer.decode(answers[0])


def test_on_handover_sees_the_head_once(llama: Pair) -> None:
    heads: list[torch.Tensor] = []
    llama.answers(PROMPTS[0], on_handover=heads.append)
    assert [head[:, 9:].tolist() for head in heads] == [[llama.expected(PROMPTS[0])[0][:5]]]


# the authors' way


@pytest.mark.parametrize("index", [0, 2, 4, 5, 8])
def test_reference_decoding_drops_an_end_in_the_head_and_goes_on(llama: Pair, index: int) -> None:
    end = llama.expected(PROMPTS[0])[0][index]
    expected = llama.expected(PROMPTS[0], stop=lambda answer: answer[-1] == end, drop_end_in_head=True)
    assert llama.answers(PROMPTS[0], eos_token_id=end, reference=True) == expected
    if index < 5:
        assert expected != llama.expected(PROMPTS[0], stop=lambda answer: answer[-1] == end)


@pytest.mark.parametrize("new", [3, 5, 6])
def test_reference_decoding_drops_nothing_else_in_a_short_answer(llama: Pair, new: int) -> None:
    assert llama.answers(PROMPTS[0], max_new_tokens=new, reference=True) == llama.expected(PROMPTS[0], new=new)


def test_reference_decoding_takes_one_prompt(llama: Pair) -> None:
    with pytest.raises(GenerationError, match="one prompt at a time"):
        llama.answers(PROMPTS, reference=True)


# when nothing is routed


def test_inside_disable_adapter_generation_is_plain(llama: Pair) -> None:
    with llama.model.disable_adapter():
        assert llama.answers(PROMPTS[0]) == llama.expected(PROMPTS[0], m=0)
    assert llama.answers(PROMPTS[0]) == llama.expected(PROMPTS[0])


@pytest.mark.parametrize("stage", ["glad", "unwill"])
def test_a_responder_alone_answers_all_tokens(llama: Pair, stage: str) -> None:
    set_stage(llama.model, stage)
    try:
        answers = llama.answers(PROMPTS[0])
        only = llama.model.base_model.model.generate(input_ids=PROMPTS[0], max_new_tokens=NEW, do_sample=False)
    finally:
        set_stage(llama.model, "routed")
    assert answers == only[:, 9:].tolist()
    assert answers != llama.expected(PROMPTS[0])


class Failing(LogitsProcessor):
    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if input_ids.shape[1] == self.length:
            raise RuntimeError("the light went out")
        return scores


@pytest.mark.parametrize("step", [2, 8])
def test_an_exception_leaves_the_layers_as_they_were(llama: Pair, step: int) -> None:
    with pytest.raises(RuntimeError, match="the light went out"):
        llama.answers(PROMPTS[0], logits_processor=LogitsProcessorList([Failing(9 + step)]))
    assert not any(layer.disable_adapters for _, layer in mogu_layers(llama.model))
    assert llama.answers(PROMPTS[0]) == llama.expected(PROMPTS[0])


# what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2}, "greedy or sampled, not beam search"),
        ({"num_beams": 2, "do_sample": True}, "greedy or sampled, not beam sample"),
        ({"prompt_lookup_num_tokens": 3}, "greedy or sampled, not assisted generation"),
        ({"assistant_model": object()}, "drop assistant_model"),
        ({"past_key_values": DynamicCache()}, "takes no past_key_values"),
        ({"inputs_embeds": torch.zeros(1, 9, 32)}, "takes no inputs_embeds"),
        ({"custom_generate": print}, "is itself a custom_generate"),
        ({"guidance_scale": 1.5}, "drop guidance_scale"),
        ({"routed_tokens": -1}, "routed_tokens must be at least 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_the_handover_cannot_do_is_refused(llama: Pair, options: dict, message: str) -> None:
    with pytest.raises(GenerationError, match=message):
        llama.answers(PROMPTS[0], **options)
    assert llama.answers(PROMPTS[0]) == llama.expected(PROMPTS[0])


def parameters(function: Callable) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_the_private_api_that_we_lean_on_is_that_of_transformers_5() -> None:
    version = f"changed in transformers {transformers.__version__}: check mogu/decode/handover.py"
    sample = ["input_ids", "logits_processor", "stopping_criteria", "generation_config", "synced_gpus", "streamer"]
    assert parameters(GenerationMixin._sample) == ["self", *sample, "model_kwargs"], version
    prepare = ["generation_config", "model_kwargs", "generation_mode", "batch_size", "max_cache_length"]
    assert parameters(GenerationMixin._prepare_cache_for_generation) == ["self", *prepare], version
