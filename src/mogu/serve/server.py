"""A server process: where it listens, and how it ends.

On SIGTERM or Ctrl-C it takes no more requests (503), finishes those that it has, for at most ``settings.grace``
seconds, and ends with status 0. A second signal ends it at once.
"""

from __future__ import annotations

import socket
import time
from types import FrameType

import uvicorn
from fastapi import FastAPI

from mogu.errors import ConfigError
from mogu.serve import logs
from mogu.serve.state import State

_LAST_SECONDS = 5
"""For connections to close when all is answered, or the grace is over."""


def bind(host: str, port: int) -> socket.socket:
    """A socket that is bound and does not listen yet, so that a port that is taken is told before a model is loaded.

    Raises:
        ConfigError: It cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot listen on {host}:{port}: {reason}; choose another --host or --port") from error
    return bound


def url_of(bound: socket.socket) -> str:
    """Where clients find it."""
    host, port = bound.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class Server(uvicorn.Server):
    """uvicorn that finishes what it has while it refuses what comes."""

    def __init__(self, app: FastAPI) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                ws="none",
                lifespan="on",
                timeout_graceful_shutdown=_LAST_SECONDS,
            )
        )
        self.state: State = app.state.mogu
        self._leave_at = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Of a signal. uvicorn's own would stop to listen at once, and raise the signal again at the end."""
        if self.state.draining:
            self.should_exit = self.force_exit = True
        self._leave_at = time.monotonic() + self.state.settings.grace
        self.state.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: leave when all is answered, or the grace is over."""
        state = self.state
        if state.draining and not self.should_exit:
            over = time.monotonic() >= self._leave_at
            if over and state.running:
                logs.tell("grace is over", running=state.running)
                await state.close_engine()
            self.should_exit = over or not state.running
        return await super().on_tick(counter)


def run(app: FastAPI, bound: socket.socket) -> None:
    """Serve until a signal comes."""
    server = Server(app)
    logs.tell("listening", url=url_of(bound), model=server.state.served.name)
    server.run(sockets=[bound])
    logs.tell("ended")
