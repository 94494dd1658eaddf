"""A little OpenAI-compatible endpoint on localhost: a real server that answers as a test tells it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, dict[str, Any] | str] | tuple[int, dict[str, Any] | str, dict[str, str]]


def message(text: str | None) -> tuple[int, dict[str, Any]]:
    """A successful answer of a model."""
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}


def error(status: int, text: str, **headers: str) -> Reply:
    """A failure in OpenAI's form."""
    return status, {"error": {"message": text, "type": "error"}}, headers


@dataclass
class ChatServer:
    """Where it listens, and what it was sent."""

    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    busiest: int = 0
    """Requests at a time, at most."""


@contextmanager
def chat_server(answer: Callable[[int, dict[str, Any]], Reply]) -> Iterator[ChatServer]:
    """Serve ``answer(number, request)`` at ``/v1/chat/completions``; requests are numbered from 0 as they arrive."""
    lock, now = threading.Lock(), [0]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                now[0] += 1
                shown.busiest = max(shown.busiest, now[0])
                number = len(shown.requests)
                shown.requests.append(request)
                shown.headers.append({name.lower(): value for name, value in self.headers.items()})
            try:
                found = (404, "no such path") if self.path != "/v1/chat/completions" else answer(number, request)
                status, body, headers = found if len(found) == 3 else (*found, {})
            finally:
                with lock:
                    now[0] -= 1
            data = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    shown = ChatServer(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield shown
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
