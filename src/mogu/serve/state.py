"""What all requests of one server share."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from mogu.serve.choices import Words
from mogu.serve.errors import ApiError, from_engine
from mogu.serve.logs import Note
from mogu.serve.metrics import Metrics
from mogu.serve.plans import Planner
from mogu.serve.requests import Engine
from mogu.serve.settings import Served, Settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Made = TypeVar("Made")
ENDPOINTS = frozenset(
    {"/v1/chat/completions", "/v1/completions", "/v1/moderations", "/v1/models", "/health", "/ready", "/metrics"}
)


class State:
    """An engine with its tokenizer and settings, and what is going on."""

    def __init__(self, engine: Engine, tokenizer: PreTrainedTokenizerBase, settings: Settings) -> None:
        self.engine, self.settings = engine, settings
        self.planner = Planner(engine, tokenizer, settings)
        self.words = Words(tokenizer)
        self.metrics = Metrics(engine)
        self.draining = False
        """No request is taken any more."""
        self.running = 0
        """Requests of the API that are not answered yet."""
        self._tokenizing = threading.Lock()
        self._closed = False

    @property
    def served(self) -> Served:
        """The model that answers."""
        return self.settings.served

    def planned(self, make: Callable[[], Made]) -> Made:
        """What ``make`` makes with the tokenizer, which two threads must not use at once."""
        with self._tokenizing:
            return make()

    def told(self, error: Exception) -> ApiError:
        """What a client is told of ``error``."""
        return from_engine(error, retry_after=self.metrics.retry_after(self.engine), closing=self.draining)

    def begun(self) -> None:
        """A request of the API has come."""
        self.running += 1

    def done(self, path: str, status: int, note: Note) -> None:
        """A request is over."""
        self.running -= path.startswith("/v1/")
        self.metrics.requests.labels(path if path in ENDPOINTS else "other", str(status)).inc()
        if code := note.more.get("error"):
            self.metrics.errors.labels(code).inc()

    async def close_engine(self) -> None:
        """Break off what is still in the making; its clients are told. Safe twice."""
        self.draining = True
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(self.engine.close, False)
