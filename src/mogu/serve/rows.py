"""One answer in the making: what was asked, what is written and read, and when the plain base takes over."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

import torch

from mogu.decode.adaptive import Thinking
from mogu.serve.detokenize import TextStream
from mogu.serve.requests import Listener, Prompt, Weights
from mogu.serve.sampling import Drawer


class Phase(enum.Enum):
    """What a row's next forward does."""

    READING = "reads tokens through all layers"
    RUNNING = "reads its newest token and writes the next"
    CLOSING = "reads its newest token below the first routed layer, and hands over"
    REREADING = "reads its tokens from the first routed layer up"


@dataclass(eq=False)
class Row:
    """One answer. Rows that only read a prompt have no ``drawer``."""

    prompt: Prompt
    listener: Listener
    number: int
    """Order in which it was asked for."""
    drawer: Drawer | None
    text: TextStream | None
    shift: float | None
    """δ with its dial while routed; ``None``: plain."""
    routed_tokens: int = 0
    handover: str = "fixed"
    thinking: Thinking | None = None
    """What m does not count; ``None``: it counts all new tokens."""
    keeps_states: bool = False
    """Whether its hand-over begins at the first routed layer."""
    phase: Phase = Phase.READING
    tokens: list[int] = field(default_factory=list)
    """Prompt and answer."""
    read: int = 0
    """Of these: keys and values held in the layers that ``phase`` reads through."""
    lower: int = 0
    """Of these: held below the first routed layer, while reading again above."""
    slot: int = -1
    opened: bool = False
    """Whether the listener has its opening."""
    cancelled: bool = False
    trace: list[Weights] = field(default_factory=list)
    """Router weights of the prompt tokens read so far, if asked for."""
    shared: int = 0
    """Tokens at its beginning that came from another row."""
    leaves: bool = False
    """Whether it ends at its hand-over, and goes on elsewhere."""

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt.ids)

    @property
    def written(self) -> int:
        """Tokens of the answer."""
        return len(self.tokens) - len(self.prompt.ids)

    @property
    def counted(self) -> int:
        """Tokens of the answer that are no thought, where these do not count."""
        if self.thinking is None:
            return self.written
        return int(self.thinking.counted(torch.tensor([self.tokens]), len(self.prompt.ids)))

    @property
    def held(self) -> int:
        """Tokens that its slot holds."""
        return max(self.read, self.lower)

    @property
    def remaining(self) -> int:
        """Tokens to read before the next one is written."""
        return len(self.tokens) - self.read

    @property
    def reads(self) -> bool:
        """Whether it is not running."""
        return self.phase in (Phase.READING, Phase.REREADING)

    def need(self, ahead: int) -> int:
        """Columns that it will soon need."""
        most = self.prompt.sampling.max_tokens if self.drawer else 0
        if self.leaves and self.handover == "fixed" and self.thinking is None:
            most = min(most, self.routed_tokens)
        return len(self.tokens) + min(max(most - self.written, 0), ahead)

    def due(self, risk: float | None, threshold: float) -> bool:
        """Whether the plain base writes the next token, ``risk`` being that of the newest token that was read."""
        if self.shift is None or self.handover == "all" or self.counted < self.routed_tokens:
            return False
        return self.handover == "fixed" or (risk is not None and risk <= threshold)

    def hand_over(self) -> None:
        """The plain base goes on: it reads everything again, or what lies above the first routed layer."""
        self.shift, self.shared = None, 0
        self.phase = Phase.CLOSING if self.keeps_states else Phase.READING
        if not self.keeps_states:
            self.read = 0

    def closed(self) -> None:
        """The lower layers have read the newest token."""
        self.lower, self.read, self.phase = len(self.tokens), 0, Phase.REREADING

    def put_back(self) -> None:
        """Its slot was taken: all is read again, as it was being read."""
        self.slot, self.read, self.lower, self.phase = -1, 0, 0, Phase.READING
        self.trace, self.shared = [], 0

    def cancel(self) -> None:
        """As :meth:`mogu.serve.requests.Ticket.cancel`."""
        self.cancelled = True
