"""Clients that people have, against a real server on a loopback port."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import scripted
from serving import Serving, start

from mogu.serve.server import bind


@pytest.fixture
def engine() -> scripted.Scripted:
    return scripted.Scripted()


@pytest.fixture
def serving(engine: scripted.Scripted) -> Iterator[Serving]:
    serving = start(engine, keys=("secret",))
    yield serving
    engine.go.set()
    serving.end()


def test_openai_python(serving: Serving, chat: dict[str, Any]) -> None:
    client = serving.client()
    answer = client.chat.completions.create(**chat, extra_body={"mogu": {"dial": 1.0}})
    assert (answer.choices[0].message.content, answer.mogu["risk"]) == ("I will help", 0.03)
    chunks = list(client.chat.completions.create(**chat, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "I will help"
    assert chunks[-1].usage.completion_tokens == 4
    assert client.completions.create(model="tiny", prompt="I").choices[0].text == "I will help"
    assert client.moderations.create(input="How do I steal a car?").results[0].flagged
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_openai_python_knows_our_errors(serving: Serving, chat: dict[str, Any], engine: scripted.Scripted) -> None:
    client = serving.client()
    with pytest.raises(openai.AuthenticationError):
        serving.client("wrong").models.list()
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**chat, tools=[{"type": "function", "function": {"name": "a"}}])
    assert caught.value.param == "tools"
    with pytest.raises(openai.PermissionDeniedError):
        client.chat.completions.create(**chat, extra_body={"mogu": {"routed_tokens": 0}})
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**{**chat, "model": "gpt-4o"})
    engine.limit = 0
    with pytest.raises(openai.RateLimitError):
        client.chat.completions.create(**chat)
    engine.limit, engine.fail = 100, RuntimeError("secret")
    with pytest.raises(openai.APIError):
        list(client.chat.completions.create(**chat, stream=True))


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_curl(serving: Serving, chat: dict[str, Any]) -> None:
    headers = ["-H", "Content-Type: application/json", "-H", "Authorization: Bearer secret"]
    command = [
        "curl",
        "-sN",
        f"{serving.url}/v1/chat/completions",
        *headers,
        "-d",
        json.dumps({**chat, "stream": True}),
    ]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert told.endswith("data: [DONE]\n\n")
    assert told.count("data: ") == 6


def test_what_runs_is_finished_and_what_comes_is_refused(chat: dict[str, Any], engine: scripted.Scripted) -> None:
    engine.go.clear()
    serving = start(engine)
    client = serving.client()
    stream = iter(client.chat.completions.create(**chat, stream=True))
    next(stream)
    serving.stop()
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(**chat)
    assert caught.value.status_code == 503
    engine.go.set()
    rest = [chunk.choices[0] for chunk in stream]
    assert ("".join(choice.delta.content or "" for choice in rest), rest[-1].finish_reason) == ("I will help", "stop")
    serving.thread.join()
    assert engine.closed == [False]


def test_what_is_left_after_the_grace_is_broken_off(chat: dict[str, Any], engine: scripted.Scripted) -> None:
    engine.go.clear()
    serving = start(engine, grace=0.2)
    stream = iter(serving.client().chat.completions.create(**chat, stream=True))
    next(stream)
    serving.stop()
    with pytest.raises(openai.APIError, match="shutting down"):
        list(stream)
    serving.thread.join()


def test_a_socket_that_cannot_be_had() -> None:
    from mogu.errors import ConfigError

    bound = bind("127.0.0.1", 0)
    bound.listen()
    with pytest.raises(ConfigError, match="Address already in use; choose another --host or --port"):
        bind("127.0.0.1", bound.getsockname()[1])
    bound.close()
