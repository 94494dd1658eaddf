"""Requests that wait at the same time are answered as one batch, in a worker thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import anyio
import anyio.to_thread

from mogu.integrations.complete import Completion, Settings

_GATHER_SECONDS = 0.02
"""How long the first of several requests waits for the others; decoding takes far longer."""

Complete = Callable[[Sequence[Sequence[int]], Settings], list[list[Completion]]]
"""Answers to prompts of one batch."""


@dataclass(eq=False)
class _Request:
    prompt: Sequence[int]
    settings: Settings
    answer: list[Completion] | None = None
    error: Exception | None = None

    @property
    def done(self) -> bool:
        return self.answer is not None or self.error is not None


class Batcher:
    """Whoever gets the model takes along all that wait with the same settings, up to ``size``."""

    def __init__(self, complete: Complete, size: int) -> None:
        self.complete, self.size = complete, size
        self._waiting: list[_Request] = []
        self._model = anyio.Lock()

    async def answer(self, prompt: Sequence[int], settings: Settings) -> list[Completion]:
        """The answers to one prompt; the event loop stays free. Errors of the batch are raised for each member."""
        request = _Request(prompt, settings)
        self._waiting.append(request)
        try:
            async with self._model:
                if not request.done:
                    await anyio.sleep(_GATHER_SECONDS)
                    batch = self._take(request)
                    await anyio.to_thread.run_sync(self._run, batch)
        finally:
            if request in self._waiting:  # cancelled
                self._waiting.remove(request)
        if request.error is not None:
            raise request.error
        assert request.answer is not None
        return request.answer

    def _take(self, request: _Request) -> list[_Request]:
        """``request`` and those that fit it, which wait no longer."""
        others = [one for one in self._waiting if one is not request and one.settings == request.settings]
        batch = [request, *([] if request.settings.alone else others[: self.size - 1])]
        self._waiting = [one for one in self._waiting if one not in batch]
        return batch

    def _run(self, batch: list[_Request]) -> None:
        try:
            answers = self.complete([one.prompt for one in batch], batch[0].settings)
            for one, answer in zip(batch, answers, strict=True):
                one.answer = answer
        except Exception as error:  # it belongs to the requests, not to the thread
            for one in batch:
                one.error = error
