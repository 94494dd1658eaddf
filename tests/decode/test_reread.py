"""The tail's re-read from the first routed layer up: the same tokens as two models without caches, for less work."""

from __future__ import annotations

import copy
from typing import Any

import oracle
import pytest
import tiny
import torch
from torch import nn
from transformers import GenerationConfig, TextIteratorStreamer

from mogu.adapter.model import decoder_layers, mogu_layers
from mogu.decode import reread

NEW = 12
PROMPTS = tiny.prompts(9, 4, 7)


class Upper:
    """A model routed from some layer up, and the oracle's two."""

    def __init__(self, base: Any, first: int, tried: bool = True, **settings: Any) -> None:
        self.base = base
        settings = {"layers_to_transform": list(range(first, tiny.LAYERS)), **settings}
        self.model = tiny.adapted(copy.deepcopy(base), router="folded", **settings)
        self.routed = oracle.routed_copy(base, oracle.numbers_of(self.model))
        if tried and first:
            assert reread.changes_nothing(self.model.base_model.model, first)

    def expected(self, prompt: torch.Tensor, **options: Any) -> list[list[int]]:
        return oracle.decode(self.routed, self.base, prompt, **{"new": NEW, **options})

    def answers(self, prompts: list[torch.Tensor] | torch.Tensor, **options: Any) -> list[list[int]]:
        inputs = tiny.left_padded(prompts) if isinstance(prompts, list) else {"input_ids": prompts}
        output = self.model.generate(**inputs, **{"max_new_tokens": NEW, "do_sample": False, **options})
        sequences = output if isinstance(output, torch.Tensor) else output.sequences
        return sequences[:, inputs["input_ids"].shape[1] :].tolist()


@pytest.fixture(scope="module", params=tiny.ARCHITECTURES)
def each(request: pytest.FixtureRequest) -> Upper:
    return Upper(tiny.base(request.param), 1)


@pytest.fixture(scope="module")
def llama() -> Upper:
    return Upper(tiny.base("llama"), 1)


@pytest.fixture
def rereads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The shared prefix of every re-read that skipped the lower layers."""
    made: list[int] = []
    real = reread.Kept.reread

    def counted(self: reread.Kept, cache: Any, prefix: int = 0) -> Any:
        made.append(prefix)
        return real(self, cache, prefix)

    monkeypatch.setattr(reread.Kept, "reread", counted)
    return made


class Columns:
    """Tokens that a decoder layer's modules computed."""

    def __init__(self, layer: nn.Module) -> None:
        self.count = 0
        inner = next(m for m in layer.modules() if "norm" in type(m).__name__.lower())
        inner.register_forward_hook(self.add)

    def add(self, module: nn.Module, args: Any, output: Any) -> None:
        self.count += args[0].shape[0] * args[0].shape[1]


# the same tokens


def test_one_prompt_and_a_left_padded_batch(each: Upper, rereads: list[int]) -> None:
    expected = [each.expected(prompt)[0] for prompt in PROMPTS]
    assert [each.answers(prompt)[0] for prompt in PROMPTS[:2]] == expected[:2]
    assert each.answers(PROMPTS) == expected
    assert rereads == [0, 0, 0]
    assert expected != [each.expected(prompt, m=0)[0] for prompt in PROMPTS]


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "gpt2"])
def test_only_the_last_layer_is_routed(architecture: str, rereads: list[int]) -> None:
    last = Upper(tiny.base(architecture), tiny.LAYERS - 1)
    assert last.answers(PROMPTS) == [last.expected(prompt)[0] for prompt in PROMPTS]
    assert rereads


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_v2_with_a_lora_on_the_backbone(architecture: str, rereads: list[int]) -> None:
    """It changes keys and values of the first routed layer, too; the layers below stay as they are."""
    modules = {"backbone_modules": ["q", "k", "v", "o", "down"], "backbone_layers": "upper"}
    v2 = Upper(tiny.base(architecture), 1, layers_to_transform=[1], **modules)
    expected = [v2.expected(prompt)[0] for prompt in PROMPTS]
    assert v2.answers(PROMPTS) == expected
    assert v2.answers(PROMPTS[1]) == expected[1:2]
    assert rereads == [0, 0, 0]  # one in the trial
    assert expected != [v2.expected(prompt, m=0)[0] for prompt in PROMPTS]


def test_the_lower_layers_read_every_token_once() -> None:
    model = Upper(tiny.base("llama"), 1)
    lower, upper = (Columns(layer) for layer in decoder_layers(model.model)[:2])
    model.answers(PROMPTS[0])
    assert lower.count == 9 + NEW - 1
    assert upper.count == 9 + 4 + (9 + 5) + 6


def test_nothing_is_left_of_what_was_patched(llama: Upper) -> None:
    llama.answers(PROMPTS)
    assert not any("forward" in vars(layer) for layer in decoder_layers(llama.model))
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in decoder_layers(llama.model))
    assert not any(layer.fused for _, layer in mogu_layers(llama.model))


def test_the_heads_cache_is_let_go(llama: Upper, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = []
    real = reread.Head.keep

    def kept(self: reread.Head, *args: Any) -> Any:
        heads.append(self)
        return real(self, *args)

    monkeypatch.setattr(reread.Head, "keep", kept)
    llama.answers(PROMPTS[0])
    assert [head.cache.layers for head in heads] == [[]]
    assert heads[0].found.forwards == []


# with every option of generate


@pytest.mark.parametrize("m", [1, 4, 11])
def test_any_number_of_routed_tokens(llama: Upper, m: int, rereads: list[int]) -> None:
    assert llama.answers(PROMPTS, routed_tokens=m) == [llama.expected(prompt, m=m)[0] for prompt in PROMPTS]
    assert rereads == [0]


def test_rows_that_end_in_the_head(llama: Upper, rereads: list[int]) -> None:
    free = [llama.expected(prompt)[0] for prompt in PROMPTS]
    end = free[0][2]
    expected = [llama.expected(prompt, stop=lambda answer: answer[-1] == end)[0] for prompt in PROMPTS]
    width = max(map(len, expected))
    assert len(expected[0]) <= 3 < width
    padded = [row + [0] * (width - len(row)) for row in expected]
    assert llama.answers(PROMPTS, eos_token_id=end, pad_token_id=0) == padded
    assert rereads == [0]


@pytest.mark.parametrize("index", [2, 4])
def test_an_end_that_reference_decoding_drops(llama: Upper, index: int, rereads: list[int]) -> None:
    """Then the head has read every token that it leaves."""
    end = llama.expected(PROMPTS[0])[0][index]
    expected = llama.expected(PROMPTS[0], stop=lambda answer: answer[-1] == end, drop_end_in_head=True)
    assert llama.answers(PROMPTS[0], eos_token_id=end, reference=True) == expected
    assert rereads == [0]


def test_sampling_several_answers(llama: Upper, rereads: list[int]) -> None:
    expected = llama.expected(PROMPTS[0].repeat(3, 1), choose=oracle.sampler(5))
    torch.manual_seed(5)
    assert llama.answers(PROMPTS[0], do_sample=True, top_k=0, num_return_sequences=3) == expected
    assert rereads == [0]


def test_a_prefix_that_all_prompts_share(llama: Upper, rereads: list[int]) -> None:
    prefix = tiny.prompts(8, seed=9)[0]
    rest = tiny.left_padded(PROMPTS)
    ids = torch.cat([prefix.repeat(3, 1), rest["input_ids"]], dim=1)
    mask = torch.cat([torch.ones(3, 8, dtype=torch.int64), rest["attention_mask"]], dim=1)
    output = llama.model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, shared_prefix=8
    )
    assert output[:, ids.shape[1] :].tolist() == [llama.expected(torch.cat([prefix, p], dim=1))[0] for p in PROMPTS]
    assert rereads == [8]


def test_streamed_and_as_a_dict(llama: Upper, rereads: list[int]) -> None:
    tokenizer, expected = tiny.tokenizer(), llama.expected(PROMPTS[0])
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=5)
    options = {"return_dict_in_generate": True, "output_scores": True}
    assert llama.answers(PROMPTS[0], streamer=streamer, **options) == expected
    assert "".join(streamer) == tokenizer.decode(expected[0])
    output = llama.model.generate(input_ids=PROMPTS[0], max_new_tokens=NEW, do_sample=False, **options)
    assert len(output.scores) == NEW
    assert output.past_key_values.get_seq_length() == 9 + NEW - 1
    assert rereads == [0, 0]


# where all is read again


@pytest.mark.parametrize(
    "options",
    [
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 4},
        {"return_dict_in_generate": True, "output_hidden_states": True},
        {"return_dict_in_generate": True, "output_attentions": True, "attn": "eager"},
    ],
    ids=str,
)
def test_what_would_show_or_lose_the_skipped_layers(llama: Upper, options: dict[str, Any], rereads: list[int]) -> None:
    if attention := options.pop("attn", None):
        llama.model.base_model.model.set_attn_implementation(attention)
    config = GenerationConfig(prefill_chunk_size=options.pop("prefill_chunk_size", None), pad_token_id=0)
    try:
        assert llama.answers(PROMPTS[0], generation_config=config, **options) == llama.expected(PROMPTS[0])
    finally:
        llama.model.base_model.model.set_attn_implementation("sdpa")
    assert not rereads


def test_every_layer_routed(rereads: list[int]) -> None:
    whole = Upper(tiny.base("llama"), 0)
    assert whole.answers(PROMPTS) == [whole.expected(prompt)[0] for prompt in PROMPTS]
    assert not rereads


def handing_over(model: nn.Module) -> nn.Module:
    """As a model whose upper layers also read something else of the lower ones than hidden states."""
    inner = model.base_model.model if hasattr(model, "peft_config") else model
    layers, left = inner.model.layers, []
    layers[0].mlp.register_forward_hook(lambda module, args, output: left.append(output))
    layers[2].register_forward_pre_hook(
        lambda module, args: (args[0] + left[-1], *args[1:]) if left[-1].shape == args[0].shape else (args[0] * 2,)
    )
    return model


def test_a_model_that_hands_more_to_its_upper_layers(rereads: list[int]) -> None:
    both = Upper(tiny.base("llama"), 1, tried=False)
    for model in (both.model, both.base, both.routed):
        handing_over(model)
    assert both.answers(PROMPTS) == [both.expected(prompt)[0] for prompt in PROMPTS]
    assert not reread.changes_nothing(both.model.base_model.model, 1)
    assert rereads == [0]  # in the trial


def test_it_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    real = reread._tried
    monkeypatch.setattr(reread, "_tried", lambda model, first: tried.append(first) or real(model, first))
    upper = Upper(tiny.base("llama"), 1, tried=False)
    for prompt in PROMPTS:
        upper.answers(prompt)
    assert tried == [1]
