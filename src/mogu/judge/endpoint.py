"""A judge behind any OpenAI-compatible endpoint: a hosted one, vLLM, llama.cpp, or mogu's own server."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import httpx

from mogu.errors import ConfigError, ModelError
from mogu.judge.models import Judgement, OnDone, Row, hash_prompt, read_answer
from mogu.judge.rubrics import Messages, Rubric

_LONGEST_WAIT = 60.0
"""Seconds that one back-off takes at most, whatever the server asks for."""


class EndpointJudge:
    """Asks ``POST {url}/chat/completions`` with temperature 0.

    Args:
        url: Base URL, as a rule ending in /v1.
        model: What the endpoint calls the model.
        rubric: The question.
        key_env: Environment variable with the key; without it none is sent.
        concurrency: Requests at a time.
        timeout: Seconds until an answer must have come.
        attempts: Tries of one request, where the server is busy (429), fails (5xx) or the connection breaks.
        backoff: Seconds before the second try, doubled each time; a server's Retry-After wins.
        options: Fields of the request besides model and messages; replaces temperature 0 and 512 tokens.

    Raises:
        ConfigError: A URL that is none, or a variable that is not set.
    """

    def __init__(
        self,
        url: str,
        model: str,
        rubric: Rubric,
        *,
        key_env: str | None = None,
        concurrency: int = 4,
        timeout: float = 120.0,
        attempts: int = 5,
        backoff: float = 1.0,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.rubric = rubric
        self.model = model
        self.url = _checked(url).rstrip("/")
        self.options = {"temperature": 0, "max_tokens": 512} if options is None else options
        self._headers = {} if key_env is None else {"Authorization": f"Bearer {_key(key_env)}"}
        self._concurrency, self._timeout, self._attempts, self._backoff = concurrency, timeout, attempts, backoff
        self._reached = False
        self._stop = threading.Event()

    @property
    def name(self) -> str:
        """Model, endpoint and rubric."""
        return f"{self.model}@{self.url}#{self.rubric.name}"

    def prompt_hash(self, row: Row) -> str:
        """Hash of the conversation that is sent."""
        return hash_prompt(self.rubric.messages(row["instruction"], row["response"]))

    def judge(self, rows: Sequence[Row], on_done: OnDone | None = None) -> list[Judgement]:
        """A judgement for each row, in order.

        Raises:
            ModelError: The endpoint is out of reach, refuses the request, or keeps failing; requests that wait are
                given up.
        """
        prompts = [self.rubric.messages(row["instruction"], row["response"]) for row in rows]
        done: dict[int, Judgement] = {}
        failure: ModelError | None = None
        self._stop.clear()
        with httpx.Client(headers=self._headers, timeout=self._timeout) as client:
            pool = ThreadPoolExecutor(max_workers=self._concurrency)
            try:
                waiting = {pool.submit(self._ask, client, prompt): index for index, prompt in enumerate(prompts)}
                for future in as_completed(waiting):
                    try:
                        index, answer = waiting[future], future.result()
                    except ModelError as error:  # raised below: answers that came before it are not lost
                        failure = failure or error
                        continue
                    if answer is not None:
                        done[index] = read_answer(self.name, self.rubric, prompts[index], answer)
                        if on_done is not None:
                            on_done(index, done[index])
            finally:
                self._stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
        if failure is not None:
            raise failure
        return [done[index] for index in range(len(rows))]

    def _ask(self, client: httpx.Client, messages: Messages) -> str | None:
        """The raw answer to one prompt; None once the run is given up, which a failure here does for all others."""
        try:
            for attempt in range(self._attempts):
                if self._stop.is_set():
                    return None
                reply, problem = self._post(client, messages)
                if reply is not None and reply.is_success:
                    return self._text(reply)
                asked = None if reply is None else reply.headers.get("retry-after")
                if attempt + 1 < self._attempts:
                    self._stop.wait(_seconds(asked, self._backoff * 2**attempt))
            raise ModelError(f"{self.url} gave no answer in {self._attempts} tries: {problem}")
        except BaseException:
            self._stop.set()
            raise

    def _post(self, client: httpx.Client, messages: Messages) -> tuple[httpx.Response | None, str]:
        """One try: the reply, if any came, and what was wrong with it, if that may pass.

        Raises:
            ModelError: What will not pass.
        """
        body = {"model": self.model, "messages": messages, **self.options}
        try:
            reply = client.post(f"{self.url}/chat/completions", json=body)
        except httpx.TransportError as error:
            if isinstance(error, httpx.ConnectError) and not self._reached:
                raise ModelError(f"cannot reach {self.url}: {error}; is the server up?") from error
            return None, str(error) or type(error).__name__
        self._reached = True
        problem = f"{reply.status_code} {_said(reply)}".strip()
        if not reply.is_success and reply.status_code != 429 and reply.status_code < 500:
            raise ModelError(f"{self.url} answered {problem}{_hint(reply.status_code)}")
        return reply, problem

    def _text(self, reply: httpx.Response) -> str:
        try:
            content = reply.json()["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError) as error:
            raise ModelError(
                f"{self.url} is no OpenAI-compatible endpoint: its answer holds no message; does the URL end in /v1?"
            ) from error
        return content if isinstance(content, str) else ""


def _checked(url: str) -> str:
    try:
        if httpx.URL(url).host:
            return url
    except httpx.InvalidURL:
        pass
    raise ConfigError(f"{url!r} is no URL of an endpoint; it looks like http://localhost:8000/v1")


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"the environment variable {variable} is not set; it must hold the endpoint's key")
    if not key.isascii():
        raise ConfigError(f"the environment variable {variable} holds characters that no key has")
    return key


def _seconds(asked: str | None, default: float) -> float:
    """Seconds to wait: what a Retry-After header asks for, if it is a number."""
    try:
        wanted = default if asked is None else float(asked)
    except ValueError:
        wanted = default
    return min(max(wanted, 0.0), _LONGEST_WAIT) if wanted == wanted else default


def _said(reply: httpx.Response) -> str:
    """The server's own words, shortened."""
    try:
        error = reply.json()["error"]
        text = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, LookupError, TypeError):
        text = reply.text
    return " ".join(text.split())[:200]


def _hint(status: int) -> str:
    if status in (401, 403):
        return "; name the environment variable that holds the key with --key-env"
    if status == 404:
        return "; does the URL end in /v1, and does the endpoint have this model?"
    return ""
