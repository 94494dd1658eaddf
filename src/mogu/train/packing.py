"""Pairs in as few columns as they have different tokens: what several answers follow is computed once.

A packed line, padded on the left, is

    beginning | rest of prompt 1 | rest of prompt 2 | … | wanted 1 | unwanted 1 | wanted 2 | unwanted 2 | …

where all prompts of a batch share the beginning (a template's system prompt), prompts go without their last token, and
an answer is that last token and the answer without its own last token: no loss reads what comes after it. So the logits
of every column of an answer predict exactly one token. A column reads the beginning, its own prompt and its own answer,
nothing of another pair or of the other answer, and counts positions as if it were alone, so that the losses and
gradients are those of two rows of their own for each pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from mogu.data.rows import Row
from mogu.train.batches import Encoded, PairCollator, answer_logits
from mogu.train.losses import IGNORED, response_cross_entropy

PADDING, BEGINNING, TEXT = range(3)
"""Segments of a packed line: columns that nobody reads, those that all read, and the first of the texts after them."""
LINE_TOKENS = 384
"""About so many columns make a line of several pairs; attention within longer ones costs more than sharing saves."""

_TAKE_ANY_MASK = ("sdpa", "eager")
"""Attention implementations of transformers that read a mask of their caller's (rows, 1, tokens, tokens)."""
REFUSED_MASK = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, NotImplementedError)
"""An architecture that wants two dimensions of a mask says so in many ways."""
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
_ROUGH_TOLERANCE = 5e-2
"""Nats per token by which two equal computations may differ, relative where above 1; half precision is rough."""
_NONE = -1


def pack(
    pairs: Sequence[tuple[Encoded, Encoded]], pad_token_id: int, line_tokens: int = LINE_TOKENS
) -> dict[str, torch.Tensor]:
    """Pairs of (prompt, wanted answer) and (prompt, unwanted answer) as packed lines.

    Returns:
        int64 tensors. Of shape (lines, longest line): ``input_ids``; ``position_ids``; ``segments``, which text a
        column is of; ``prompts``, the segment of the prompt that it follows (:func:`segment_mask`); ``targets``, the
        token that it predicts, :data:`~mogu.train.losses.IGNORED` outside of answers; ``answers``, 2 · pair for a
        column of that pair's wanted answer, 2 · pair + 1 for one of the unwanted answer, -1 for others.
        ``line`` (pairs,), where each pair lies, and ``columns`` (pairs, longest pair): the columns of the prompt, the
        wanted and the unwanted answer of each, then -1.

    >>> batch = pack([(([5, 6], [7, 8]), ([5, 6], [9])), (([5, 4], [3]), ([5, 4], [2]))], 0)
    >>> [batch[name].tolist() for name in ("input_ids", "position_ids", "segments", "targets")]
    [[[5, 6, 7, 6, 4, 4]], [[0, 1, 2, 1, 1, 1]], [[1, 3, 3, 4, 6, 7]], [[-100, 7, 8, 9, 3, 2]]]
    >>> [batch[name].tolist() for name in ("answers", "line", "columns")]
    [[[-1, 0, 0, 1, 2, 3]], [0, 0], [[0, 1, 2, 3], [0, 4, 5, -1]]]
    """
    shared = _shared_length([prompt[:-1] for (prompt, _), _ in pairs])
    sizes = [_columns_of(prompt, wanted, unwanted) - shared for (prompt, wanted), (_, unwanted) in pairs]
    lines = [_Line() for _ in range(-(-sum(sizes) // max(line_tokens - shared, 1)) or 1)][: len(pairs)]
    for number in sorted(range(len(pairs)), key=lambda number: (-sizes[number], number)):
        min(lines, key=lambda line: line.size).add(number, sizes[number])
    beginning = pairs[0][0][0][:shared]
    packed = [line.laid_out(pairs, beginning) for line in lines]
    width = max(len(columns) for columns, _ in packed)
    blank = (pad_token_id, 0, PADDING, PADDING, IGNORED, _NONE)
    table = torch.tensor([[blank] * (width - len(columns)) + columns for columns, _ in packed])
    names = ("input_ids", "position_ids", "segments", "prompts", "targets", "answers")
    where = {
        number: (n, [width - len(columns) + column for column in own])
        for n, (columns, found) in enumerate(packed)
        for number, own in found.items()
    }
    longest = max(len(own) for _, own in where.values())
    return {
        **{name: table[:, :, n].contiguous() for n, name in enumerate(names)},
        "line": torch.tensor([where[number][0] for number in range(len(pairs))]),
        "columns": torch.tensor(
            [own + [_NONE] * (longest - len(own)) for _, own in (where[number] for number in range(len(pairs)))]
        ),
    }


def _shared_length(texts: Sequence[Sequence[int]]) -> int:
    """Tokens with which all ``texts`` begin."""
    least = min(map(len, texts))
    return next((n for n in range(least) if len({text[n] for text in texts}) > 1), least)


def _columns_of(prompt: Sequence[int], wanted: Sequence[int], unwanted: Sequence[int]) -> int:
    return len(prompt) - 1 + len(wanted) + len(unwanted)


class _Line:
    """Which pairs lie in one line."""

    def __init__(self) -> None:
        self.members: list[int] = []
        self.size = 0

    def add(self, number: int, size: int) -> None:
        self.members.append(number)
        self.size += size

    def laid_out(
        self, pairs: Sequence[tuple[Encoded, Encoded]], beginning: list[int]
    ) -> tuple[list[tuple[int, ...]], dict[int, list[int]]]:
        """The columns (token, position, segment, prompt's segment, target, answer), and those of each pair."""
        columns: list[tuple[int, ...]] = []
        shared = len(beginning)

        def put(ids: list[int], start: int, segment: int, prompt: int, targets: list[int], answer: int) -> list[int]:
            first = len(columns)
            for n, (token, target) in enumerate(zip(ids, targets, strict=True)):
                columns.append((token, start + n, segment, prompt, target, answer))
            return list(range(first, len(columns)))

        begun = put(beginning, 0, BEGINNING, BEGINNING, [IGNORED] * shared, _NONE)
        own: dict[int, list[int]] = {}
        for place, number in enumerate(self.members):
            prompt, segment = pairs[number][0][0], TEXT + 3 * place
            rest = prompt[shared:-1]
            own[number] = begun + put(rest, shared, segment, segment, [IGNORED] * len(rest), _NONE)
        for place, number in enumerate(self.members):
            for kind, (prompt, answer) in enumerate(pairs[number]):
                ids, segment = (prompt[-1:] + answer)[: len(answer)], TEXT + 3 * place
                own[number] += put(ids, len(prompt) - 1, segment + 1 + kind, segment, answer, 2 * number + kind)
        return columns, own


def segment_mask(segments: torch.Tensor, prompts: torch.Tensor | None = None) -> torch.Tensor:
    """Which column (second to last axis) reads which (last axis).

    Args:
        segments: (lines, columns) int64: :data:`PADDING`, :data:`BEGINNING`, or a number from :data:`TEXT` on for each
            text that reads the beginning and itself.
        prompts: (lines, columns) int64: the segment that a column reads besides; default: none.

    Returns:
        (lines, 1, columns, columns) bool. A column of padding reads itself only: a softmax over nothing is no number.
    """
    columns = torch.arange(segments.shape[1], device=segments.device)
    reader, read = segments[:, :, None], segments[:, None, :]
    same_text = (read == BEGINNING) | (read == reader)
    if prompts is not None:
        same_text = same_text | (read == prompts[:, :, None])
    causal = columns[None, :] <= columns[:, None]
    itself = columns[None, :] == columns[:, None]
    return ((same_text & causal & (read != PADDING)) | itself).unsqueeze(1)


@dataclass(frozen=True)
class PackedCollator(PairCollator):
    """Pairs for one responder, packed."""

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """The tensors of :func:`pack`."""
        return pack([self.pair(row) for row in rows], self.encode.tokenizer.pad_token_id)

    def length(self, row: Row) -> int:
        """Columns that ``row`` takes alone."""
        (prompt, wanted), (_, unwanted) = self.pair(row)
        return _columns_of(prompt, wanted, unwanted)


def pair_cross_entropy(
    model: Any, batch: dict[str, torch.Tensor], accepts: frozenset[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross-entropy over each wanted answer, and over each unwanted one.

    Args:
        model: The model.
        batch: From :class:`PackedCollator` or :class:`~mogu.train.batches.PairCollator`.
        accepts: Names of the parameters of the model's forward; see :func:`~mogu.train.batches.answer_logits`.

    Returns:
        Two (pairs,) float32 tensors, in nats per token, gradients attached.
    """
    if "segments" not in batch:
        wanted, unwanted = response_cross_entropy(*answer_logits(model, batch, accepts)).chunk(2)
        return wanted, unwanted
    targets, answers, pairs = batch["targets"], batch["answers"], len(batch["line"])
    inputs: dict[str, Any] = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"]}
    kept = targets.shape[1] - int((targets != IGNORED).any(dim=0).nonzero()[0])
    if "logits_to_keep" in accepts:
        inputs["logits_to_keep"] = kept
    mask = as_read_by(model, segment_mask(batch["segments"], batch["prompts"]))
    logits = model(**inputs, attention_mask=mask, use_cache=False).logits[:, -kept:]
    said = answers[:, -kept:] != _NONE
    each, slots = targets[:, -kept:][said], answers[:, -kept:][said]
    losses = functional.cross_entropy(logits[said].float(), each, reduction="none")
    sums = losses.new_zeros(2 * pairs).index_add(0, slots, losses)
    means = sums / torch.bincount(slots, minlength=2 * pairs).clamp(min=1)
    return means[0::2], means[1::2]


def as_read_by(model: Any, mask: torch.Tensor) -> torch.Tensor:
    """A mask of :func:`segment_mask` as the model's attention wants it: sdpa reads truth values, eager adds."""
    if _attention(model) == "sdpa":
        return mask
    dtype = next(model.parameters()).dtype
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def _attention(model: Any) -> str | None:
    inner = getattr(model, "module", model)  # what trains on several devices hides the model there
    return getattr(inner.config.get_text_config(), "_attn_implementation", None)


def packed_if_alike(model: Any, doubled: PairCollator, rows: Sequence[Row], accepts: frozenset[str]) -> PairCollator:
    """Packed rows where ``model`` computes the same with them, else two rows for each pair.

    Decided by trial: the longest pair of ``rows`` and the shortest go through the model both ways, without gradients.

    Args:
        model: peft model, the responder's stage active.
        doubled: What makes two rows of each pair.
        rows: The rows to train on, at least one.
        accepts: Names of the parameters of the base's forward.
    """
    packed = PackedCollator(doubled.encode, doubled.wants_refusal, doubled.begun)
    by_length = sorted(rows, key=doubled.length)
    if not may_pack(model, accepts, doubled.length(by_length[-1])):
        return doubled
    return packed if _same_losses(model, packed, doubled, [by_length[-1], by_length[0]], accepts) else doubled


def may_pack(model: Any, accepts: frozenset[str], longest: int) -> bool:
    """Whether packed rows are worth a trial.

    Where not, the trial could not tell the difference from rounding, or would break the device: attention that cannot
    read any mask (flash), models that take no positions (ALiBi), rows that reach beyond a sliding window.

    Args:
        model: The model.
        accepts: Names of the parameters of its forward.
        longest: Tokens of the longest text, prompt included.
    """
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    return _attention(model) in _TAKE_ANY_MASK and "position_ids" in accepts and (window is None or longest <= window)


def _same_losses(
    model: Any, packed: PairCollator, doubled: PairCollator, rows: Sequence[Row], accepts: frozenset[str]
) -> bool:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            found = [
                torch.cat(pair_cross_entropy(model, {k: v.to(model.device) for k, v in c(rows).items()}, accepts))
                for c in (doubled, packed)
            ]
    except torch.OutOfMemoryError:
        raise
    except REFUSED_MASK:
        return False
    finally:
        model.train(was_training)
    tolerance = _TOLERANCE.get(model.dtype, _ROUGH_TOLERANCE)
    return bool(((found[0] - found[1]).abs() <= tolerance * found[0].abs().clamp(min=1)).all())
