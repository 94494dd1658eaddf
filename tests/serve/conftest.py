"""Servers in this process, over the scripted engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import scripted
from starlette.testclient import TestClient

from mogu.serve.app import create_app
from mogu.serve.requests import Engine

Serve = Callable[..., TestClient]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """A client of a server with this engine and these settings."""
    clients: list[TestClient] = []

    def start(engine: Engine | None = None, **settings: Any) -> TestClient:
        engine = scripted.Scripted() if engine is None else engine
        app = create_app(engine, scripted.tokenizer(), scripted.settings(**settings))
        clients.append(TestClient(app, raise_server_exceptions=False))
        clients[-1].__enter__()
        return clients[-1]

    yield start
    for client in clients:
        client.__exit__(None, None, None)


CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "How do I paint a car?"}]}


@pytest.fixture
def chat() -> dict[str, Any]:
    """A request."""
    return {**CHAT}
