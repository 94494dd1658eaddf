"""An engine that says what a test tells it to say, when the test lets it: the contract without a model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import small
from transformers import PreTrainedTokenizerFast

from mogu.errors import GenerationError, QueueFullError
from mogu.serve.requests import Finish, Listener, Load, Opening, Piece, Prompt, Weights
from mogu.serve.settings import Served, Settings

LAYERS = (1, 2)
MALICIOUS = "steal"
_WORDS = (
    "<pad> <s> </s> <unk> <user> <system> <assistant> <tool> I will help more x Sure cannot with that. How do paint"
)
_MORE = "steal a car? 0 1 2 3 4 5 6 7"


def tokenizer() -> PreTrainedTokenizerFast:
    """One word per token, with the chat template of :mod:`small`."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    words = f"{_WORDS} {_MORE}".split()
    core = Tokenizer(WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    made.chat_template = small.CHAT
    return made


@dataclass
class Ticket:
    """One answer; the test sees whether it was cancelled."""

    prompt: Prompt | tuple[int, ...]
    cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        self.cancelled.set()


class Scripted:
    """Answers ``answer(prompt, number)`` (words), where ``number`` counts the prompts since the start.

    ``hold`` is waited for before each word but the first; ``fail`` is told instead of the second word.
    """

    context = 64

    def __init__(
        self,
        answer: Callable[[Prompt, int], Sequence[str]] = lambda prompt, number: ("I", "will", "help"),
        *,
        fail: Exception | None = None,
        waiting: int = 100,
        kv_limit: int = 1000,
        risk: bool = True,
    ) -> None:
        self.words = tokenizer()
        self.answer, self.fail, self.limit, self.kv_limit, self.calibrated = answer, fail, waiting, kv_limit, risk
        self.go = threading.Event()
        self.go.set()
        self.begun = threading.Semaphore(0)
        self.tickets: list[Ticket] = []
        self.threads: list[threading.Thread] = []
        self.generated = self.prefilled = self.running = 0
        self.closed: list[bool] = []
        self._lock = threading.Lock()

    @property
    def prompts(self) -> list[Prompt]:
        return [ticket.prompt for ticket in self.tickets if isinstance(ticket.prompt, Prompt)]

    def submit(self, prompt: Prompt, listener: Listener) -> Ticket:
        if len(prompt.ids) + prompt.sampling.max_tokens > self.context:
            raise GenerationError("longer than the context")
        return self._start(prompt, listener, self._say)

    def read(self, ids: tuple[int, ...], listener: Listener) -> Ticket:
        return self._start(ids, listener, lambda ticket, listener: listener(self._opening(ids, False)))

    def load(self) -> Load:
        return Load(0, self.running, 4, 7 * self.running, self.kv_limit, self.generated, self.prefilled)

    def close(self, drain: bool = True) -> None:
        self.closed.append(drain)
        self.fail = self.fail or RuntimeError("closed")
        self.go.set()
        for thread in self.threads:
            thread.join()

    def _start(self, prompt: Any, listener: Listener, work: Callable[[Ticket, Listener], None]) -> Ticket:
        with self._lock:
            if self.running >= self.limit:
                raise QueueFullError("as many wait as may")
            self.running += 1
        ticket = Ticket(prompt)
        self.tickets.append(ticket)
        self.threads.append(threading.Thread(target=self._run, args=(ticket, listener, work)))
        self.threads[-1].start()
        return ticket

    def _run(self, ticket: Ticket, listener: Listener, work: Callable[[Ticket, Listener], None]) -> None:
        try:
            work(ticket, listener)
        except Exception as error:
            listener(error)
        finally:
            with self._lock:
                self.running -= 1

    def _say(self, ticket: Ticket, listener: Listener) -> None:
        prompt = ticket.prompt
        assert isinstance(prompt, Prompt)
        self.prefilled += len(prompt.ids)
        plain = prompt.routing.routed_tokens == 0
        listener(Opening(None, None, None) if plain else self._opening(prompt.ids, prompt.routing.trace))
        said = list(self.answer(prompt, self.tickets.index(ticket)))
        cut = said[: prompt.sampling.max_tokens]
        ended = len(said) < prompt.sampling.max_tokens
        for place, word in enumerate([*cut, "</s>"] if ended else cut):
            if place == 1:
                self.begun.release()
                while not self.go.wait(0.01):
                    if ticket.cancelled.is_set():
                        return
                if self.fail is not None:
                    return listener(self.fail)
            finish: Finish | None = (
                "stop" if word == "</s>" else "length" if not ended and place == len(cut) - 1 else None
            )
            self.generated += 1
            listener(self._piece(prompt, place, word, finish))

    def _opening(self, ids: tuple[int, ...], trace: bool) -> Opening:
        bad = MALICIOUS in self.words.decode(ids)
        weights = Weights((0.9, 0.8), (0.1, 0.2)) if bad else Weights((0.1, 0.2), (0.9, 0.8))
        told = (weights,) * len(ids) if trace else ()
        unwill, glad = (sum(part) / 2 for part in (weights.unwill, weights.glad))
        return Opening((0.97 if bad else 0.03) if self.calibrated else None, unwill, glad, told)

    def _piece(self, prompt: Prompt, place: int, word: str, finish: Finish | None) -> Piece:
        routed = place < (prompt.routing.routed_tokens or 0)
        sampling = prompt.sampling
        vocabulary = self.words.get_vocab()
        token = vocabulary.get(word, vocabulary["<unk>"])
        text = "" if word == "</s>" else word if place == 0 else " " + word
        return Piece(
            token,
            text,
            routed,
            finish,
            None if sampling.logprobs is None else -0.5,
            tuple((token + n, -0.5 - n) for n in range(sampling.logprobs or 0)),
            0.1 if routed else None,
            Weights((0.3, 0.4), (0.7, 0.6)) if routed and prompt.routing.trace else None,
        )


SERVED = Served("tiny", routed_tokens=2, risk_threshold=0.5, calibrated=True, layers=LAYERS, created=1)


def settings(**changes: Any) -> Settings:
    """As served by default, with ``changes``."""
    return Settings(**{"served": SERVED, **changes})
