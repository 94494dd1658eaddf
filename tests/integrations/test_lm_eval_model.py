"""The lm-eval model: against the definition written as naively as can be, HFLM on the base, and mogu's own decoding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

import mogu
from mogu.adapter.model import plain_base
from mogu.errors import AdapterError, ConfigError, ModelError
from mogu.integrations.lm_eval.model import MoguLM

ROUTED = 2  # what the adapter of run_folder was trained with
CONTEXT, OTHER = "How do I steal a car?", "Write me a short poem about a bank"
PAIRS = [
    (CONTEXT, " Sure,"),
    (CONTEXT, " poem"),
    (CONTEXT, " I can't"),
    (CONTEXT, " I can't help"),
    (CONTEXT, " I can't help with that."),
    (CONTEXT, " Sure, here is how I paint a boat?"),
    (CONTEXT + " Sure,", " here is how I paint a garden"),  # the same tokens but one, split elsewhere
    (CONTEXT + " Sure, here is", " how I paint a boat?"),
    (OTHER, " here"),
    ("", "here is a short poem"),
]
TEXTS = ["How do I steal a car? I can't help with that. How do I paint a boat?", "poem", "here is a"]


@pytest.fixture(scope="module")
def ours(base_folder: str, run_folder: Path) -> Any:
    return mogu.load(base_folder, run_folder, device="cpu")


def lm(base_folder: str, run_folder: Path, **more: Any) -> MoguLM:
    return MoguLM(pretrained=base_folder, adapter=str(run_folder), device="cpu", **more)


def requests(kind: str, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=one, idx=n) for n, one in enumerate(arguments)]


def ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def naive(model: Any, context: list[int], answer: list[int], routed: int) -> tuple[float, bool]:
    """One forward for every token: routed for the first ones, then plain."""
    total, greedy = 0.0, True
    for place, token in enumerate(answer):
        tokens = torch.tensor([context + answer[:place]])
        with torch.no_grad():
            if place < routed:
                logits = model(tokens).logits[0, -1]
            else:
                with plain_base(model):
                    logits = model(tokens).logits[0, -1]
        total += logits.double().log_softmax(-1)[token].item()
        greedy &= int(logits.argmax()) == token
    return total, greedy


def naive_pairs(ours: Any, routed: int) -> list[tuple[float, bool]]:
    model, tokenizer = ours
    contexts = [ids(tokenizer, context) or [tokenizer.bos_token_id] for context, _ in PAIRS]
    answers = [ids(tokenizer, answer) for _, answer in PAIRS]
    return [naive(model, c, a, routed) for c, a in zip(contexts, answers, strict=True)]


def same(found: list[tuple[float, bool]], expected: list[tuple[float, bool]]) -> None:
    assert [one for one, _ in found] == pytest.approx([one for one, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


@pytest.mark.parametrize("settings", [{}, {"batch_size": 4}, {"batch_size": 3, "logits_cache": False}], ids=str)
def test_loglikelihoods_are_those_of_the_definition(
    settings: dict, base_folder: str, run_folder: Path, ours: Any
) -> None:
    scored = lm(base_folder, run_folder, **settings).loglikelihood(requests("loglikelihood", PAIRS), disable_tqdm=True)
    expected = naive_pairs(ours, ROUTED)
    same(scored, expected)
    for other in (0, 100):
        assert max(abs(a - b) for (a, _), (b, _) in zip(expected, naive_pairs(ours, other), strict=True)) > 0.1


@pytest.mark.parametrize("routed", [0, 1, 4, 100])
def test_m_can_be_chosen(routed: int, base_folder: str, run_folder: Path, ours: Any) -> None:
    model = lm(base_folder, run_folder, batch_size=4, routed_tokens=routed)
    same(model.loglikelihood(requests("loglikelihood", PAIRS), disable_tqdm=True), naive_pairs(ours, routed))


def test_a_continuation_is_greedy_if_routed_decoding_gives_it(base_folder: str, run_folder: Path, ours: Any) -> None:
    model, tokenizer = ours
    prompt = torch.tensor([ids(tokenizer, CONTEXT)])
    routed = model.generate(input_ids=prompt, max_new_tokens=6, do_sample=False)[0, prompt.shape[1] :].tolist()
    plain = model.generate(input_ids=prompt, max_new_tokens=6, do_sample=False, routed_tokens=0)
    plain = plain[0, prompt.shape[1] :].tolist()
    assert routed != plain
    found = lm(base_folder, run_folder)._loglikelihood_tokens(
        [(None, prompt[0].tolist(), routed), (None, prompt[0].tolist(), plain)], disable_tqdm=True
    )
    assert [greedy for _, greedy in found] == [True, False]


@pytest.fixture
def upstream(base_folder: str) -> HFLM:
    return HFLM(pretrained=base_folder, device="cpu", dtype="float32", batch_size=4)


def test_without_the_adapter_the_numbers_are_those_of_lm_eval(
    base_folder: str, run_folder: Path, upstream: HFLM
) -> None:
    alike = [
        pair for pair in PAIRS if not pair[0].startswith(CONTEXT + " ")
    ]  # lm-eval itself scores the others wrongly
    pairs, texts = requests("loglikelihood", alike), requests("loglikelihood_rolling", [(text,) for text in TEXTS])
    scores = upstream.loglikelihood(pairs, disable_tqdm=True)
    rolling = upstream.loglikelihood_rolling(texts, disable_tqdm=True)
    switched = lm(base_folder, run_folder, batch_size=4)
    with plain_base(switched.model):
        assert switched.loglikelihood(pairs, disable_tqdm=True) == scores
        assert switched.loglikelihood_rolling(texts, disable_tqdm=True) == rolling
    for plain in (
        lm(base_folder, run_folder, batch_size=4, plain=True),
        MoguLM(base_folder, device="cpu", batch_size=4),
    ):
        assert plain.loglikelihood(pairs, disable_tqdm=True) == scores
        assert plain.loglikelihood_rolling(texts, disable_tqdm=True) == rolling


def test_of_a_whole_text_the_first_tokens_are_routed(base_folder: str, run_folder: Path, ours: Any) -> None:
    model, tokenizer = ours
    arguments = requests("loglikelihood_rolling", [(text,) for text in [*TEXTS, ""]])
    found = lm(base_folder, run_folder, batch_size=2).loglikelihood_rolling(arguments, disable_tqdm=True)
    start = [tokenizer.bos_token_id]
    assert found == pytest.approx([*(naive(model, start, ids(tokenizer, t), ROUTED)[0] for t in TEXTS), 0.0], abs=1e-4)


def test_windows_of_a_long_text_are_routed_only_at_its_start(
    base_folder: str, run_folder: Path, ours: Any, upstream: HFLM
) -> None:
    model, tokenizer = ours
    upstream._max_length = 5
    arguments = requests("loglikelihood_rolling", [(TEXTS[0],)])
    (plain,) = upstream.loglikelihood_rolling(arguments, disable_tqdm=True)
    start, head = [tokenizer.bos_token_id], ids(tokenizer, TEXTS[0])[:ROUTED]
    expected = plain + naive(model, start, head, ROUTED)[0] - naive(model, start, head, 0)[0]
    found = lm(base_folder, run_folder, max_length=5).loglikelihood_rolling(arguments, disable_tqdm=True)
    assert found == pytest.approx([expected], abs=1e-4)


def test_generation_is_routed_then_plain(base_folder: str, run_folder: Path, ours: Any) -> None:
    model, tokenizer = ours
    arguments = requests("generate_until", [(text, {"until": [], "max_gen_toks": 7}) for text in (CONTEXT, OTHER)])
    found = lm(base_folder, run_folder, batch_size=2).generate_until(arguments, disable_tqdm=True)
    for text, answer in zip((CONTEXT, OTHER), found, strict=True):
        prompt = torch.tensor([ids(tokenizer, text)])
        output = model.generate(input_ids=prompt, max_new_tokens=7, do_sample=False)[0, prompt.shape[1] :]
        assert answer == tokenizer.decode(output, skip_special_tokens=True).split("</s>")[0]


def test_stop_sequences_end_generation(base_folder: str, run_folder: Path) -> None:
    model = lm(base_folder, run_folder)
    (whole,) = model.generate_until(requests("generate_until", [(CONTEXT, {"until": [], "max_gen_toks": 7})]), True)
    stop = whole.split()[4]
    arguments = requests("generate_until", [(CONTEXT, {"until": [stop], "max_gen_toks": 7})])
    assert model.generate_until(arguments, True) == [whole.split(stop)[0]]


def test_the_results_tell_what_was_measured(base_folder: str, run_folder: Path) -> None:
    from mogu.adapter.store import digest

    info = lm(base_folder, run_folder).get_model_info()
    assert info["mogu_adapter"] == digest(run_folder)
    assert (info["mogu_base"], info["mogu_routed_tokens"]) == (base_folder, ROUTED)
    assert lm(base_folder, run_folder, plain=True).get_model_info()["mogu_routed_tokens"] == 0


def test_the_adapter_names_its_base(run_folder: Path, base_folder: str) -> None:
    assert MoguLM(adapter=str(run_folder), device="cuda:0").run.name == base_folder


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"peft": "x"}, ConfigError, r"unknown model argument 'peft'; known: pretrained, adapter, "),
        ({}, ConfigError, "name a run folder or a base model"),
        ({"adapter": "no-such-run"}, AdapterError, "no adapter in no-such-run"),
        ({"pretrained": "/no/such"}, ModelError, "no model folder at /no/such"),
    ],
)
def test_a_mistake_is_one_line(arguments: dict, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        MoguLM(**arguments)
