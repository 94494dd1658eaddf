"""What stands before an instruction when routers are fitted: nothing, an earlier turn, a system prompt.

Fitted on bare instructions alone, routers tell malicious from benign ones behind anything, but around another level:
a harmless first turn, or an operator's system prompt, makes all that follows look harmless. So a share of the rows is
read in such a context; which rows, and in which, is spread evenly and never changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mogu.chat import Message
from mogu.data.rows import Row

FOLDS = 4
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a patient tutor. Explain step by step, in plain words.",
    "You answer questions for the customers of a shop. Be brief and polite.",
    "You are an expert with long experience. Give detailed, practical answers.",
    "Answer in at most two sentences.",
    "You are a creative writing partner and stay in character.",
)
"""Unlike each other in length, role and tone; nothing in them concerns harm."""
_MOST_SENTENCES = 8
"""Answers of other rows that may follow the one to a first turn; the base's own are cut after few tokens."""
_SPREAD = ((5**0.5 - 1) / 2, 2**0.5, 3**0.5, 5**0.5)
"""Whose multiples lie evenly in [0, 1), whatever order rows come in; one for each choice."""


@dataclass(frozen=True)
class Context:
    """What stands before one instruction."""

    system: str | None = None
    """A system prompt; ``None`` leaves what the template does by itself."""
    first: Row | None = None
    """The row of an earlier turn."""
    said: str = ""
    """The answer to it."""

    def __call__(self, instruction: str) -> str | list[Message]:
        """A bare instruction, or the conversation that ends in it."""
        messages: list[Message] = []
        if self.system is not None:
            messages.append({"role": "system", "content": self.system})
        if self.first is not None:
            messages.append({"role": "user", "content": self.first.instruction})
            messages.append({"role": "assistant", "content": self.said})
        return [*messages, {"role": "user", "content": instruction}] if messages else instruction


def contexts(rows: Sequence[Row], turns: float, system_prompts: float) -> list[Context]:
    """The context of each row.

    Args:
        rows: What is fitted on.
        turns: Share of them that come second, behind another row of the same fold with its wanted answer: benign and
            malicious ones alike, so that nothing can be told from there being one, or from its kind.
        system_prompts: Share of them under one of :data:`SYSTEM_PROMPTS`.
    """
    folds = folds_of(rows)
    found = [Context()] * len(rows)
    for own in range(FOLDS):
        alike = [index for index, fold in enumerate(folds) if fold == own]
        answers = [rows[index].wanted for index in alike if rows[index].label == "benign"]
        for at, index in enumerate(alike):
            turn, other, length, system = (at * spread % 1 for spread in _SPREAD)
            first, said, prompt = None, "", None
            if turn < turns and len(alike) > 1:
                first = rows[alike[(at + 1 + int(other * (len(alike) - 1))) % len(alike)]]
                said = first.wanted
                if first.label == "benign":
                    more = (answers[(at + 7 * n) % len(answers)] for n in range(int(length * _MOST_SENTENCES)))
                    said = " ".join([said, *more])
            if system < system_prompts:
                prompt = SYSTEM_PROMPTS[at % len(SYSTEM_PROMPTS)]
            found[index] = Context(prompt, first, said)
    return found


def folds_of(rows: Sequence[Row]) -> list[int]:
    """Fold of each row; twins share one."""
    folds: dict[str, int] = {}
    return [folds.setdefault(row.id, folds.get(row.twin, index % FOLDS)) for index, row in enumerate(rows)]
