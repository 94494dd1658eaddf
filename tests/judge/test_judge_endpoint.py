import hashlib
import json
import threading

import pytest
from chat_server import chat_server, error, message

from mogu.errors import ConfigError, ModelError
from mogu.judge.endpoint import EndpointJudge
from mogu.judge.models import JudgeSettings, open_judge
from mogu.judge.rubrics import HARMFULNESS, HELPFULNESS, REFUSAL

ROWS = [{"instruction": f"Question {n}", "response": f"Answer {n}"} for n in range(5)]


def number_of(request):
    """The number in the response that a request asks about."""
    return int(request["messages"][1]["content"].split("Answer ")[1][0])


def test_each_row_gets_its_own_judgement_and_the_request_is_reproducible():
    with chat_server(lambda _, request: message(f"Fine.\nharmfulness: {number_of(request) + 1}")) as server:
        judge = EndpointJudge(server.url + "/", "big", HARMFULNESS, concurrency=3)
        found = judge.judge(ROWS)
    assert [one.score for one in found] == [1, 2, 3, 4, 5]
    assert {one.judge for one in found} == {f"big@{server.url}#harmfulness"}
    sent = next(request for request in server.requests if number_of(request) == 2)
    assert (sent["model"], sent["temperature"]) == ("big", 0)
    assert sent["messages"] == HARMFULNESS.messages("Question 2", "Answer 2")
    text = json.dumps(sent["messages"], ensure_ascii=False)
    assert found[2].prompt_hash == hashlib.sha256(text.encode()).hexdigest()[:16] == judge.prompt_hash(ROWS[2])
    assert "authorization" not in server.headers[0]


def test_no_more_requests_at_a_time_than_asked():
    together = threading.Barrier(2, timeout=20)  # every request waits for one other: fewer at a time would hang

    def answer(number, _):
        together.wait()
        return message("label: refusal")

    with chat_server(answer) as server:
        EndpointJudge(server.url, "m", REFUSAL, concurrency=2).judge(ROWS[:4])
    assert server.busiest == 2


@pytest.mark.parametrize("failure", [error(429, "slow down", retry_after="0"), error(500, "oops"), error(503, "busy")])
def test_a_busy_or_broken_server_is_asked_again(failure):
    with chat_server(lambda number, _: failure if number < 2 else message("label: complied")) as server:
        found = EndpointJudge(server.url, "m", REFUSAL, backoff=0.0).judge(ROWS[:1])
    assert [one.label for one in found] == ["complied"]
    assert len(server.requests) == 3


def test_it_gives_up_in_the_end_with_the_servers_words():
    with chat_server(lambda *_: error(429, "quota  used up")) as server:
        with pytest.raises(ModelError, match=r"no answer in 3 tries: 429 quota used up"):
            EndpointJudge(server.url, "m", REFUSAL, attempts=3, backoff=0.0, concurrency=1).judge(ROWS)
        assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("failure", "line"),
    [
        (error(401, "no key"), "answered 401 no key; name the environment variable that holds the key with --key-env"),
        (error(404, "no model m"), "answered 404 no model m; does the URL end in /v1, and does"),
        (error(400, "too long"), "answered 400 too long"),
        ((302, ""), "answered 302"),
        ((200, "<html>hello</html>"), "is no OpenAI-compatible endpoint"),
        ((200, {"choices": []}), "is no OpenAI-compatible endpoint"),
    ],
)
def test_what_will_not_get_better_is_said_at_once(failure, line):
    with chat_server(lambda *_: failure) as server:
        with pytest.raises(ModelError) as caught:
            EndpointJudge(server.url, "m", REFUSAL, concurrency=1).judge(ROWS)
        assert line in str(caught.value)
        assert len(server.requests) == 1


@pytest.mark.parametrize("text", ["I would rather not say.", "", None])
def test_an_answer_that_cannot_be_parsed_is_kept_and_not_guessed(text):
    with chat_server(lambda *_: message(text)) as server:
        (found,) = EndpointJudge(server.url, "m", HELPFULNESS).judge(ROWS[:1])
    assert (found.score, found.label, found.scores, found.parsed) == (None, None, {}, False)
    assert found.answer == (text or "")


def test_done_rows_are_told_before_a_failure_ends_the_run():
    told = []
    with (
        chat_server(lambda number, _: message("label: refusal") if number < 2 else error(400, "bad")) as server,
        pytest.raises(ModelError, match="400 bad"),
    ):
        EndpointJudge(server.url, "m", REFUSAL, concurrency=1).judge(ROWS, lambda index, one: told.append(index))
    assert sorted(told) == [0, 1]


def test_the_key_comes_from_the_variable_and_stays_out_of_sight(monkeypatch):
    monkeypatch.setenv("MY_KEY", "sesame")
    with chat_server(lambda *_: message("label: refusal")) as server:
        judge = EndpointJudge(server.url, "m", REFUSAL, key_env="MY_KEY")
        (found,) = judge.judge(ROWS[:1])
    assert server.headers[0]["authorization"] == "Bearer sesame"
    assert "sesame" not in f"{judge!r} {judge.name} {found!r}"


def test_a_server_that_is_down_is_named():
    with chat_server(lambda *_: message("")) as server:
        pass
    with pytest.raises(ModelError, match=rf"cannot reach {server.url}: .*; is the server up\?"):
        EndpointJudge(server.url, "m", REFUSAL).judge(ROWS)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({}, "name the model that .* shall judge with: --judge-model NAME"),
        ({"model": "m", "key_env": "MOGU_NO_SUCH_KEY"}, "MOGU_NO_SUCH_KEY is not set"),
        ({"model": "m", "rubric": "nice"}, "unknown rubric 'nice'"),
        ({"model": "m", "score_label": "1"}, "--score-label does not go with an endpoint"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_asked(settings, line):
    with pytest.raises(ConfigError, match=line):
        open_judge(JudgeSettings("http://127.0.0.1:9/v1", **settings))


def test_an_address_that_is_none():
    with pytest.raises(ConfigError, match="no URL of an endpoint"):
        open_judge(JudgeSettings("http://", "m"))
