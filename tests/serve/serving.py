"""A server on a loopback port, in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import openai
import scripted
from transformers import PreTrainedTokenizerBase

from mogu.serve.app import create_app
from mogu.serve.requests import Engine
from mogu.serve.server import Server, bind, url_of
from mogu.serve.settings import Settings


def until(met: Callable[[], bool]) -> None:
    """Wait for what must come, and fail if it does not."""
    for _ in range(3000):
        if met():
            return
        time.sleep(0.02)
    raise AssertionError("it never came")


class Serving:
    """A server on a thread; ``stop`` is what SIGTERM does."""

    def __init__(self, engine: Engine, tokenizer: PreTrainedTokenizerBase, settings: Settings) -> None:
        self.server = Server(create_app(engine, tokenizer, settings))
        bound = bind("127.0.0.1", 0)
        bound.listen()
        self.url = url_of(bound)
        self.thread = threading.Thread(target=self.server.run, args=([bound],))
        self.thread.start()

    def stop(self) -> None:
        self.server.handle_exit(15, None)

    def end(self) -> None:
        self.stop()
        self.thread.join()

    def client(self, key: str = "secret") -> Any:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)


def start(engine: scripted.Scripted, **settings: Any) -> Serving:
    """A server over the scripted engine."""
    return Serving(engine, scripted.tokenizer(), scripted.settings(**settings))
