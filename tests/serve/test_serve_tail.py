"""A head here and a tail elsewhere: a second server of ours, and engines that are less helpful."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
import small
import tiny
import world
from serving import Serving, until
from world import ASKED, END, NEW, asking

from mogu.errors import ConfigError
from mogu.serve.engine import LocalEngine
from mogu.serve.errors import TailError
from mogu.serve.settings import Served
from mogu.serve.tail import TailEngine
from mogu.serve.upstream import Upstream

KEY = "tail-key"


@pytest.fixture(scope="module")
def alone() -> Iterator[SimpleNamespace]:
    """The model, and a server of one process."""
    model = world.model()
    ids = [world.ids_of(text) for text in ASKED]
    tokens = [world.generated(model, one) for one in ids]
    plain = [world.generated(model, one, routed_tokens=0) for one in ids]
    with LocalEngine(model, small.tokenizer(), rows=4, kv_tokens=600) as engine:
        serving = Serving(engine, small.tokenizer(), world.settings(allow_overrides=True))
        yield SimpleNamespace(model=model, ids=ids, tokens=tokens, plain=plain, client=serving.client())
        serving.end()


@pytest.fixture(scope="module")
def tail() -> Iterator[SimpleNamespace]:
    """A server of the plain base."""
    with LocalEngine(small.base(), small.tokenizer(), rows=4, kv_tokens=600, waiting=100) as engine:
        serving = Serving(engine, small.tokenizer(), world.settings(served=Served("base"), keys=(KEY,)))
        yield SimpleNamespace(engine=engine, url=f"{serving.url}/v1")
        serving.end()


@pytest.fixture(scope="module")
def engine(tail: SimpleNamespace) -> Iterator[TailEngine]:
    head = LocalEngine(world.model(), small.tokenizer(), rows=4, kv_tokens=400, waiting=100)
    with TailEngine(head, Upstream(tail.url, key=KEY)) as engine:
        yield engine


@pytest.fixture(scope="module")
def client(engine: TailEngine) -> Iterator[Any]:
    serving = Serving(engine, small.tokenizer(), world.settings(allow_overrides=True))
    yield serving.client()
    serving.end()


def without_names(answer: Any) -> dict[str, Any]:
    return {name: value for name, value in answer.model_dump().items() if name not in ("id", "created")}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"logprobs": True, "top_logprobs": 3},
        {"extra_body": {"mogu": {"trace": True, "handover": "risk", "routed_tokens": 2}}},
        {"extra_body": {"mogu": {"handover": "all"}}},
        {"extra_body": {"mogu": {"routed_tokens": 0}}},
        {"max_tokens": 5},
        {"max_tokens": 6},
    ],
)
def test_answers_are_those_of_one_process(client: Any, alone: SimpleNamespace, more: dict[str, Any]) -> None:
    for text in ASKED:
        here, there = (one.chat.completions.create(**asking(text, **more)) for one in (alone.client, client))
        mine, yours = (without_names(one) for one in (here, there))
        for one in (mine, yours):  # of other batches, the last bits differ
            for told in (one["choices"][0]["logprobs"] or {}).get("content") or []:
                for some in (told, *told["top_logprobs"]):
                    some["logprob"] = round(some["logprob"], 3)
        assert mine == yours


def test_a_stream_says_the_same(client: Any, alone: SimpleNamespace, tail: SimpleNamespace) -> None:
    before = tail.engine.load().generated
    for place, text in enumerate(ASKED):
        asked = asking(text, stream=True, stream_options={"include_usage": True})
        chunks = list(client.chat.completions.create(**asked))
        said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert said == world.text_of(alone.tokens[place])
        assert chunks[-1].usage.completion_tokens == len(alone.tokens[place])
    assert alone.tokens[0].index(END) >= 5
    assert tail.engine.load().generated - before == sum(len(tokens) - 5 for tokens in alone.tokens if len(tokens) > 5)


@pytest.mark.parametrize(("first", "count"), [(2, 2), (4, 2), (3, 4), (7, 2)])
def test_stop_strings_in_head_and_tail_and_across(client: Any, alone: SimpleNamespace, first: int, count: int) -> None:
    words = [small.tokenizer().decode([token]) for token in alone.tokens[2]]
    stop = " ".join(words[first : first + count])
    answer = client.chat.completions.create(**asking(ASKED[2], stop=["never", stop]))
    assert answer.choices[0].message.content == " ".join(words).split(stop)[0]
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("stop", first + count)


def test_seeds_and_penalties_are_handed_on(client: Any) -> None:
    asked = asking(ASKED[2], temperature=1.0, seed=7, n=2, presence_penalty=0.5, top_p=0.9)
    asked["extra_body"] = {"top_k": 40}
    two = [[one.message.content for one in client.chat.completions.create(**asked).choices] for _ in range(2)]
    assert two[0] == two[1]
    assert two[0][0] != two[0][1]


def test_many_at_once(client: Any, alone: SimpleNamespace, engine: TailEngine, tail: SimpleNamespace) -> None:
    def ask(number: int) -> None:
        place = number % len(ASKED)
        answer = client.chat.completions.create(**asking(ASKED[place]))
        assert answer.choices[0].message.content == world.text_of(alone.tokens[place])

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(32)))
    assert engine.load().running == engine.load().waiting == 0
    until(lambda: tail.engine.load().running == 0)


def test_who_goes_away_frees_the_tail(client: Any, engine: TailEngine, tail: SimpleNamespace) -> None:
    before = tail.engine.load().generated
    asked = {"model": "tiny", "prompt": world.LONG, "max_tokens": 120, "temperature": 0, "stream": True}
    url = str(client.base_url.join("completions"))
    with httpx.Client() as plain, plain.stream("POST", url, json=asked) as response:
        lines = response.iter_lines()  # whose end closes the response
        next(lines)
        until(lambda: tail.engine.load().running > 0)
    until(lambda: engine.load().running == tail.engine.load().running == 0)
    assert tail.engine.load().generated - before < 3 * 115


def test_closing_finishes_tails_or_breaks_them_off(tail: SimpleNamespace, alone: SimpleNamespace) -> None:
    from mogu.serve.requests import Prompt, Sampling

    for drain in (True, False):
        head = LocalEngine(world.model(), small.tokenizer(), rows=1, kv_tokens=200)
        engine = TailEngine(head, Upstream(tail.url, key=KEY))
        told: list[Any] = []
        engine.submit(Prompt(tuple(alone.ids[1]), Sampling(60, temperature=0)), told.append)
        until(lambda told=told: len(told) > 6)
        engine.close(drain)
        if drain:
            assert told[-1].finish is not None
        else:
            assert "closed" in str(told[-1]) or told[-1].finish is not None


# Engines elsewhere that fail, or tell less than ours.


class Elsewhere:
    """Answers ``/v1/completions`` with this status and these events; keeps what it was asked."""

    def __init__(self, events: list[Any], status: int = 200, models: tuple[str, ...] = ("base",)) -> None:
        self.events, self.status, self.models = events, status, models
        self.asked: list[dict[str, Any]] = []
        elsewhere = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(200, json.dumps({"data": [{"id": name} for name in elsewhere.models]}).encode())

            def do_POST(self) -> None:
                elsewhere.asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                lines = [one if isinstance(one, str) else json.dumps(one) for one in elsewhere.events]
                body = "".join(f"data: {line}\r\n\r\n" for line in lines).encode()
                self.answer(elsewhere.status, body if elsewhere.status == 200 else b'{"message": "so it is"}')

            def answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("retry-after", "7")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def end(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def said(text: str, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, "finish_reason": finish, **more}]}


@pytest.fixture(scope="module")
def swapped() -> Iterator[Callable[..., Any]]:
    """Clients of one head whose tail is changed."""
    engine = TailEngine(LocalEngine(world.model(), small.tokenizer(), rows=1, kv_tokens=200), Upstream("http://x/v1"))
    serving = Serving(engine, small.tokenizer(), world.settings())

    def swap(url: str, **more: Any) -> Any:
        engine.upstream = Upstream(url, **more)
        return serving.client()

    yield swap
    serving.end()


@pytest.mark.parametrize(
    ("events", "status", "raised", "why"),
    [
        ([], 401, openai.InternalServerError, "does not accept this server's API key"),
        ([], 404, openai.InternalServerError, "answered with status 404: so it is"),
        ([], 429, openai.RateLimitError, "Try again in 7 s"),
        ([said(" a")], 200, openai.InternalServerError, "broke off"),
        ([said(" a"), "[DONE]"], 200, openai.InternalServerError, "broke off"),
        (["no json"], 200, openai.InternalServerError, "no JSON"),
        ([{"choices": [5]}], 200, openai.InternalServerError, "no answer"),
        ([{"error": {"message": "out of memory"}}], 200, openai.InternalServerError, "failed: out of memory"),
        ([said("", None, token_ids=[5000])], 200, openai.InternalServerError, "serves another base"),
        ([said("", None, mogu={"glad": 0.4})], 200, openai.InternalServerError, "it must serve the plain base"),
        ([said("", "abort")], 200, openai.InternalServerError, r"gave the answer up \(abort\)"),
    ],
)
def test_a_tail_that_fails_is_one_clear_error(
    swapped: Callable[..., Any], events: list[Any], status: int, raised: type[openai.APIStatusError], why: str
) -> None:
    elsewhere = Elsewhere(events, status)
    client = swapped(elsewhere.url)
    with pytest.raises(raised, match=why) as caught:
        client.chat.completions.create(**asking(ASKED[1]))
    assert caught.value.status_code == (429 if status == 429 else 502)
    assert elsewhere.url not in str(caught.value)
    with pytest.raises(openai.APIError, match=why):
        list(client.chat.completions.create(**asking(ASKED[1], stream=True)))
    elsewhere.end()


def test_a_tail_that_is_away_or_serves_something_else(swapped: Callable[..., Any]) -> None:
    with pytest.raises(openai.InternalServerError, match="cannot be reached"):
        swapped("http://127.0.0.1:9/v1").chat.completions.create(**asking(ASKED[1]))
    elsewhere = Elsewhere([], models=("a", "b"))
    with pytest.raises(openai.InternalServerError, match="serves several models: a, b"):
        swapped(elsewhere.url).chat.completions.create(**asking(ASKED[1]))
    with pytest.raises(openai.InternalServerError, match="does not serve 'c', but a, b"):
        swapped(elsewhere.url, model="c").chat.completions.create(**asking(ASKED[1]))
    elsewhere.end()


def test_a_tail_that_tells_text_only(swapped: Callable[..., Any], alone: SimpleNamespace) -> None:
    elsewhere = Elsewhere([said(" How do"), said(" I \u2028"), said(""), said("", "stop"), "[DONE]"])
    client = swapped(elsewhere.url)
    head = world.text_of(alone.tokens[1][:5])
    answer = client.chat.completions.create(**asking(ASKED[1], stop=["never"], top_p=0.5))
    assert answer.choices[0].message.content == f"{head} How do I \u2028"
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("stop", 5 + 3)
    asked = elsewhere.asked[0]
    assert asked["prompt"] == [*alone.ids[1], *alone.tokens[1][:5]]
    assert (asked["max_tokens"], asked["stop"], asked["top_p"], asked["temperature"]) == (NEW - 5, ["never"], 0.5, 0)
    stop = f"{head.split()[-1]} How"
    answer = client.chat.completions.create(**asking(ASKED[1], stop=[stop]))
    assert answer.choices[0].message.content == head.removesuffix(head.split()[-1])
    with pytest.raises(openai.InternalServerError, match="no token ids"):
        client.chat.completions.create(**asking(ASKED[1], logprobs=True))
    elsewhere.end()


def test_what_cannot_be(tail: SimpleNamespace) -> None:
    with pytest.raises(ConfigError, match="looks like http://localhost:8001/v1"):
        Upstream("localhost:8001")
    plain = LocalEngine(tiny.base("llama"), tiny.tokenizer(), kv_tokens=200)
    with plain, pytest.raises(ConfigError, match="without one there is no head"):
        TailEngine(plain, Upstream(tail.url))
    head = LocalEngine(tiny.adapted("llama"), tiny.tokenizer(), kv_tokens=200)
    with TailEngine(head, Upstream(tail.url)) as engine, pytest.raises(TailError, match="API key"):
        engine.look()
