"""What an engine is asked, and what it answers: plain data, so that the HTTP side never meets a tensor.

An engine computes on a thread of its own. It takes a :class:`Prompt` with a listener, which it calls on that thread
with one :class:`Opening` when the prompt has been read, one :class:`Piece` for each new token, and at last with either
a piece that has a ``finish``, or an exception.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

NO_TOKEN = -1
"""Token of a piece that only ends an answer."""
Finish = Literal["stop", "length"]
"""An end-of-turn token or a stop string; the token limit."""


@dataclass(frozen=True)
class Sampling:
    """How one answer is drawn."""

    max_tokens: int
    """Most new tokens, at least 1."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    """Smallest set of tokens with this probability; 1 is all."""
    top_k: int = 0
    """So many likeliest tokens; 0 is all."""
    seed: int | None = None
    """The same seed draws the same answer, whatever else is being answered; ``None``: another each time."""
    presence_penalty: float = 0.0
    """Taken from the logit of every token that the answer holds (OpenAI's definition)."""
    frequency_penalty: float = 0.0
    """Taken as often as the answer holds it."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer and are not part of it."""
    logprobs: int | None = None
    """How many likeliest alternatives to tell for each token; 0: the chosen token only; ``None``: nothing."""


@dataclass(frozen=True)
class Routing:
    """How one answer is guarded; ``None`` is what the adapter was saved with."""

    routed_tokens: int | None = None
    """m; 0 is the plain base."""
    handover: str | None = None
    """``fixed``, ``risk`` or ``all`` (:data:`mogu.adapter.config.HANDOVERS`)."""
    dial: float = 0.0
    """Added to the adapter's shift δ: above 0 safer."""
    trace: bool = False
    """Tell the router weights of each layer."""


@dataclass(frozen=True)
class Prompt:
    """One answer that is asked for."""

    ids: tuple[int, ...]
    """Token ids of the formatted conversation, at least one."""
    sampling: Sampling
    routing: Routing = field(default_factory=Routing)


@dataclass(frozen=True)
class Weights:
    """Router weights at one token, of each routed layer from the first up."""

    unwill: tuple[float, ...]
    glad: tuple[float, ...]


@dataclass(frozen=True)
class Opening:
    """What reading the prompt told."""

    risk: float | None
    """Calibrated probability that the prompt asks for harm; ``None``: the adapter has no calibration, or no routing."""
    unwill: float | None
    """Mean router weight over the routed layers at the prompt's last token; ``None`` without routing."""
    glad: float | None
    trace: tuple[Weights, ...] = ()
    """Of every prompt token, when asked for."""


@dataclass(frozen=True)
class Piece:
    """One new token."""

    token: int
    """Or :data:`NO_TOKEN`, where an engine elsewhere told the end by itself."""
    text: str
    """What became certain with it: empty while a character or a possible stop string is incomplete."""
    routed: bool
    """Whether the routed model chose it."""
    finish: Finish | None = None
    logprob: float | None = None
    """Natural logarithm, of the distribution before temperature and truncation."""
    top: tuple[tuple[int, float], ...] = ()
    """Likeliest tokens with their logprobs."""
    risk: float | None = None
    """At the token that was read to choose this one, while routed with a calibration."""
    weights: Weights | None = None
    """At the same token, when a trace was asked for and it was routed."""
    handed_over: bool = False
    """Whether the plain base writes what follows."""


Listener = Callable[["Opening | Piece | Exception"], None]


class Ticket(Protocol):
    """One answer in the making."""

    def cancel(self) -> None:
        """Stop; its row is free at the next step, and the listener is not called again. Safe from any thread, twice."""


@dataclass(frozen=True)
class Load:
    """What an engine is doing now."""

    waiting: int
    """Answers that have not begun."""
    running: int
    """Answers in the making."""
    rows: int
    """Most answers in the making at once."""
    kv_tokens: int
    """Tokens whose keys and values are held."""
    kv_limit: int
    """Most of them."""
    generated: int
    """New tokens since the start."""
    prefilled: int
    """Prompt tokens read since the start, re-reads included."""


class Engine(Protocol):
    """Answers prompts together, in one model."""

    @property
    def context(self) -> int:
        """Most tokens of prompt and answer together."""

    def submit(self, prompt: Prompt, listener: Listener) -> Ticket:
        """Queue an answer.

        Raises:
            QueueFullError: As many wait as may.
            GenerationError: The prompt can never be answered: empty, longer than the context, a field out of range.
        """

    def read(self, ids: tuple[int, ...], listener: Listener) -> Ticket:
        """Read a prompt without answering it: the listener gets one :class:`Opening` (or an exception) and no piece."""

    def load(self) -> Load:
        """Now."""

    def close(self, drain: bool = True) -> None:
        """Take no more; with ``drain`` finish what runs and waits, else give each an exception. Joins the thread."""
