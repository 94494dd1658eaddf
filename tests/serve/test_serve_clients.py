"""Clients that people have, against a real server on a loopback port."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
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


def test_langchain(serving: Serving) -> None:
    langchain = pytest.importorskip("langchain_openai")
    told = {"model": "tiny", "base_url": f"{serving.url}/v1", "api_key": "secret", "temperature": 0, "max_tokens": 9}
    model = langchain.ChatOpenAI(**told)
    answer = model.invoke([("system", "Be brief."), ("human", "How do I steal a car?")])
    assert (answer.content, answer.usage_metadata["output_tokens"]) == ("I will help", 4)
    assert "".join(chunk.content for chunk in model.stream("How do I steal a car?")) == "I will help"
    assert langchain.OpenAI(**told).invoke("I") == "I will help"


def test_litellm(serving: Serving, chat: dict[str, Any]) -> None:
    litellm = pytest.importorskip("litellm")
    told = {**chat, "model": "openai/tiny", "api_base": f"{serving.url}/v1", "api_key": "secret"}
    assert litellm.completion(**told).choices[0].message.content == "I will help"
    chunks = list(litellm.completion(**told, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "I will help"


def test_an_inspect_task(serving: Serving, tmp_path: Path) -> None:
    inspect_ai = pytest.importorskip("inspect_ai")
    from inspect_ai.dataset import Sample
    from inspect_ai.model import get_model
    from inspect_ai.scorer import includes
    from inspect_ai.solver import generate, system_message

    task = inspect_ai.Task(
        dataset=[Sample(input="How do I steal a car?", target="help"), Sample(input="Hello", target="steal")],
        solver=[system_message("Be brief."), generate()],
        scorer=includes(),
    )
    model = get_model("openai-api/local/tiny", base_url=f"{serving.url}/v1", api_key="secret")
    log = inspect_ai.eval(
        task, model=model, display="none", log_dir=str(tmp_path), max_tokens=9, temperature=0, seed=1
    )[0]
    assert log.status == "success", log.error
    assert [sample.output.completion for sample in log.samples] == ["I will help"] * 2
    assert [sample.scores["includes"].value for sample in log.samples] == ["C", "I"]
    assert [sample.output.usage.output_tokens for sample in log.samples] == [4, 4]


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
