"""Which requests share a batch, with a model that only repeats what it is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import anyio
import pytest

from mogu.integrations.batching import Batcher
from mogu.integrations.complete import Completion, Settings

SHORT, LONG = Settings(new_tokens=1), Settings(new_tokens=2)


class Echo:
    """Says the prompt's number; remembers its batches; fails at number 13."""

    def __init__(self) -> None:
        self.batches: list[tuple[list[int], Settings]] = []

    def __call__(self, prompts: Sequence[Sequence[int]], settings: Settings) -> list[list[Completion]]:
        self.batches.append(([prompt[0] for prompt in prompts], settings))
        if any(prompt[0] == 13 for prompt in prompts):
            raise ValueError("thirteen")
        return [[Completion(str(prompt[0]), 1, "stop")] for prompt in prompts]


def ask(size: int, requests: Sequence[tuple[int, Settings]]) -> tuple[Echo, dict[int, str]]:
    """All requests at once; answers, or errors, by number."""
    echo, found = Echo(), {}

    async def one(batcher: Batcher, number: int, settings: Settings) -> None:
        try:
            found[number] = (await batcher.answer([number], settings))[0].text
        except ValueError as error:
            found[number] = f"error: {error}"

    async def everything() -> None:
        batcher = Batcher(echo, size)
        async with anyio.create_task_group() as group:
            for number, settings in requests:
                group.start_soon(one, batcher, number, settings)

    anyio.run(everything)
    return echo, found


def test_what_waits_together_is_answered_together() -> None:
    echo, found = ask(4, [(number, SHORT) for number in range(6)])
    assert [numbers for numbers, _ in echo.batches] == [[0, 1, 2, 3], [4, 5]]
    assert found == {number: str(number) for number in range(6)}


def test_other_settings_are_another_batch() -> None:
    echo, found = ask(4, [(0, SHORT), (1, LONG), (2, SHORT), (3, LONG)])
    assert echo.batches == [([0, 2], SHORT), ([1, 3], LONG)]
    assert len(found) == 4


def test_seeded_sampling_shares_no_batch() -> None:
    seeded = Settings(new_tokens=1, temperature=1.0, seed=5)
    echo, _ = ask(4, [(number, seeded) for number in range(3)])
    assert [numbers for numbers, _ in echo.batches] == [[0], [1], [2]]


def test_an_error_reaches_its_batch_and_no_other() -> None:
    _, found = ask(2, [(number, SHORT) for number in (1, 13, 2, 3)])
    assert found == {1: "error: thirteen", 13: "error: thirteen", 2: "2", 3: "3"}


def test_a_cancelled_request_is_not_asked() -> None:
    echo = Echo()

    async def everything() -> None:
        batcher = Batcher(echo, 2)
        with anyio.move_on_after(0):
            await batcher.answer([7], SHORT)
        assert (await batcher.answer([8], SHORT))[0].text == "8"

    anyio.run(everything)
    assert [numbers for numbers, _ in echo.batches] == [[8]]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_it_works_on_either_event_loop(backend: str) -> None:
    pytest.importorskip(backend)
    echo = Echo()
    answer: Callable[[], object] = lambda: Batcher(echo, 2).answer([1], SHORT)  # noqa: E731
    assert anyio.run(answer, backend=backend)[0].text == "1"
