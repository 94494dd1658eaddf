"""Queue, keys, sizes, health, figures, log, shutdown: what operators rely on."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
import scripted

from mogu.errors import ConfigError
from mogu.serve.auth import Keys
from mogu.serve.logs import JsonLines
from mogu.serve.settings import read_keys

CHAT = "/v1/chat/completions"
KEYS = {"authorization": "Bearer secret-2"}


def test_a_full_queue_is_told_with_the_time_to_wait(serve, chat) -> None:
    answer = serve(scripted.Scripted(waiting=0)).post(CHAT, json=chat)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
    assert int(answer.headers["retry-after"]) >= 1


def test_choices_that_do_not_all_fit_leave_none_behind(serve, chat) -> None:
    engine = scripted.Scripted(waiting=2)
    engine.go.clear()
    assert serve(engine).post(CHAT, json={**chat, "n": 3}).status_code == 429
    assert [ticket.cancelled.is_set() for ticket in engine.tickets] == [True, True]


def test_an_engines_failure_tells_clients_nothing(serve, chat) -> None:
    answer = serve(scripted.Scripted(fail=RuntimeError("secret"))).post(CHAT, json=chat)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in answer.text


@pytest.mark.parametrize("chunked", [False, True])
def test_long_bodies(serve, chunked: bool) -> None:
    content = b'{"model": "' + b"x" * 2000 + b'"}'
    sent = iter([content[:1000], content[1000:]]) if chunked else content
    answer = serve(max_body=1500).post(CHAT, content=sent, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Basic secret-2", "secret-2", "Bearer ", "Bearer s\u00e9"])
def test_who_has_no_key_is_told_so(serve, chat, header: str | None) -> None:
    client = serve(keys=("secret-1", "secret-2"))
    headers = {} if header is None else {"authorization": header.encode("latin-1")}
    for answer in (client.post(CHAT, json=chat, headers=headers), client.get("/metrics", headers=headers)):
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert answer.headers["www-authenticate"] == "Bearer"
    assert client.get("/v1/models", headers=headers).status_code == 401
    assert client.get("/health", headers=headers).status_code == 200


def test_who_has_one_is_answered(serve, chat) -> None:
    client = serve(keys=("secret-1", "secret-2"))
    assert client.post(CHAT, json=chat, headers=KEYS).status_code == 200
    assert client.get("/metrics", headers=KEYS).status_code == 200


def test_keys_are_compared_whole() -> None:
    keys = Keys(["abc"])
    assert [keys.accept(given) for given in ("abc", "ab", "abcd", "")] == [True, False, False, False]


def test_keys_of_a_file_and_the_environment(tmp_path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\none\n\n two \n")
    assert read_keys(file, {"MOGU_API_KEY": "three", "MOGU_API_KEYS": "four, one"}) == ("one", "two", "three", "four")
    assert read_keys(None, {}) == ()
    file.write_text("# none\n")
    with pytest.raises(ConfigError, match="holds no API key"):
        read_keys(file, {})
    with pytest.raises(ConfigError, match="printable ASCII"):
        read_keys(None, {"MOGU_API_KEY": "schl\u00fcssel"})
    with pytest.raises(ConfigError, match="No such file"):
        read_keys(tmp_path / "nix", {})


def test_web_pages_may_ask_only_where_they_are_named(serve, chat) -> None:
    preflight = {"origin": "https://a.example", "access-control-request-method": "POST"}
    closed = serve()
    assert "access-control-allow-origin" not in closed.options(CHAT, headers=preflight).headers
    client = serve(cors_origins=("https://a.example",), keys=("k",))
    assert client.options(CHAT, headers=preflight).headers["access-control-allow-origin"] == "https://a.example"
    other = client.options(CHAT, headers={**preflight, "origin": "https://b.example"})
    assert "access-control-allow-origin" not in other.headers


def test_while_shutting_down_nothing_new_is_taken(serve, chat) -> None:
    client = serve()
    assert client.get("/ready").json() == {"status": "ready"}
    client.app.state.mogu.draining = True
    for answer in (client.post(CHAT, json=chat), client.get("/ready"), client.get("/v1/models")):
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")
    assert client.get("/health").json() == {"status": "ok"}


def test_figures(serve) -> None:
    engine = scripted.Scripted(lambda prompt, number: ["I", "cannot", "help", "with", "that."] if number else ["Sure"])
    client = serve(engine)
    for text in ("paint", "steal"):
        asked = {"model": "tiny", "messages": [{"role": "user", "content": f"How do I {text} a car?"}]}
        assert client.post(CHAT, json=asked).status_code == 200
    client.post(CHAT, json={})
    client.get("/secret-path")
    text = client.get("/metrics").text
    assert 'mogu_requests_total{code="200",endpoint="/v1/chat/completions"} 2.0' in text
    assert 'mogu_requests_total{code="404",endpoint="other"} 1.0' in text
    assert 'mogu_errors_total{code="missing_required_parameter"} 1.0' in text
    assert 'mogu_answers_total{finish="stop"} 2.0' in text
    assert "mogu_refusals_total 1.0" in text
    assert f"mogu_completion_tokens_total {float(engine.generated)}" in text
    assert f"mogu_generated_tokens_total {float(engine.generated)}" in text
    assert "mogu_routed_tokens_total 4.0" in text
    assert 'mogu_risk_bucket{le="0.1"} 1.0' in text
    assert "mogu_risk_count 2.0" in text
    assert "mogu_time_to_first_token_seconds_count 2.0" in text
    assert "mogu_request_seconds_count 2.0" in text
    assert "mogu_rows 4.0" in text
    assert "secret-path" not in text


def logged(caplog) -> list[dict[str, Any]]:
    return [json.loads(JsonLines().format(record)) for record in caplog.records if record.name == "mogu.serve"]


def test_the_log_tells_all_but_texts_and_keys(serve, chat, caplog) -> None:
    caplog.set_level(logging.INFO, "mogu.serve")
    client = serve(keys=("secret-2",))
    answer = client.post(CHAT, json=chat, headers={**KEYS, "x-request-id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    (line,) = logged(caplog)
    assert (line["event"], line["request_id"], line["path"], line["status"]) == ("request", "mine-1", CHAT, 200)
    assert (line["completion_tokens"], line["routed_tokens"], line["risk"], line["finish"]) == (4, 2, 0.03, ["stop"])
    assert {"time", "level", "seconds", "first_token", "prompt_tokens"} <= set(line)
    assert "paint" not in caplog.text + str(line)
    assert "secret-2" not in str(line)


def test_the_log_tells_why_a_request_was_refused(serve, caplog) -> None:
    caplog.set_level(logging.INFO, "mogu.serve")
    serve().post(CHAT, json={})
    (line,) = logged(caplog)
    assert (line["status"], line["error"]) == (400, "missing_required_parameter")
    assert "trace" not in line


def test_texts_are_logged_where_asked(serve, chat, caplog) -> None:
    caplog.set_level(logging.INFO, "mogu.serve")
    serve(log_prompts=True).post(CHAT, json=chat)
    (line,) = logged(caplog)
    assert (line["prompt"], line["answer"]) == (["How do I paint a car?"], ["I will help"])


def test_a_strange_request_id_is_replaced(serve) -> None:
    answer = serve().get("/health", headers={"x-request-id": 'a"b c'})
    assert len(answer.headers["x-request-id"]) == 32


def test_the_engine_is_closed_with_the_application(serve) -> None:
    engine = scripted.Scripted()
    client = serve(engine)
    client.__exit__(None, None, None)
    assert engine.closed == [False]
    client.__enter__()


def test_settings_out_of_range() -> None:
    with pytest.raises(ConfigError, match="timeout must be above 0"):
        scripted.settings(timeout=0.0)
