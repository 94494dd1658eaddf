"""Training rows as tensors: prompts masked, padding on the left, one forward for both answers of a pair."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mogu.chat import Message, prompt_ids, response_ids
from mogu.data.rows import Row
from mogu.train.losses import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Encoded = tuple[list[int], list[int]]
"""Token ids of prompt and answer."""


@dataclass(frozen=True)
class Encoder:
    """From an instruction and an answer to token ids."""

    tokenizer: PreTrainedTokenizerBase
    template: str | None
    answer_tokens: int
    """Length at which answers are cut."""

    def __call__(self, instruction: str | Sequence[Message], answer: str, *, closed: bool) -> Encoded:
        """Prompt and answer ids; a ``closed`` answer ends the turn (base answers are cut, so they do not).

        ``instruction`` is a bare one or a conversation.
        """
        prompt = prompt_ids(self.tokenizer, instruction, template=self.template)
        return prompt, response_ids(self.tokenizer, answer, end_of_turn=closed)[: self.answer_tokens]

    def wanted(self, row: Row) -> Encoded:
        """The answer that a safe and useful model gives to ``row``."""
        return self(row.instruction, row.wanted, closed=row.label == "malicious")


def pad(encoded: Sequence[Encoded], pad_token_id: int) -> dict[str, torch.Tensor]:
    """A left-padded batch.

    Returns:
        ``input_ids``, ``attention_mask``, ``position_ids`` (from 0 at each row's first real token) and ``labels``
        (prompt and padding :data:`~mogu.train.losses.IGNORED`), all int64 of shape (rows, longest row).

    >>> {k: v.tolist() for k, v in pad([([5], [6]), ([7, 8], [9])], 0).items() if k in ("input_ids", "labels")}
    {'input_ids': [[0, 5, 6], [7, 8, 9]], 'labels': [[-100, -100, 6], [-100, -100, 9]]}
    """
    width = max(len(prompt) + len(answer) for prompt, answer in encoded)
    ids, mask, labels = [], [], []
    for prompt, answer in encoded:
        blank = width - len(prompt) - len(answer)
        ids.append([pad_token_id] * blank + prompt + answer)
        mask.append([0] * blank + [1] * (width - blank))
        labels.append([IGNORED] * (width - len(answer)) + answer)
    attention_mask = torch.tensor(mask)
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": attention_mask,
        "position_ids": (attention_mask.cumsum(dim=1) - 1).clamp(min=0),
        "labels": torch.tensor(labels),
    }


def encode_pair(encode: Encoder, row: Row, wants_refusal: bool, begun: float = 0.0) -> tuple[Encoded, Encoded]:
    """The answer to learn and the one to unlearn, each with the prompt; only refusals end the turn.

    Args:
        encode: Encoder of the run.
        row: Instruction and both answers.
        wants_refusal: True for the unwilling responder.
        begun: Share of rows whose unwanted answer has begun: its first tokens stand at the end of both prompts, any
            number that leaves one to unlearn. Which rows, and how many tokens, is drawn from the row's id.
    """
    refusal = encode(row.instruction, row.unwill, closed=True)
    help_ = encode(row.instruction, row.glad, closed=False)
    (prompt, wanted), (_, unwanted) = (refusal, help_) if wants_refusal else (help_, refusal)
    draw = int.from_bytes(hashlib.sha256(row.id.encode()).digest()[:4]) / 2**32
    if draw < begun and len(unwanted) > 1:
        said = 1 + int(draw / begun * (len(unwanted) - 1))
        prompt, unwanted = prompt + unwanted[:said], unwanted[said:]
    return (prompt, wanted), (prompt, unwanted)


@dataclass(frozen=True)
class PairCollator:
    """Pairs for one responder: the first half of the batch holds the wanted answers, the second the unwanted ones."""

    encode: Encoder
    wants_refusal: bool
    """True for the unwilling responder."""
    begun: float = 0.0
    """As for :func:`encode_pair`."""

    def pair(self, row: Row) -> tuple[Encoded, Encoded]:
        """The wanted and the unwanted answer, each with its prompt."""
        return encode_pair(self.encode, row, self.wants_refusal, self.begun)

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """(2 · pairs, tokens) tensors of :func:`pad`."""
        wanted, unwanted = zip(*map(self.pair, rows), strict=True)
        return pad([*wanted, *unwanted], self.encode.tokenizer.pad_token_id)

    def length(self, row: Row) -> int:
        """Columns that ``row`` takes without padding: its longer half."""
        return max(len(prompt) + len(answer) for prompt, answer in self.pair(row))


@dataclass(frozen=True)
class RouterCollator:
    """Rows for the routers: the wanted answer of each, and whether the row is malicious."""

    encode: Encoder

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """(rows, tokens) tensors of :func:`pad`, and ``malicious`` (rows,) bool."""
        batch = pad([self.encode.wanted(row) for row in rows], self.encode.tokenizer.pad_token_id)
        return {**batch, "malicious": torch.tensor([row.label == "malicious" for row in rows])}

    def length(self, row: Row) -> int:
        """Columns that ``row`` takes without padding."""
        return sum(map(len, self.encode.wanted(row)))


def answer_logits(model: Any, batch: dict[str, torch.Tensor], accepts: frozenset[str]) -> tuple[Any, torch.Tensor]:
    """Logits that predict the answers, and the labels that belong to them.

    Args:
        model: The model.
        batch: From :func:`pad`.
        accepts: Names of the parameters of the model's forward. With ``logits_to_keep`` among them, the vocabulary
            projection runs only where an answer is: for small models that is a third of the step.

    Returns:
        (rows, kept, vocabulary) logits and (rows, kept) labels, aligned as :func:`response_cross_entropy` wants them.
    """
    labels = batch["labels"]
    inputs: dict[str, Any] = {k: batch[k] for k in ("input_ids", "attention_mask", "position_ids") if k in accepts}
    if "logits_to_keep" in accepts:
        first = int((labels != IGNORED).any(dim=0).nonzero()[0])
        kept = labels.shape[1] - max(first - 1, 0)
        inputs["logits_to_keep"] = kept
        labels = labels[:, -kept:]
    return model(**inputs, use_cache=False).logits, labels
