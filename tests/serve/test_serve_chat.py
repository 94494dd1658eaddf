"""Completions, not streamed: what the engine is asked, and what clients get."""

from __future__ import annotations

from typing import Any

import pytest
import scripted

from mogu.chat import prompt_ids
from mogu.serve.requests import Routing, Sampling


def said(body: dict[str, Any]) -> list[str]:
    return [choice["message"]["content"] if "message" in choice else choice["text"] for choice in body["choices"]]


def test_a_conversation_is_answered_in_openais_shape(serve, chat) -> None:
    engine = scripted.Scripted()
    body = serve(engine).post("/v1/chat/completions", json=chat).json()
    prompt = tuple(prompt_ids(scripted.tokenizer(), "How do I paint a car?"))
    assert body.pop("id").startswith("chatcmpl-")
    assert body.pop("created") > 0
    report = {"risk": 0.03, "routed_tokens": 2, "glad": 0.85, "unwill": 0.15}
    assert body == {
        "object": "chat.completion",
        "model": "tiny",
        "system_fingerprint": "mogu",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "I will help", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
                "mogu": report,
            }
        ],
        "usage": {"prompt_tokens": len(prompt), "completion_tokens": 4, "total_tokens": len(prompt) + 4},
        "mogu": report,
    }
    assert [p.ids for p in engine.prompts] == [prompt]
    assert engine.prompts[0].routing == Routing(routed_tokens=2, handover="fixed")
    assert engine.prompts[0].sampling == Sampling(max_tokens=engine.context - len(prompt))


def test_every_sampling_field_reaches_the_engine(serve, chat) -> None:
    engine = scripted.Scripted()
    chat |= {"temperature": 0, "top_p": 0.5, "top_k": 7, "seed": 5, "stop": ["a", "b"], "max_completion_tokens": 9}
    chat |= {"presence_penalty": 1, "frequency_penalty": -0.5, "logprobs": True, "top_logprobs": 2, "n": 2}
    assert serve(engine).post("/v1/chat/completions", json=chat).status_code == 200
    for number, prompt in enumerate(engine.prompts):
        assert prompt.sampling == Sampling(9, 0, 0.5, 7, 5 + number, 1, -0.5, ("a", "b"), 2)


def test_choices_are_separate_prompts_and_counted_together(serve, chat) -> None:
    engine = scripted.Scripted(lambda prompt, number: ["I", "will"][: number + 1])
    body = serve(engine).post("/v1/chat/completions", json={**chat, "n": 2}).json()
    assert said(body) == ["I", "I will"]
    assert [choice["mogu"]["routed_tokens"] for choice in body["choices"]] == [2, 2]
    assert body["usage"]["completion_tokens"] == 2 + 3
    assert body["usage"]["prompt_tokens"] == len(engine.prompts[0].ids)


def test_an_answer_that_is_cut_says_so(serve, chat) -> None:
    body = serve().post("/v1/chat/completions", json={**chat, "max_tokens": 2}).json()
    assert (said(body), body["choices"][0]["finish_reason"]) == (["I will"], "length")
    assert body["usage"]["completion_tokens"] == 2


def test_logprobs_in_both_forms(serve, chat) -> None:
    client = serve()
    asked = {**chat, "max_tokens": 1, "logprobs": True, "top_logprobs": 1}
    content = client.post("/v1/chat/completions", json=asked).json()["choices"][0]["logprobs"]["content"]
    one = {"token": "I", "logprob": -0.5, "bytes": [73]}
    assert content == [{**one, "top_logprobs": [one]}]
    asked = {"model": "tiny", "prompt": "w", "logprobs": 1, "max_tokens": 3}
    found = client.post("/v1/completions", json=asked).json()["choices"][0]["logprobs"]
    assert (found["tokens"], found["token_logprobs"]) == (["I", "will", "help"], [-0.5] * 3)
    assert found["top_logprobs"] == [{"I": -0.5}, {"will": -0.5}, {"help": -0.5}]


def test_the_end_of_turn_is_no_logprob(serve, chat) -> None:
    body = serve().post("/v1/chat/completions", json={**chat, "logprobs": True}).json()
    assert [entry["token"] for entry in body["choices"][0]["logprobs"]["content"]] == ["I", "will", "help"]


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("I will", [(scripted.tokenizer()("I will")["input_ids"])]),
        (["I", "will"], [[scripted.tokenizer()(word)["input_ids"][0]] for word in ("I", "will")]),
        ([5, 6, 2], [[5, 6, 2]]),
        ([[5], [6, 7]], [[5], [6, 7]]),
    ],
)
def test_prompts_of_completions_in_every_form(serve, prompt: Any, ids: list[list[int]]) -> None:
    engine = scripted.Scripted()
    body = serve(engine).post("/v1/completions", json={"model": "tiny", "prompt": prompt}).json()
    assert [list(asked.ids) for asked in engine.prompts] == ids
    assert (body["object"], said(body)) == ("text_completion", ["I will help"] * len(ids))
    assert body["usage"]["prompt_tokens"] == sum(map(len, ids))
    assert all(asked.sampling.max_tokens == 16 for asked in engine.prompts)


def test_harmless_fields_of_common_clients_are_taken(serve, chat) -> None:
    chat |= {"response_format": {"type": "text"}, "tools": [], "logit_bias": {}, "metadata": {"a": "b"}, "store": False}
    chat |= {"service_tier": "auto", "parallel_tool_calls": True, "user": "me", "tool_choice": "none", "top_k": -1}
    chat |= {"stream_options": None, "functions": None, "anything": None, "seed": None, "modalities": ["text"]}
    turn = {"role": "assistant", "content": "I will", "refusal": None, "tool_calls": None, "annotations": []}
    chat["messages"] = [*chat["messages"], turn, {"role": "user", "content": "more"}]
    assert serve().post("/v1/chat/completions", json=chat).status_code == 200


def test_parts_and_roles(serve, chat) -> None:
    engine = scripted.Scripted()
    parts = [{"type": "text", "text": "I"}, {"type": "text", "text": "will"}]
    chat["messages"] = [{"role": "developer", "content": "help"}, {"role": "user", "content": parts}]
    assert serve(engine).post("/v1/chat/completions", json=chat).status_code == 200
    expected = prompt_ids(scripted.tokenizer(), "I\nwill", system="help")
    assert list(engine.prompts[0].ids) == expected


def test_a_last_assistant_message_can_be_continued_and_is_still_routed(serve, chat) -> None:
    engine = scripted.Scripted()
    chat["messages"] = [*chat["messages"], {"role": "assistant", "content": "I will"}]
    client = serve(engine)
    continued = {**chat, "continue_final_message": True, "add_generation_prompt": False}
    assert client.post("/v1/chat/completions", json=continued).status_code == 200
    assert client.post("/v1/chat/completions", json=chat).status_code == 200
    first, second = (scripted.tokenizer().decode(prompt.ids) for prompt in engine.prompts)
    assert first.endswith("<assistant> I will")
    assert second.endswith("<assistant> I will </s> <assistant>")
    assert engine.prompts[0].routing.routed_tokens == 2


def test_a_trace_tells_every_token(serve, chat) -> None:
    engine = scripted.Scripted()
    chat["mogu"] = {"trace": True}
    trace = serve(engine).post("/v1/chat/completions", json=chat).json()["mogu"]["trace"]
    assert trace["layers"] == [1, 2]
    assert trace["prompt"][0] == {"token": "<user>", "unwill": [0.1, 0.2], "glad": [0.9, 0.8]}
    assert [entry["token"] for entry in trace["answer"]] == ["I", "will", "help", "</s>"]
    assert [entry["routed"] for entry in trace["answer"]] == [True, True, False, False]
    assert trace["answer"][0]["unwill"] == [0.3, 0.4]
    assert "unwill" not in trace["answer"][2]


def test_models(serve) -> None:
    client = serve()
    model = {"id": "tiny", "object": "model", "created": 1, "owned_by": "mogu", "max_model_len": 64}
    assert client.get("/v1/models").json() == {"object": "list", "data": [model]}
    assert client.get("/v1/models/tiny").json() == model
    assert client.get("/v1/models/other").json()["error"]["code"] == "model_not_found"
