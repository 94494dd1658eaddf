"""What a defence is: it may edit the conversation before, decode in its own way, and look at the answer after.

A defence is made for one :class:`Target` (a base model that all defences share) and does its work on batches. Several
can be put in a row, ``"mogu+self-reminder"``: conversations pass through them from left to right, answers back from
right to left. At most one of them may decode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from mogu.chat import Message, pad_prompts, prompt_ids
from mogu.data.rows import Row
from mogu.errors import ConfigError
from mogu.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Conversation = list[Message]

REFUSAL = "I'm sorry, but I can't help with that."
"""What a defence that stops a conversation or an answer says in its place."""


@dataclass(frozen=True)
class Target:
    """The base model under defence, and what a defence may use to get ready."""

    model: Any
    """The plain base; a defence that adds weights takes them off again."""
    tokenizer: PreTrainedTokenizerBase
    name: str
    """What the user calls the base."""
    workspace: Path
    """Where learnt parts are kept, a folder for each defence."""
    template: str | None = None
    """As for :func:`mogu.chat.prompt_ids`."""
    adapter: Path | None = None
    """A trained MoGU adapter, for the defences that route."""
    rows: Callable[[], Sequence[Row]] = field(default=tuple)
    """Data set for the defences that learn; a function, because building it costs time."""
    batch_size: int = 32
    """Prompts at a time."""
    seed: int = 0


@dataclass(frozen=True)
class Stopped:
    """A conversation or an answer that a defence has stopped."""

    answer: str
    """What the user reads instead."""
    reason: str
    """Why, in a few words."""


@dataclass(frozen=True)
class Reply:
    """A defended model's answer to one conversation."""

    answer: str
    stopped_by: str | None = None
    """Name of the defence that answered instead of the model."""
    reason: str | None = None


class Defense:
    """Base class: each step does nothing. Subclasses override what they need."""

    name: ClassVar[str]
    """By which it is called; lower case, hyphens."""
    summary: ClassVar[str]
    """One line for people."""
    source: ClassVar[str] = ""
    """The paper."""
    decodes: ClassVar[bool] = False
    """Whether it decodes in its own way or puts weights on the base; one of these per pipeline."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def settings(self) -> dict[str, Any]:
        """All that decides the answers besides base and prompts, as JSON: for the record, and to resume safely."""
        return {}

    def prepare(self, progress: Progress) -> None:
        """Learn what must be learnt, or load it from an earlier run; called once before anything else."""

    @contextmanager
    def installed(self) -> Iterator[Any]:
        """Inside, the weights are on the base; yields the model to decode with. Afterwards the base is as before."""
        yield self.target.model

    def before(self, conversations: Sequence[Conversation]) -> list[Conversation | Stopped]:
        """The conversations that the model shall see, or a stop, one for each."""
        return list(conversations)

    def encode(self, conversation: Conversation) -> list[int] | None:
        """Token ids of a conversation up to where the answer begins; ``None`` leaves it to the chat template."""
        return None

    def decode(self, model: Any, inputs: dict[str, torch.Tensor], **options: Any) -> torch.Tensor:
        """Sequences (rows × length, int64), prompts included, of a left-padded batch.

        Args:
            model: What :meth:`installed` yielded.
            inputs: ``input_ids`` and ``attention_mask``.
            **options: Of transformers' ``generate``; ``max_new_tokens`` is always there.
        """
        sequences: torch.Tensor = model.generate(**inputs, **options)
        return sequences

    def after(self, conversations: Sequence[Conversation], answers: Sequence[str]) -> list[str | Stopped]:
        """What the user reads: the answers, or a stop, one for each; ``conversations`` as this defence got them."""
        return list(answers)


class Pipeline:
    """Defences in a row, ready to answer."""

    def __init__(self, defenses: Sequence[Defense]) -> None:
        if not defenses:
            raise ConfigError("a pipeline needs at least one defence; use 'none' for the plain base")
        decoders = [one for one in defenses if one.decodes]
        if len(decoders) > 1:
            names = " and ".join(one.name for one in decoders)
            raise ConfigError(f"{names} cannot be combined: each decodes in its own way; keep one of them")
        self.defenses = list(defenses)
        self.decoder = decoders[0] if decoders else defenses[0]
        self.target = defenses[0].target
        self.name = "+".join(one.name for one in defenses)

    def settings(self) -> dict[str, Any]:
        """Settings of every member, by name."""
        return {one.name: one.settings() for one in self.defenses}

    def prepare(self, progress: Progress | None = None) -> None:
        """Let every member get ready."""
        for one in self.defenses:
            one.prepare(progress or Progress())

    def answers(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int,
        prefill: Sequence[Sequence[int]] | None = None,
        on_done: Callable[[int, Reply], None] | None = None,
        **options: Any,
    ) -> list[Reply]:
        """Defended answers, in order; greedy unless ``options`` of ``generate`` say otherwise.

        Args:
            conversations: Messages that end with a user's turn.
            max_new_tokens: Length at which an answer is cut.
            prefill: Token ids with which each answer already begins (a prefilling attack); not part of the reply.
            on_done: Called with index and reply as they arrive.
            **options: As for ``generate``.
        """
        replies: list[Reply | None] = [None] * len(conversations)

        def settle(index: int, reply: Reply) -> None:
            replies[index] = reply
            if on_done is not None:
                on_done(index, reply)

        seen = self._before(conversations, settle)
        pending = [index for index, reply in enumerate(replies) if reply is None]
        ids = {index: [*self._encode(seen[-1][index]), *(prefill[index] if prefill else ())] for index in pending}
        order = sorted(pending, key=lambda index: -len(ids[index]))
        for start in range(0, len(order), self.target.batch_size):
            batch = order[start : start + self.target.batch_size]
            texts = self._decode([ids[index] for index in batch], max_new_tokens, options)
            self._after(batch, texts, seen, settle)
        return [reply for reply in replies if reply is not None]

    def _before(
        self, conversations: Sequence[Conversation], settle: Callable[[int, Reply], None]
    ) -> list[dict[int, Conversation]]:
        """What each member got, by index, and at the end what the model gets; stopped ones are settled."""
        seen: list[dict[int, Conversation]] = [dict(enumerate(conversations))]
        for one in self.defenses:
            kept: dict[int, Conversation] = {}
            for index, what in zip(seen[-1], one.before(list(seen[-1].values())), strict=True):
                if isinstance(what, Stopped):
                    settle(index, Reply(what.answer, one.name, what.reason))
                else:
                    kept[index] = what
            seen.append(kept)
        return seen

    def _encode(self, conversation: Conversation) -> list[int]:
        for one in self.defenses:
            if (ids := one.encode(conversation)) is not None:
                return ids
        return prompt_ids(self.target.tokenizer, conversation, template=self.target.template)

    def _decode(self, ids: list[list[int]], max_new_tokens: int, options: dict[str, Any]) -> list[str]:
        tokenizer = self.target.tokenizer
        with self.decoder.installed() as model, torch.inference_mode():
            inputs = pad_prompts(tokenizer, ids, model.device)
            output = self.decoder.decode(
                model, inputs, **{"do_sample": False, "max_new_tokens": max_new_tokens, **options}
            )
        new = output[:, inputs["input_ids"].shape[1] :]
        return [str(text).strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]

    def _after(
        self,
        batch: Sequence[int],
        texts: Sequence[str],
        seen: Sequence[dict[int, Conversation]],
        settle: Callable[[int, Reply], None],
    ) -> None:
        answers = dict(zip(batch, texts, strict=True))
        for position in reversed(range(len(self.defenses))):
            one = self.defenses[position]
            indices = list(answers)
            if not indices:
                return
            checked = one.after([seen[position][index] for index in indices], [answers[index] for index in indices])
            for index, what in zip(indices, checked, strict=True):
                if isinstance(what, Stopped):
                    settle(index, Reply(what.answer, one.name, what.reason))
                    del answers[index]
                else:
                    answers[index] = what
        for index, text in answers.items():
            settle(index, Reply(text))
