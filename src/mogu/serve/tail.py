"""Answers in two places: the routed head here, the plain tail on an engine elsewhere.

The base is plain after the hand-over, so any engine that serves it can go on from the token ids of prompt and head.
What the tail says is turned into text here, so that half characters and stop strings that lie across the hand-over come
out as if one process had written them.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import random
import threading
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from mogu.errors import ConfigError, GenerationError, QueueFullError
from mogu.serve.checks import check
from mogu.serve.detokenize import TextStream
from mogu.serve.errors import TailError
from mogu.serve.logs import tell
from mogu.serve.requests import NO_TOKEN, Listener, Load, Opening, Piece, Prompt, Sampling, Ticket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mogu.serve.engine import LocalEngine
    from mogu.serve.upstream import Delta, Upstream

_CLOSED = "the engine is closed"


class _Answer:
    """One answer in the making, in the head or in the tail."""

    def __init__(self, engine: TailEngine, prompt: Prompt, listener: Listener) -> None:
        self.engine, self.prompt, self.listener = engine, prompt, listener
        self.text = TextStream(engine.tokenizer, prompt.sampling.stop)
        self.written: list[int] = []
        self.head: Ticket | None = None
        self.tail: asyncio.Task[None] | None = None
        self.over = False
        """Whether its listener is told nothing more."""

    def cancel(self) -> None:
        """As :meth:`mogu.serve.requests.Ticket.cancel`; the engine elsewhere sees its client go away."""
        self.engine.forget(self)
        if self.head is not None:
            self.head.cancel()
        self.engine.in_loop(self.stop)

    def stop(self) -> None:
        """On the loop's thread."""
        if self.tail is not None:
            self.tail.cancel()

    def hear(self, what: Opening | Piece | Exception) -> None:
        """What the head tells, on its thread."""
        if isinstance(what, Piece) and what.finish is None:
            self.written.append(what.token)
            self.text.push(what.token)  # what waits in it waits in the tail, too
        self.tell(what)
        if isinstance(what, Piece) and what.handed_over:
            self.engine.in_loop(self.hand_over)

    def begin_plain(self) -> None:
        """On the loop's thread: there is no head."""
        self.tell(Opening(None, None, None))
        self.hand_over()

    def hand_over(self) -> None:
        """On the loop's thread."""
        if not self.over:
            self.tail = asyncio.get_running_loop().create_task(self.engine.go_on(self))

    def tell(self, what: Opening | Piece | Exception) -> None:
        """Pass on, unless it is over."""
        if self.over:
            return
        if isinstance(what, Exception) or (isinstance(what, Piece) and what.finish is not None):
            self.engine.forget(self)
        self.listener(what)

    def rest(self) -> Sampling:
        """How the tail is drawn."""
        sampling = self.prompt.sampling
        seed = sampling.seed
        if seed is not None:  # with the same numbers again, the tail would be drawn as the head was
            seed = random.Random(f"{seed} {len(self.written)}").getrandbits(31)
        return replace(sampling, max_tokens=sampling.max_tokens - len(self.written), seed=seed)

    def pieces(self, delta: Delta) -> Iterator[Piece]:
        """What an event of the tail's stream adds."""
        if delta.tokens is None:
            yield from self._said(delta.text)
        for one in delta.tokens or ():
            if one.token >= self.engine.vocabulary:
                raise TailError(f"serves another base: token {one.token} is not in this one's vocabulary")
            self.written.append(one.token)
            last = len(self.written) >= self.prompt.sampling.max_tokens
            text, finish = self.text.write(one.token, one.token in self.engine.ends, last)
            yield Piece(one.token, text, False, finish, one.logprob, one.top)
        if delta.finish is not None:
            yield Piece(NO_TOKEN, self.text.end(), False, delta.finish)

    def _said(self, new: str) -> Iterator[Piece]:
        """Text whose tokens are not known: they are counted by this tokenizer."""
        text, stopped = self.text.add(new)
        ids = self.engine.ids_of(new)
        self.written += ids
        for token in ids[:-1]:
            yield Piece(token, "", False)
        yield Piece(ids[-1] if ids else NO_TOKEN, text, False, "stop" if stopped else None)


class TailEngine:
    """A :class:`mogu.serve.requests.Engine` whose answers are begun by ``head`` and continued by ``upstream``.

    Args:
        head: An engine with an adapter; it belongs to this one.
        upstream: The plain base, elsewhere.
        most: Most answers that are waiting or in the making, here and there.

    Raises:
        ConfigError: ``head`` has no adapter, so that nothing would be computed here.
    """

    def __init__(self, head: LocalEngine, upstream: Upstream, *, most: int = 256) -> None:
        if head.adapter is None:
            raise ConfigError("a tail elsewhere needs an --adapter here: without one there is no head")
        self.head, self.upstream, self.most = head, upstream, most
        self.tokenizer = copy.deepcopy(head.tokenizer)  # two threads must not use one
        self.ends, self.vocabulary = head.ends, head.reader.config.vocab_size
        self._routed_tokens = head.adapter.routed_tokens
        self._answers: set[_Answer] = set()
        self._changed = threading.Condition()
        self._closing = False
        self._generated = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mogu-tail", daemon=True)
        self._thread.start()

    def look(self) -> None:
        """Ask the engine elsewhere for its models, and learn its context.

        Raises:
            ApiError: It is away, or serves something else.
        """
        asyncio.run_coroutine_threadsafe(self.upstream.look(), self._loop).result()

    @property
    def context(self) -> int:
        """Most tokens that both engines take."""
        return min(self.head.context, self.upstream.context or self.head.context)

    def submit(self, prompt: Prompt, listener: Listener) -> Ticket:
        """As :meth:`mogu.serve.requests.Engine.submit`."""
        asked = prompt.routing.routed_tokens
        answer = _Answer(self, prompt, listener)
        with self._changed:
            if self._closing:
                raise QueueFullError(_CLOSED)
            if len(self._answers) >= self.most:
                raise QueueFullError(f"{len(self._answers)} answers are in the making already; come back later")
            self._answers.add(answer)
        try:
            if (self._routed_tokens if asked is None else asked) > 0:
                answer.head = self.head.submit(prompt, answer.hear, head_only=True)
            else:  # plain from the start
                check(prompt, self.context, self.vocabulary)
                self.in_loop(answer.begin_plain)
        except BaseException:
            self.forget(answer)
            raise
        return answer

    def read(self, ids: tuple[int, ...], listener: Listener) -> Ticket:
        """As :meth:`mogu.serve.requests.Engine.read`: here alone."""
        return self.head.read(ids, listener)

    def load(self) -> Load:
        """As :meth:`mogu.serve.requests.Engine.load`; keys and values of tails lie elsewhere."""
        load = self.head.load()
        with self._changed:
            tails = sum(answer.tail is not None for answer in self._answers)
        return replace(
            load, running=load.running + tails, rows=load.rows + tails, generated=load.generated + self._generated
        )

    def close(self, drain: bool = True) -> None:
        """As :meth:`mogu.serve.requests.Engine.close`."""
        with self._changed:
            self._closing = True
        self.head.close(drain)
        with self._changed:
            while drain and self._answers:
                self._changed.wait()
            left = list(self._answers)
        for answer in left:
            answer.tell(GenerationError(_CLOSED))
            self.in_loop(answer.stop)
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._leave(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def __enter__(self) -> TailEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close(drain=False)

    # for answers

    def forget(self, answer: _Answer) -> None:
        """It is over."""
        answer.over = True
        with self._changed:
            self._answers.discard(answer)
            self._changed.notify_all()

    def in_loop(self, act: Callable[[], object]) -> None:
        """Call ``act`` on the thread of the tails, while there is one."""
        with suppress(RuntimeError):  # it is closed
            self._loop.call_soon_threadsafe(act)

    def ids_of(self, text: str) -> list[int]:
        """Tokens that ``text`` may have had."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    async def go_on(self, answer: _Answer) -> None:
        """The tail of one answer."""
        try:
            ids = [*answer.prompt.ids, *answer.written]
            async with aclosing(self.upstream.go_on(ids, answer.rest())) as deltas:
                async for delta in deltas:
                    for piece in answer.pieces(delta):
                        self._generated += piece.token != NO_TOKEN
                        answer.tell(piece)
                        if piece.finish is not None:
                            return
        except asyncio.CancelledError:
            raise
        except Exception as error:
            tell("tail failed", logging.WARNING, reason=str(error), url=self.upstream.url)
            answer.tell(error)

    async def _leave(self) -> None:
        mine = asyncio.current_task()
        left = [task for task in asyncio.all_tasks() if task is not mine]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self.upstream.close()
