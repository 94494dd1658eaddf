"""Both answers of a pair in one row, so that the prompt, which they share, is computed once.

A packed row, padded on the left, is

    prompt without its last token | last prompt token, wanted answer | last prompt token, unwanted answer

where both answers go without their own last token: no loss reads what comes after it. So the logits of every column of
an answer predict exactly one token. The columns of an answer see the prompt and their own answer, never the other one,
and count positions from the prompt's end, so that the losses and gradients are those of two rows of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from mogu.data.rows import Row
from mogu.train.batches import Encoded, Encoder, PairCollator, answer_logits, encode_pair
from mogu.train.losses import IGNORED, response_cross_entropy

PADDING, PROMPT, WANTED, UNWANTED = range(4)
"""What a column of a packed row holds."""

_TAKE_ANY_MASK = ("sdpa", "eager")
"""Attention implementations of transformers that read a mask of their caller's (rows, 1, tokens, tokens)."""
REFUSED_MASK = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, NotImplementedError)
"""An architecture that wants two dimensions of a mask says so in many ways."""
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
_ROUGH_TOLERANCE = 5e-2
"""Nats per token by which two equal computations may differ, relative where above 1; half precision is rough."""


def pack(pairs: Sequence[tuple[Encoded, Encoded]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Pairs of (prompt, wanted answer) and (prompt, unwanted answer) as packed rows.

    Returns:
        ``input_ids``, ``position_ids``, ``segments`` (what each column holds) and ``targets`` (the token that a column
        predicts, :data:`~mogu.train.losses.IGNORED` outside of answers), all int64 of shape (pairs, longest row).

    >>> [t.tolist() for t in pack([(([5, 6], [7, 8]), ([5, 6], [9]))], 0).values()]
    [[[5, 6, 7, 6]], [[0, 1, 2, 1]], [[1, 2, 2, 3]], [[-100, 7, 8, 9]]]
    """
    rows = [_packed_row(prompt, wanted, unwanted) for (prompt, wanted), (_, unwanted) in pairs]
    width = max(len(row["input_ids"]) for row in rows)
    blanks = {"input_ids": pad_token_id, "position_ids": 0, "segments": PADDING, "targets": IGNORED}
    return {
        name: torch.tensor([[blank] * (width - len(row[name])) + row[name] for row in rows])
        for name, blank in blanks.items()
    }


def _packed_row(prompt: list[int], wanted: list[int], unwanted: list[int]) -> dict[str, list[int]]:
    """One row of :func:`pack`, without padding."""
    shared = len(prompt) - 1
    ids, positions = prompt[:shared], list(range(shared))
    segments, targets = [PROMPT] * shared, [IGNORED] * shared
    for kind, answer in ((WANTED, wanted), (UNWANTED, unwanted)):
        ids += (prompt[shared:] + answer)[: len(answer)]
        positions += range(shared, shared + len(answer))
        segments += [kind] * len(answer)
        targets += answer
    return {"input_ids": ids, "position_ids": positions, "segments": segments, "targets": targets}


def segment_mask(segments: torch.Tensor) -> torch.Tensor:
    """Which column (second to last axis) reads which (last axis).

    Args:
        segments: (rows, tokens) int64: :data:`PADDING`, :data:`PROMPT`, or any other number for each text after the
            prompt, as from :func:`pack`.

    Returns:
        (rows, 1, tokens, tokens) bool. A column of padding reads itself only: a softmax over nothing is not a number.
    """
    columns = torch.arange(segments.shape[1], device=segments.device)
    reader, read = segments[:, :, None], segments[:, None, :]
    same_text = (read == PROMPT) | (read == reader)
    causal = columns[None, :] <= columns[:, None]
    itself = columns[None, :] == columns[:, None]
    return ((same_text & causal & (read != PADDING)) | itself).unsqueeze(1)


@dataclass(frozen=True)
class PackedCollator:
    """Pairs for one responder, one row for each pair; see :class:`~mogu.train.batches.PairCollator`."""

    encode: Encoder
    wants_refusal: bool
    """True for the unwilling responder."""

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """(pairs, tokens) tensors of :func:`pack`."""
        pairs = [encode_pair(self.encode, row, self.wants_refusal) for row in rows]
        return pack(pairs, self.encode.tokenizer.pad_token_id)

    def length(self, row: Row) -> int:
        """Columns that ``row`` takes without padding."""
        (prompt, wanted), (_, unwanted) = encode_pair(self.encode, row, self.wants_refusal)
        return len(prompt) - 1 + len(wanted) + len(unwanted)


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
    segments, targets = batch["segments"], batch["targets"]
    inputs: dict[str, Any] = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"]}
    kept = segments.shape[1] - int((targets != IGNORED).any(dim=0).nonzero()[0])
    if "logits_to_keep" in accepts:
        inputs["logits_to_keep"] = kept
    logits = model(**inputs, attention_mask=as_read_by(model, segment_mask(segments)), use_cache=False).logits[
        :, -kept:
    ]
    segments, targets = segments[:, -kept:], targets[:, -kept:]
    losses = functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
    ).view(targets.shape)
    return _mean_over(losses, segments == WANTED), _mean_over(losses, segments == UNWANTED)


def _mean_over(losses: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    return (losses * where).sum(dim=1) / where.sum(dim=1).clamp(min=1)


def as_read_by(model: Any, mask: torch.Tensor) -> torch.Tensor:
    """A mask of :func:`segment_mask` as the model's attention wants it: sdpa reads truth values, eager adds."""
    if _attention(model) == "sdpa":
        return mask
    dtype = next(model.parameters()).dtype
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def _attention(model: Any) -> str | None:
    inner = getattr(model, "module", model)  # what trains on several devices hides the model there
    return getattr(inner.config.get_text_config(), "_attn_implementation", None)


def pair_collator(
    model: Any, encode: Encoder, rows: Sequence[Row], *, wants_refusal: bool, accepts: frozenset[str]
) -> PackedCollator | PairCollator:
    """Packed rows where ``model`` computes the same with them, else two rows for each pair.

    Decided by trial: the longest pair of ``rows`` and the shortest go through the model both ways, without gradients.

    Args:
        model: peft model, the responder's stage active.
        encode: Encoder of the run.
        rows: The rows to train on, at least one.
        wants_refusal: True for the unwilling responder.
        accepts: Names of the parameters of the base's forward.
    """
    packed, doubled = PackedCollator(encode, wants_refusal), PairCollator(encode, wants_refusal)
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
    model: Any, packed: PackedCollator, doubled: PairCollator, rows: Sequence[Row], accepts: frozenset[str]
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
