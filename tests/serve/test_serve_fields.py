"""Fields that cannot be: OpenAI's error shape with the field's name, before anything is asked of the engine."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import scripted

from mogu.serve.settings import Served

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def refused(serve, path: str, body: Any, status: int, param: str | None, code: str, **settings: Any) -> str:
    engine = scripted.Scripted()
    answer = serve(engine, **settings).post(path, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (status, param, code), error
    assert set(error) == {"message", "type", "param", "code"}
    assert engine.tickets == []
    return error["message"]


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
        ({"functions": [{}]}, "functions", "unsupported_parameter"),
        ({"tool_choice": "required"}, "tool_choice", "unsupported_value"),
        ({"response_format": {"type": "json_object"}}, "response_format.type", "unsupported_value"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.type",
            "unsupported_value",
        ),
        ({"logit_bias": {"5": 1}}, "logit_bias", "unsupported_parameter"),
        ({"store": True}, "store", "unsupported_value"),
        ({"reasoning_effort": "low"}, "reasoning_effort", "unsupported_parameter"),
        ({"nonsense": 0}, "nonsense", "unsupported_parameter"),
        ({"mogu": {"nonsense": 0}}, "mogu.nonsense", "unsupported_parameter"),
        ({"stream_options": {"nonsense": 0}, "stream": True}, "stream_options.nonsense", "unsupported_parameter"),
        ({"temperature": 2.1}, "temperature", "invalid_value"),
        ({"temperature": "1"}, "temperature", "invalid_type"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": True}, "n", "invalid_type"),
        ({"n": 17}, "n", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "invalid_value"),
        ({"stop": ["a"] * 5}, "stop", "invalid_value"),
        ({"stop": [""]}, "stop[0]", "invalid_value"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": None}, "messages", "missing_required_parameter"),
        ({"messages": [{"role": "root", "content": "a"}]}, "messages[0].role", "unsupported_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_type"),
        ({"messages": [{"role": "user", "content": "a", "name": "b"}]}, "messages[0].name", "unsupported_parameter"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
            "unsupported_value",
        ),
        (
            {"messages": [{"role": "assistant", "content": "a", "tool_calls": [{}]}]},
            "messages[0].tool_calls",
            "unsupported_parameter",
        ),
        ({"continue_final_message": True}, "continue_final_message", "invalid_value"),
        ({"max_tokens": 1000}, "max_tokens", "context_length_exceeded"),
        (
            {"messages": [{"role": "user", "content": "I " * 70}]},
            "messages",
            "context_length_exceeded",
        ),
    ],
)
def test_of_a_chat(serve, chat, change: dict[str, Any], param: str, code: str) -> None:
    refused(serve, CHAT, {**chat, **change}, 400, param, code)


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"echo": True}, "echo", "unsupported_value"),
        ({"suffix": "end"}, "suffix", "unsupported_value"),
        ({"best_of": 2}, "best_of", "unsupported_parameter"),
        ({"logprobs": 21}, "logprobs", "invalid_value"),
        ({"prompt": []}, "prompt", "invalid_value"),
        ({"prompt": ""}, "prompt", "invalid_value"),
        ({"prompt": [10_000]}, "prompt", "invalid_value"),
        ({"prompt": ["I"] * 17}, "prompt", "invalid_value"),
        ({"prompt": None}, "prompt", "missing_required_parameter"),
    ],
)
def test_of_a_completion(serve, change: dict[str, Any], param: str, code: str) -> None:
    refused(serve, TEXT, {"model": "tiny", "prompt": "I", **change}, 400, param, code)


def test_an_unknown_model(serve, chat) -> None:
    assert "'gpt-4o' does not exist" in refused(
        serve, CHAT, {**chat, "model": "gpt-4o"}, 404, "model", "model_not_found"
    )


WEAKER = [({"routed_tokens": 1}, "routed_tokens"), ({"dial": -0.1}, "dial"), ({"handover": "fixed"}, "handover")]
GUARDED = dataclasses.replace(scripted.SERVED, handover="risk")


@pytest.mark.parametrize(("asked", "name"), WEAKER)
def test_less_protection_needs_leave(serve, chat, asked: dict[str, Any], name: str) -> None:
    body = {**chat, "mogu": asked}
    refused(serve, CHAT, body, 403, f"mogu.{name}", "override_not_allowed", served=GUARDED)
    assert serve(served=GUARDED, allow_overrides=True).post(CHAT, json=body).status_code == 200


def test_more_protection_needs_none(serve, chat) -> None:
    engine = scripted.Scripted()
    body = {**chat, "mogu": {"routed_tokens": 5, "dial": 1, "handover": "all"}}
    assert serve(engine, served=GUARDED, dial=0.5).post(CHAT, json=body).status_code == 200
    routing = engine.prompts[0].routing
    assert (routing.routed_tokens, routing.dial, routing.handover) == (5, 1.5, "all")


def test_without_an_adapter_there_is_nothing_to_ask(serve, chat) -> None:
    body = {**chat, "mogu": {"dial": 1}}
    refused(serve, CHAT, body, 400, "mogu.dial", "unsupported_parameter", served=Served("tiny"))


def test_an_operators_limit_of_tokens(serve, chat) -> None:
    engine = scripted.Scripted()
    client = serve(engine, max_tokens=3)
    assert client.post(CHAT, json=chat).status_code == 200
    assert engine.prompts[0].sampling.max_tokens == 3
    assert client.post(CHAT, json={**chat, "max_tokens": 4}).json()["error"]["param"] == "max_tokens"


def test_the_memory_of_keys_and_values_bounds_an_answer(serve, chat) -> None:
    engine = scripted.Scripted(kv_limit=20)
    assert serve(engine).post(CHAT, json=chat).status_code == 200
    assert len(engine.prompts[0].ids) + engine.prompts[0].sampling.max_tokens == 20


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"{", "invalid_json"),
        (b"[]", "invalid_json"),
        (b"\xff", "invalid_request"),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}', "invalid_type"),
        (b'{"model": "tiny", "messages": [], "\\ud800": 1}', "unsupported_parameter"),
        (b'{"model": "tiny", "messages": [], "temperature": NaN}', "invalid_value"),
        (b"[" * 100_000, "invalid_request"),
    ],
)
def test_bodies_that_are_no_request(serve, content: bytes, code: str) -> None:
    answer = serve().post(CHAT, content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


def test_published_templates_know_no_other_roles(serve, chat) -> None:
    served = dataclasses.replace(scripted.SERVED, template="vicuna")
    late = [*chat["messages"], {"role": "system", "content": "Obey."}]
    refused(serve, CHAT, {**chat, "messages": late}, 400, "messages[1].role", "invalid_value", served=served)


def test_other_paths_and_methods(serve) -> None:
    client = serve()
    assert client.get("/nix").json()["error"]["code"] == "unknown_url"
    answer = client.get(CHAT)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
