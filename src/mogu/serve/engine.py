"""Continuous batching in one model: answers begin and end between steps, routed and plain ones in one forward.

transformers' own continuous batching (5.17) was looked at first. It packs all rows into one sequence for a paged cache;
on a CPU it gathers that cache anew in every layer and lets every query see the keys of all rows under a mask. What it
cannot express: which tokens are routed and with which δ (nothing of a request reaches the layers), router logits for
the risk, a request that drops a part of its cache and reads again, penalties and a seed for each request; an exception
in a forward ends all requests. Hence this engine: a cache of slots (:mod:`mogu.serve.slots`), forwards of rows
(:mod:`mogu.serve.reader`), and a thread that decides between them what is read next.

In each step, prompts and re-reads are read within a budget of tokens, and every running row writes one token.
"""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import psutil
import torch

from mogu.adapter.config import MoguConfig
from mogu.adapter.model import active_config
from mogu.adapter.risk import MISSING
from mogu.decode.adaptive import Thinking, thinking_of
from mogu.errors import GenerationError, MoguError
from mogu.serve.checks import check
from mogu.serve.detokenize import TextStream
from mogu.serve.places import Places
from mogu.serve.prefixes import Prefixes
from mogu.serve.reader import Depth, Part, Reader
from mogu.serve.requests import Listener, Load, Opening, Piece, Prompt, Sampling, Ticket
from mogu.serve.routers import Seen, opening, weights_of
from mogu.serve.rows import Phase, Row
from mogu.serve.sampling import Choice, Drawer, choose
from mogu.serve.scheduler import alike, columns_for, portions
from mogu.serve.waiting import CLOSED, Waiting

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

ROOMY = 2048
"""Tokens for which each row has room by default, where memory allows it."""
_SHARE = 0.5
"""Most of the free memory that the cache takes by default."""


class LocalEngine:
    """A :class:`mogu.serve.requests.Engine` on a model in this process, which is the engine's alone until it is closed.

    Args:
        model: What :func:`mogu.load` returns, with an adapter or without.
        tokenizer: Its tokenizer.
        rows: Most answers in the making at once.
        kv_tokens: Most tokens whose keys and values are held; default: as many as half of the free memory holds, but no
            more than 2,048 for each row.
        waiting: Most answers that wait for their turn.
        prefill_tokens: Prompt tokens that are read between two steps of the running answers.
        prefixes: Share of ``kv_tokens`` that beginnings of prompts may take in addition; 0 reads all anew.

    Raises:
        ModelError: An architecture whose cache cannot hold rows that begin and end by themselves.
        AdapterError: The adapter is switched off or not in the routed stage.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        rows: int = 16,
        kv_tokens: int | None = None,
        waiting: int = 64,
        prefill_tokens: int = 256,
        prefixes: float = 0.125,
    ) -> None:
        for name, value in (("rows", rows), ("waiting", waiting), ("prefill_tokens", prefill_tokens)):
            if value < 1:
                raise GenerationError(f"{name} must be at least 1, not {value}")
        self.tokenizer, self.rows, self.prefill_tokens = tokenizer, rows, prefill_tokens
        self.adapter: MoguConfig | None = active_config(model) if hasattr(model, "peft_config") else None
        self.thinking: Thinking | None = None
        if (found := self.adapter) is not None:
            self.thinking = thinking_of(found.think, found.think_tokens, found.think_limit)
        self.reader = Reader(model)
        self.reader.__enter__()
        limit = getattr(self.reader.config, "max_position_embeddings", None) or 2**20
        self.kv_tokens = kv_tokens or _affordable(self.reader, rows, limit)
        self._context = min(limit, self.kv_tokens)
        self.reader.start(self.kv_tokens, columns_for(1, 1, self.kv_tokens, rows) or 1)
        self.prefixes = Prefixes(int(prefixes * self.kv_tokens))
        generation = self.reader.model.generation_config
        ends = generation.eos_token_id
        self.ends = frozenset([] if ends is None else [ends] if isinstance(ends, int) else ends)
        self.repetition = float(generation.repetition_penalty or 1.0)
        self._waiting = Waiting(waiting)
        self._places = Places(self.reader.slots, rows, self.kv_tokens)
        self._generated = self._prefilled = 0
        self._thread = threading.Thread(target=self._run, name="mogu-engine", daemon=True)
        self._thread.start()

    # asked from any thread

    @property
    def context(self) -> int:
        """Most tokens of prompt and answer together: what the model reads, or what the cache holds."""
        return self._context

    def submit(self, prompt: Prompt, listener: Listener, *, head_only: bool = False) -> Ticket:
        """As :meth:`mogu.serve.requests.Engine.submit`.

        With ``head_only`` the answer ends where the plain base would take over: its last piece is ``handed_over`` and
        has no finish. What is plain from the start is no head: it needs ``routed_tokens`` above 0.
        """
        check(prompt, self._context, self.reader.config.vocab_size)
        routing = prompt.routing
        row = Row(
            prompt,
            listener,
            0,
            Drawer(prompt.sampling, prompt.ids, self.repetition),
            TextStream(self.tokenizer, prompt.sampling.stop),
            None,
        )
        if self.adapter is not None:
            asked = routing.routed_tokens
            row.routed_tokens = self.adapter.routed_tokens if asked is None else asked
            row.handover = routing.handover or self.adapter.handover
            row.thinking = self.thinking
            if row.handover == "risk" and self.adapter.risk is None and row.routed_tokens:
                raise GenerationError(MISSING)
            row.shift = self.adapter.shift + routing.dial if row.routed_tokens else None
            row.keeps_states = self.reader.keeps_states
            row.leaves = head_only
        self._waiting.put(row)
        return row

    def read(self, ids: tuple[int, ...], listener: Listener) -> Ticket:
        """As :meth:`mogu.serve.requests.Engine.read`."""
        prompt = Prompt(tuple(ids), Sampling(max_tokens=1))
        check(prompt, self._context, self.reader.config.vocab_size)
        shift = None if self.adapter is None else self.adapter.shift
        row = Row(prompt, listener, 0, None, None, shift)
        self._waiting.put(row)
        return row

    def load(self) -> Load:
        """As :meth:`mogu.serve.requests.Engine.load`."""
        return Load(
            waiting=len(self._waiting),
            running=len(self._places.active),
            rows=self.rows,
            kv_tokens=self._places.held + self.prefixes.tokens,
            kv_limit=self.kv_tokens + self.prefixes.most,
            generated=self._generated,
            prefilled=self._prefilled,
        )

    def close(self, drain: bool = True) -> None:
        """As :meth:`mogu.serve.requests.Engine.close`; the model is free again afterwards."""
        self._waiting.close(drain)
        if self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close(drain=False)

    # the thread

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while self._waiting.wait(bool(self._places.active)):
                    try:
                        self._step()
                    except Exception as error:  # of our own making: every row is told, and the engine goes on
                        log.exception("a step of the engine failed")
                        self._fail(list(self._places.active) or self._next(), error)
        finally:
            self._fail([*self._places.active, *self._waiting.end()], GenerationError(CLOSED))
            self.reader.__exit__()

    def _next(self) -> list[Row]:
        """The row that waits for longest, taken from the queue."""
        row = self._waiting.first()
        return [row] if row is not None and self._waiting.take(row) else []

    def _step(self) -> None:
        places = self._places
        for row in [row for row in places.active if row.cancelled]:
            places.free(row)
        self._admit()
        reading = [row for row in places.active if row.reads]
        if reading:
            self._read_some(sorted(reading, key=lambda row: row.number))
        if any(not row.reads for row in places.active):
            for row in places.make_room():
                self._waiting.put_back(row)
            running = [row for row in places.active if not row.reads]
            if running:
                self._guarded(running, self._write)

    def _admit(self) -> None:
        while (row := self._waiting.first()) is not None and self._places.fit(row):
            if self._waiting.take(row):
                self._places.give(row)

    def _guarded(self, rows: list[Row], act: Callable[[list[Row]], None]) -> None:
        """A failing forward costs its own rows their answers, and nothing else."""
        try:
            act(rows)
            return
        except Exception as error:
            log.warning("a forward of %d rows failed: %s: %s", len(rows), type(error).__name__, error)
            told = error.with_traceback(None)
        left = [row for row in rows if row in self._places.active]  # others were complete before it failed
        for row in left:
            self.reader.slots.clear(row.slot)
        self._fail(left, told)
        if isinstance(told, (torch.OutOfMemoryError, MemoryError)):
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    # forwards

    def _read_some(self, rows: list[Row]) -> None:
        for row in rows:
            if row.read == 0 and not row.shared:
                self._begin(row)
        lengths = portions([row.remaining for row in rows], self.prefill_tokens)
        for phase in (Phase.REREADING, Phase.READING):
            mine = [length if row.phase is phase else 0 for row, length in zip(rows, lengths, strict=True)]
            for group in alike(mine):
                counts = [mine[index] for index in group]
                self._guarded([rows[index] for index in group], partial(self._read, counts=counts))

    def _begin(self, row: Row) -> None:
        """A row takes over what another one read of the same beginning."""
        if row.prompt.routing.trace and row.shift is not None:
            return  # it tells the weights of every token
        length, contents = self.prefixes.find(row.shift, row.prompt.ids)
        if length:
            self.reader.slots.copy_in(row.slot, contents)
            row.read = row.shared = length

    def _read(self, rows: list[Row], counts: Sequence[int]) -> None:
        parts = [
            Part(row.slot, row.read, row.tokens[row.read : row.read + count], row.shift)
            for row, count in zip(rows, counts, strict=True)
        ]
        depth: Depth = "upper" if rows[0].phase is Phase.REREADING else "whole"
        logits, routers = self.reader.read(parts, depth)
        self._prefilled += sum(counts)
        for index, (row, count) in enumerate(zip(rows, counts, strict=True)):
            row.read += count
            if row.prompt.routing.trace and row.shift is not None and not row.opened and routers is not None:
                row.trace += weights_of(routers[:, :, index, -count:], row.shift)
        ready = [index for index, row in enumerate(rows) if not row.remaining]
        if not ready:
            return
        for index in ready:
            self._share(rows[index])
        seen = Seen.of(routers, [row.shift for row in rows], self._risk, [row.opened for row in rows])
        for index in ready:
            row = rows[index]
            if not row.opened:
                row.opened = True
                self._tell(row, opening(seen, index, tuple(row.trace)))
                row.trace = []
            if row.drawer is None:
                self._places.free(row)
            row.phase, row.lower = Phase.RUNNING, 0
        ready = [index for index in ready if rows[index].slot >= 0]
        if ready:
            assert logits is not None
            self._choose([rows[index] for index in ready], logits[ready], seen, ready)

    def _share(self, row: Row) -> None:
        """Keep what this prompt begins with, if another began likewise."""
        length = self.prefixes.common(row.shift, row.prompt.ids)
        if length:
            self.prefixes.keep(row.shift, row.prompt.ids[:length], self.reader.slots.copy_out(row.slot, length))

    def _write(self, rows: list[Row]) -> None:
        """Every running row reads its newest token, and writes the next unless it hands over."""
        rows = self._places.gather(rows)
        parts = [Part(row.slot, row.read, row.tokens[row.read :], row.shift) for row in rows]
        closing = all(row.phase is Phase.CLOSING for row in rows)
        logits, routers = self.reader.read(parts, "lower" if closing else "whole")
        writing = []
        for index, row in enumerate(rows):
            row.read += 1
            if row.phase is Phase.CLOSING:
                row.closed()
            else:
                writing.append(index)
        if writing:
            assert logits is not None
            seen = Seen.of(routers, [row.shift for row in rows], self._risk, [row.opened for row in rows])
            chosen = logits if len(writing) == len(rows) else logits[writing]
            self._choose([rows[index] for index in writing], chosen, seen, writing)

    def _choose(self, rows: list[Row], logits: torch.Tensor, seen: Seen, places: Sequence[int]) -> None:
        choices = choose(logits, [row.drawer for row in rows if row.drawer is not None])
        for row, choice, place in zip(rows, choices, places, strict=True):
            if choice.token < 0:
                self.reader.slots.clear(row.slot)
                self._fail(
                    [row], GenerationError("the model gave numbers that are not finite; the answer was given up")
                )
                continue
            self._add(row, choice, seen, place)

    def _add(self, row: Row, choice: Choice, seen: Seen, place: int) -> None:
        """One more token of an answer."""
        assert row.drawer is not None
        assert row.text is not None
        row.tokens.append(choice.token)
        row.drawer.take(choice.token)
        self._generated += 1
        routed, risk = row.shift is not None, seen.risk(place)
        last = row.written >= row.prompt.sampling.max_tokens
        text, finish = row.text.write(choice.token, choice.token in self.ends, last)
        weights = seen.weights(place) if routed and row.prompt.routing.trace else None
        threshold = 0.0 if self.adapter is None else self.adapter.risk_threshold
        due = finish is None and row.due(risk, threshold)
        piece = Piece(choice.token, text, routed, finish, choice.logprob, choice.top, risk, weights, due)
        if finish is not None or (due and row.leaves):
            self._places.free(row)
        elif due:
            row.hand_over()
        self._tell(row, piece)

    @property
    def _risk(self) -> dict[str, Any] | None:
        return None if self.adapter is None else self.adapter.risk

    # listeners

    def _tell(self, row: Row, what: Opening | Piece | Exception) -> None:
        if row.cancelled:
            return
        try:
            row.listener(what)
        except Exception:
            log.exception("a listener failed; its answer is given up")
            row.cancelled = True

    def _fail(self, rows: Sequence[Row], error: Exception) -> None:
        for row in rows:
            self._places.free(row)
            self._tell(row, error if isinstance(error, MoguError) else _explained(error))


def _explained(error: Exception) -> Exception:
    """Its own exception for each answer."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return GenerationError(
            "out of memory while answering; ask again, or lower rows or prefill_tokens of the engine"
        )
    made = GenerationError(f"the model failed: {type(error).__name__}: {error}")
    made.__cause__ = error
    return made


def _affordable(reader: Reader, rows: int, context: int) -> int:
    """Tokens for the cache: no more than half of the memory that is free."""
    device = reader.device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    each = max(reader.slots.bytes_per_token, 1)
    return max(min(rows * min(context, ROOMY), int(_SHARE * free / each)), min(context, 256))
