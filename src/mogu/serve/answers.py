"""From the engine's thread to the event loop: what several answers of one request tell, in the order of its coming."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from functools import partial

from mogu.serve.errors import timed_out
from mogu.serve.requests import Engine, Listener, Opening, Piece, Prompt, Ticket

Event = Opening | Piece


class Answers:
    """Answers in the making, of one request. Made on the event loop; they begin at once.

    Raises:
        QueueFullError: As :meth:`Engine.submit`; nothing of the request is left in the queue.
        GenerationError: Likewise.
    """

    def __init__(
        self, asks: Sequence[Callable[[Listener], Ticket]], *, ends: type[Event], deadline: float, timeout: float
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event | Exception]] = asyncio.Queue()
        self._ends, self._deadline, self._timeout = ends, deadline, timeout
        self._open = set(range(len(asks)))
        self._tickets: list[Ticket] = []
        try:
            for index, ask in enumerate(asks):
                self._tickets.append(ask(partial(self._hear, index)))
        except BaseException:
            self.cancel()
            raise

    @property
    def open(self) -> bool:
        """Whether more will come."""
        return bool(self._open)

    async def next(self) -> tuple[int, Event]:
        """Which answer, and what came of it.

        Raises:
            ApiError: The request took too long.
            Exception: What the engine met. All answers are cancelled then.
        """
        try:
            async with asyncio.timeout_at(self._deadline):
                index, event = await self._events.get()
        except TimeoutError:
            self.cancel()
            raise timed_out(self._timeout) from None
        if isinstance(event, Exception):
            self._open.discard(index)
            self.cancel()
            raise event
        if isinstance(event, self._ends) and getattr(event, "finish", "stop") is not None:
            self._open.discard(index)
        return index, event

    def cancel(self) -> None:
        """Free the rows of answers that are not complete; safe twice."""
        for index, ticket in enumerate(self._tickets):
            if index in self._open:
                ticket.cancel()
        self._open.clear()

    def _hear(self, index: int, event: Event | Exception) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))


def answer(engine: Engine, prompts: Sequence[Prompt], *, deadline: float, timeout: float) -> Answers:
    """Submit ``prompts``; ``deadline`` is in the event loop's time, ``timeout`` what is said of it, in seconds."""
    asks = [partial(engine.submit, prompt) for prompt in prompts]
    return Answers(asks, ends=Piece, deadline=deadline, timeout=timeout)


def read(engine: Engine, prompts: Sequence[tuple[int, ...]], *, deadline: float, timeout: float) -> Answers:
    """Read ``prompts`` (token ids) without answering them: one :class:`Opening` each."""
    asks = [partial(engine.read, ids) for ids in prompts]
    return Answers(asks, ends=Opening, deadline=deadline, timeout=timeout)
