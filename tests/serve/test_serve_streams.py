"""Server-sent events: their order, what each says, and how a stream ends that goes wrong."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
import scripted

from mogu.serve.app import create_app

CHAT = "/v1/chat/completions"


def events(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_role_text_end_and_usage(serve, chat) -> None:
    chat |= {"stream": True, "stream_options": {"include_usage": True}}
    answer = serve().post(CHAT, json=chat)
    assert answer.headers["content-type"].startswith("text/event-stream")
    first, *pieces, last, count = events(answer.text)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert first["mogu"] == {"risk": 0.03, "routed_tokens": 0, "glad": 0.85, "unwill": 0.15}
    assert [piece["choices"][0]["delta"] for piece in pieces] == [{"content": t} for t in ("I", " will", " help")]
    assert (last["choices"][0]["delta"], last["choices"][0]["finish_reason"]) == ({}, "stop")
    assert last["mogu"]["routed_tokens"] == 2
    assert (count["choices"], count["usage"]["completion_tokens"]) == ([], 4)
    assert all(piece["usage"] is None for piece in (first, *pieces, last))
    assert len({piece["id"] for piece in (first, *pieces, last, count)}) == 1
    assert {piece["object"] for piece in (first, *pieces, last, count)} == {"chat.completion.chunk"}


def test_no_usage_unless_asked(serve, chat) -> None:
    assert all("usage" not in event for event in events(serve().post(CHAT, json={**chat, "stream": True}).text))


def test_texts_choices_and_traces(serve) -> None:
    asked = {"model": "tiny", "prompt": "I", "n": 2, "stream": True, "logprobs": 0, "mogu": {"trace": True}}
    told = events(serve().post("/v1/completions", json=asked).text)
    for index in (0, 1):
        mine = [event for event in told if event["choices"][0]["index"] == index]
        assert "".join(event["choices"][0]["text"] for event in mine) == "I will help"
        offsets = [n for e in mine if e["choices"][0]["logprobs"] for n in e["choices"][0]["logprobs"]["text_offset"]]
        assert offsets == [0, 1, 6]
        words = [entry["token"] for event in mine[1:-1] for entry in event["mogu"]["trace"]["answer"]]
        assert (
            words == [entry["token"] for entry in mine[-1]["mogu"]["trace"]["answer"]] == ["I", "will", "help", "</s>"]
        )


def test_a_failure_in_mid_answer_is_an_event(serve, chat) -> None:
    client = serve(scripted.Scripted(fail=RuntimeError("secret")))
    answer = client.post(CHAT, json={**chat, "stream": True})
    assert answer.status_code == 200
    assert events(answer.text)[-1]["error"]["code"] == "internal_error"
    assert "secret" not in answer.text


def test_what_takes_too_long_is_an_event_or_a_status(serve, chat) -> None:
    engine = scripted.Scripted()
    engine.go.clear()
    client = serve(engine, timeout=0.3)
    assert events(client.post(CHAT, json={**chat, "stream": True}).text)[-1]["error"]["code"] == "timeout"
    answer = client.post(CHAT, json=chat)
    assert (answer.status_code, answer.json()["error"]["type"]) == (504, "timeout_error")
    assert all(ticket.cancelled.is_set() for ticket in engine.tickets)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_all_its_rows(chat, stream: bool) -> None:
    engine = scripted.Scripted()
    engine.go.clear()
    app = create_app(engine, scripted.tokenizer(), scripted.settings())
    left = asyncio.Event()

    async def leave() -> None:
        body = json.dumps({**chat, "stream": stream, "n": 2}).encode()
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            pass

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": CHAT, "raw_path": CHAT.encode(), "headers": headers}
        scope |= {"query_string": b"", "http_version": "1.1", "scheme": "http", "asgi": {"version": "3.0"}}
        serving = asyncio.create_task(app(scope, receive, send))
        for _ in range(2):
            await asyncio.to_thread(engine.begun.acquire)
        left.set()
        await serving

    asyncio.run(leave())
    assert len(engine.tickets) == 2
    assert all(ticket.cancelled.is_set() for ticket in engine.tickets)
    assert app.state.mogu.metrics.disconnects._value.get() == 1
    engine.close()


def test_answers_of_several_clients_come_at_once(chat) -> None:
    engine = scripted.Scripted(lambda prompt, number: [f"{number}", "x"])

    async def ask() -> list[str]:
        app = create_app(engine, scripted.tokenizer(), scripted.settings())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://a") as client:
            answers = await asyncio.gather(*(client.post(CHAT, json={**chat, "seed": n}) for n in range(8)))
        return [answer.json()["choices"][0]["message"]["content"] for answer in answers]

    assert sorted(asyncio.run(ask())) == sorted(f"{n} x" for n in range(8))
