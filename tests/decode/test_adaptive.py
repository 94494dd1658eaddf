"""Hand-over by risk: every row of a batch gets the tokens that it gets alone, decoded by hand without caches."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny
import torch
from peft import PeftModel
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from mogu.adapter.model import active_config, mogu_layers, plain_base, recorded_logits
from mogu.errors import AdapterError, GenerationError

NEW, M = 14, 2
PROMPTS = tiny.prompts(9, 4, 7, 12, 6)
CALIBRATION = {
    "prompt": {"weight": [0.4, -0.2, 0.3], "bias": 0.1},
    "answer": {"weight": [-0.3, 0.5, 0.2], "bias": -0.2},
}


def made(architecture: str) -> PeftModel:
    model = tiny.adapted(architecture, router="folded", routed_tokens=M)
    config = active_config(model)
    config.handover, config.risk = "risk", CALIBRATION
    return model


@pytest.fixture(scope="module")
def llama() -> PeftModel:
    return made("llama")


def by_hand(
    model: PeftModel, prompt: torch.Tensor, threshold: float, ends: frozenset[int] = frozenset(), new: int = NEW
) -> tuple[list[int], int]:
    """New tokens of one prompt and how many of them were routed."""
    ids, start, routed, staying = prompt.clone(), prompt.shape[1], 0, True
    while ids.shape[1] < start + new:
        with torch.no_grad():
            if staying:
                with recorded_logits(model) as logits:
                    scores = model(input_ids=ids, use_cache=False).logits[0, -1]
                    unwill, glad = logits()[:, :, 0, -1].double()
                fit = CALIBRATION["answer" if routed else "prompt"]
                margin = sum(w * (u - g) / 2 for w, u, g in zip(fit["weight"], unwill, glad, strict=True))
                routed += 1
                staying = routed < M or 1 / (1 + math.exp(-(float(margin) + fit["bias"]))) > threshold
            else:
                with plain_base(model):
                    scores = model(input_ids=ids, use_cache=False).logits[0, -1]
        ids = torch.cat([ids, scores.argmax().reshape(1, 1)], dim=1)
        if int(ids[0, -1]) in ends:
            break
    return ids[0, start:].tolist(), routed


def answers(model: PeftModel, prompts: list[torch.Tensor], **options: Any) -> Any:
    inputs = tiny.left_padded(prompts)
    return model.generate(
        **inputs, **{"max_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True, **options}
    )


def padded(rows: list[list[int]]) -> list[list[int]]:
    width = max(map(len, rows))
    return [row + [0] * (width - len(row)) for row in rows]


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "falcon"])
def test_every_row_hands_over_at_its_own_time(architecture: str) -> None:
    model = made(architecture)
    found = set()
    for threshold in (0.3, 0.5, 0.7):
        expected = [by_hand(model, prompt, threshold) for prompt in PROMPTS]
        output = answers(model, PROMPTS, risk_threshold=threshold)
        assert output.sequences[:, 12:].tolist() == [tokens for tokens, _ in expected]
        assert output.routed_tokens.tolist() == [routed for _, routed in expected]
        found |= {routed for _, routed in expected}
    assert len(found) > (4 if architecture == "llama" else 1)


def test_rows_that_end_in_the_head_in_the_surplus_and_in_the_tail(llama: PeftModel) -> None:
    free = [by_hand(llama, prompt, 0.5) for prompt in PROMPTS]
    kinds = set()
    for token in dict.fromkeys(tokens[place] for tokens, _ in free for place in (1, 5, 9)):
        ends = frozenset({token})
        expected = [by_hand(llama, prompt, 0.5, ends) for prompt in PROMPTS]
        output = answers(llama, PROMPTS, risk_threshold=0.5, eos_token_id=token, pad_token_id=0)
        assert output.sequences[:, 12:].tolist() == padded([tokens for tokens, _ in expected])
        assert output.routed_tokens.tolist() == [routed for _, routed in expected]
        kinds |= {
            (len(tokens) == routed < NEW, routed < len(tokens) < NEW, len({r for _, r in expected}) > 1)
            for tokens, routed in expected
        }
    assert {(True, False, True), (False, True, True)} <= kinds


@pytest.mark.parametrize("new", [1, 2, 3, 6])
def test_short_answers(llama: PeftModel, new: int) -> None:
    expected = [by_hand(llama, prompt, 0.5, new=new)[0] for prompt in PROMPTS]
    assert answers(llama, PROMPTS, risk_threshold=0.5, max_new_tokens=new).sequences[:, 12:].tolist() == expected


@pytest.mark.parametrize(("threshold", "fixed"), [(1.0, M), (0.0, NEW)])
def test_at_the_ends_of_the_threshold_it_is_the_fixed_hand_over(llama: PeftModel, threshold: float, fixed: int) -> None:
    expected = answers(llama, PROMPTS, handover="fixed", routed_tokens=fixed).sequences
    assert torch.equal(answers(llama, PROMPTS, risk_threshold=threshold).sequences, expected)
    if fixed == NEW:
        assert torch.equal(answers(llama, PROMPTS, handover="all").sequences, expected)


class Later(LogitsProcessor):
    """Forbids a token until the answer has so many tokens: depends on columns and on the row."""

    def __init__(self, token: int, length: int) -> None:
        self.token, self.length = token, length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        assert len(input_ids) == len(scores)
        if input_ids.shape[1] - self.length < 12:
            scores[:, self.token] = float("-inf")
        return scores


class Ending(StoppingCriteria):
    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.tensor([input_ids.shape[1] - 12 >= n for n in self.lengths])


def test_processors_and_criteria_of_the_caller_see_rows_without_blanks(llama: PeftModel) -> None:
    """Each row of a batch as alone: with padding to the same width, so that both see the same columns."""
    token = by_hand(llama, PROMPTS[0], 0.5)[0][8]
    lengths = [5, 13, 9, 3, 14]
    options = {"risk_threshold": 0.5, "repetition_penalty": 2.0, "pad_token_id": 0}

    def ask(which: list[int]) -> Any:
        inputs = {name: value[which] for name, value in tiny.left_padded(PROMPTS).items()}
        return llama.generate(
            **inputs,
            **{"max_new_tokens": NEW, "do_sample": False, **options},
            logits_processor=LogitsProcessorList([Later(token, 10)]),
            stopping_criteria=StoppingCriteriaList([Ending([lengths[index] for index in which])]),
        )

    alone = [ask([index])[0, 12:].tolist() for index in range(len(PROMPTS))]
    assert [len(row) for row in alone] == lengths
    assert ask(list(range(len(PROMPTS))))[:, 12:].tolist() == padded(alone)


def test_scores_are_those_of_each_row_alone(llama: PeftModel) -> None:
    options = {"risk_threshold": 0.5, "output_logits": True, "output_scores": True}
    whole = answers(llama, PROMPTS, **options)
    assert len(whole.logits) == len(whole.scores) == NEW
    assert len(set(whole.routed_tokens.tolist())) > 1
    for index, prompt in enumerate(PROMPTS):
        alone = answers(llama, [prompt], **options)
        for step in range(NEW):
            torch.testing.assert_close(whole.logits[step][index], alone.logits[step][0], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("cache", [None, "static"])
def test_a_shared_prefix_and_a_static_cache(llama: PeftModel, cache: str | None) -> None:
    prefix = tiny.prompts(8, seed=9)[0]
    prompts = [torch.cat([prefix, prompt], dim=1) for prompt in PROMPTS]
    expected = [by_hand(llama, prompt, 0.5)[0] for prompt in prompts]
    rest = tiny.left_padded(PROMPTS)
    rows = len(PROMPTS)
    inputs = {
        "input_ids": torch.cat([prefix.expand(rows, -1), rest["input_ids"]], dim=1),
        "attention_mask": torch.cat([torch.ones(rows, 8, dtype=torch.long), rest["attention_mask"]], dim=1),
    }
    options = {} if cache is None else {"cache_implementation": cache}
    output = llama.generate(
        **inputs, max_new_tokens=NEW, do_sample=False, risk_threshold=0.5, shared_prefix=8, **options
    )
    assert output[:, 20:].tolist() == expected


class Recorder:
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ends = 0

    def put(self, value: torch.Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.ends += 1


def test_one_prompt_is_streamed_a_batch_is_not(llama: PeftModel) -> None:
    streamer = Recorder()
    expected, _ = by_hand(llama, PROMPTS[0], 0.5)
    answers(llama, PROMPTS[:1], risk_threshold=0.5, streamer=streamer)
    assert streamer.tokens == PROMPTS[0][0].tolist() + expected
    assert streamer.ends == 1
    with pytest.raises(GenerationError, match="cannot be streamed"):
        answers(llama, PROMPTS, streamer=Recorder())


def test_the_risk_is_read_in_the_heads_first_forward(llama: PeftModel) -> None:
    with recorded_logits(llama) as logits, torch.no_grad():
        llama(input_ids=PROMPTS[0], use_cache=False)
        unwill, glad = logits()[:, :, 0, -1].double()
    margin = sum(w * (u - g) / 2 for w, u, g in zip(CALIBRATION["prompt"]["weight"], unwill, glad, strict=True))
    expected = 1 / (1 + math.exp(-float(margin) - 0.1))
    calls: list[int] = []
    hook = mogu_layers(llama)[0][1].register_forward_hook(lambda *_: calls.append(1))
    for handover in ("fixed", "risk", "all"):
        calls.clear()
        output = answers(llama, [PROMPTS[0]], handover=handover, max_new_tokens=4, routed_tokens=4)
        assert output.risk.dtype == torch.float32
        assert output.risk.tolist() == pytest.approx([expected], abs=1e-5)
        assert len(calls) == 4
    hook.remove()


def test_what_does_not_go_together_is_refused(llama: PeftModel) -> None:
    with pytest.raises(GenerationError, match="unknown hand-over 'late'"):
        answers(llama, PROMPTS, handover="late")
    with pytest.raises(GenerationError, match="reference decoding hands over after m tokens"):
        answers(llama, PROMPTS[:1], handover="all", reference=True)
    with pytest.raises(GenerationError, match="no common steps"):
        answers(llama, PROMPTS, output_hidden_states=True)
    with pytest.raises(AdapterError, match="no risk calibration"):
        answers(tiny.adapted("llama", router="folded"), PROMPTS, handover="risk")
