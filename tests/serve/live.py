"""Real servers on loopback ports, over the scripted engine."""

from __future__ import annotations

import threading
from typing import Any

import scripted

from mogu.serve.app import create_app
from mogu.serve.server import Server, bind, url_of


class Serving:
    """A server on a thread; ``stop`` is what SIGTERM does."""

    def __init__(self, engine: scripted.Scripted, **settings: Any) -> None:
        self.server = Server(create_app(engine, scripted.tokenizer(), scripted.settings(**settings)))
        bound = bind("127.0.0.1", 0)
        bound.listen()
        self.url = url_of(bound)
        self.thread = threading.Thread(target=self.server.run, args=([bound],))
        self.thread.start()

    def stop(self) -> None:
        self.server.handle_exit(15, None)
