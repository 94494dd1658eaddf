"""Rows in as few columns as they have different tokens: what several answers follow is computed once.

A packed line, padded on the left, is

    beginning | rest of prompt 1 | rest of prompt 2 | … | wanted 1 | unwanted 1 | wanted 2 | unwanted 2 | …

where all prompts of a batch share the beginning (a template's system prompt), prompts go without their last token, and
an answer is that last token and the answer without its own last token: no loss reads what comes after it. So the logits
of every column of an answer predict exactly one token. A column reads the beginning, its own prompt and its own answer,
nothing of another row or of the other answer, and counts positions as if it were alone, so that the losses and
gradients are those of a line of its own for each answer. A responder learns from two answers of each row, routers from
one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch.nn import functional

from mogu.data.rows import Row
from mogu.train.batches import Encoded, PairCollator, RouterCollator, answer_logits
from mogu.train.losses import IGNORED, response_cross_entropy

PADDING, BEGINNING, TEXT = range(3)
"""Segments of a packed line: columns that nobody reads, those that all read, and the first of the texts after them."""
LINE_TOKENS = 384
"""About so many columns make a line of several rows; attention within longer ones costs more than sharing saves."""

_TAKE_ANY_MASK = ("sdpa", "eager")
"""Attention implementations of transformers that read a mask of their caller's (rows, 1, tokens, tokens)."""
REFUSED_MASK = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, NotImplementedError)
"""An architecture that wants two dimensions of a mask says so in many ways."""
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
_ROUGH_TOLERANCE = 5e-2
"""Nats per token by which two equal computations may differ, relative where above 1; half precision is rough."""
_NONE = -1
_OF_COLUMNS = ("input_ids", "position_ids", "segments", "prompts", "targets", "answers")
"""What a packed batch says of each column; the rest is of texts."""


def pack(
    texts: Sequence[Sequence[Encoded]],
    pad_token_id: int,
    line_tokens: int = LINE_TOKENS,
    *,
    kinds: Sequence[Hashable] | None = None,
    whole: bool = False,
) -> dict[str, torch.Tensor]:
    """Texts, each a prompt with one answer or several, as packed lines.

    Args:
        texts: Of each, (prompt, answer), as often as it has answers; the same number for all.
        pad_token_id: Id of padding.
        line_tokens: About so many columns make a line.
        kinds: Of each text; those of different kinds lie in different lines, unless one line holds all texts: apart,
            they would be padded to the longest line. Default: all are alike.
        whole: Whether the last token of an answer has a column too, which predicts nothing.

    Returns:
        int64 tensors. Of shape (lines, longest line): ``input_ids``; ``position_ids``; ``segments``, which text a
        column is of; ``prompts``, the segment of the prompt that it follows (:func:`segment_mask`); ``targets``, the
        token that it predicts, :data:`~mogu.train.losses.IGNORED` outside of answers; ``answers``, the number of the
        answer whose token it predicts (answers of a text are counted one after the other), -1 for other columns.
        ``line`` (texts,), where each text lies, and ``columns`` (texts, longest text): the columns of the prompt and of
        each answer, then -1.

    >>> batch = pack([(([5, 6], [7, 8]), ([5, 6], [9])), (([5, 4], [3]), ([5, 4], [2]))], 0)
    >>> [batch[name].tolist() for name in ("input_ids", "position_ids", "segments", "targets")]
    [[[5, 6, 7, 6, 4, 4]], [[0, 1, 2, 1, 1, 1]], [[1, 3, 3, 4, 6, 7]], [[-100, 7, 8, 9, 3, 2]]]
    >>> [batch[name].tolist() for name in ("answers", "line", "columns")]
    [[[-1, 0, 0, 1, 2, 3]], [0, 0], [[0, 1, 2, 3], [0, 4, 5, -1]]]
    >>> batch = pack([(([5, 6], [7, 8]),), (([5, 4], [3]),)], 0, line_tokens=4, kinds="ab", whole=True)
    >>> [batch[name].tolist() for name in ("input_ids", "targets", "line")]
    [[[5, 6, 7, 8], [0, 5, 4, 3]], [[-100, 7, 8, -100], [-100, -100, 3, -100]], [0, 1]]
    """
    shared = _shared_length([text[0][0][:-1] for text in texts])
    sizes = [_columns_of(text, whole) - shared for text in texts]
    room = max(line_tokens - shared, 1)
    kinds = [None] * len(texts) if kinds is None or sum(sizes) <= room else kinds
    lines: list[_Line] = []
    for kind in dict.fromkeys(kinds):
        numbers = [number for number in range(len(texts)) if kinds[number] == kind]
        count = min(max(-(-sum(sizes[number] for number in numbers) // room), 1), len(numbers))
        found = [_Line() for _ in range(count)]
        for number in sorted(numbers, key=lambda number: (-sizes[number], number)):
            min(found, key=lambda line: line.size).add(number, sizes[number])
        lines += found
    beginning = texts[0][0][0][:shared]
    packed = [line.laid_out(texts, beginning, whole) for line in lines]
    width = max(len(columns) for columns, _ in packed)
    blank = (pad_token_id, 0, PADDING, PADDING, IGNORED, _NONE)
    table = torch.tensor([[blank] * (width - len(columns)) + columns for columns, _ in packed])
    where = {
        number: (n, [width - len(columns) + column for column in own])
        for n, (columns, found) in enumerate(packed)
        for number, own in found.items()
    }
    longest = max(len(own) for _, own in where.values())
    return {
        **{name: table[:, :, n].contiguous() for n, name in enumerate(_OF_COLUMNS)},
        "line": torch.tensor([where[number][0] for number in range(len(texts))]),
        "columns": torch.tensor(
            [own + [_NONE] * (longest - len(own)) for _, own in (where[number] for number in range(len(texts)))]
        ),
    }


def _shared_length(texts: Sequence[Sequence[int]]) -> int:
    """Tokens with which all ``texts`` begin."""
    least = min(map(len, texts))
    return next((n for n in range(least) if len({text[n] for text in texts}) > 1), least)


def _columns_of(text: Sequence[Encoded], whole: bool) -> int:
    return len(text[0][0]) - 1 + sum(len(answer) + whole for _, answer in text)


class _Line:
    """Which texts lie in one line."""

    def __init__(self) -> None:
        self.members: list[int] = []
        self.size = 0

    def add(self, number: int, size: int) -> None:
        self.members.append(number)
        self.size += size

    def laid_out(
        self, texts: Sequence[Sequence[Encoded]], beginning: list[int], whole: bool
    ) -> tuple[list[tuple[int, ...]], dict[int, list[int]]]:
        """The columns (token, position, segment, prompt's segment, target, answer), and those of each text."""
        columns: list[tuple[int, ...]] = []
        shared, answers = len(beginning), len(texts[0])

        def put(ids: list[int], start: int, segment: int, prompt: int, targets: list[int], answer: int) -> list[int]:
            first = len(columns)
            for n, (token, target) in enumerate(zip(ids, targets, strict=True)):
                columns.append((token, start + n, segment, prompt, target, _NONE if target == IGNORED else answer))
            return list(range(first, len(columns)))

        begun = put(beginning, 0, BEGINNING, BEGINNING, [IGNORED] * shared, _NONE)
        own: dict[int, list[int]] = {}
        for place, number in enumerate(self.members):
            prompt, segment = texts[number][0][0], TEXT + (1 + answers) * place
            rest = prompt[shared:-1]
            own[number] = begun + put(rest, shared, segment, segment, [IGNORED] * len(rest), _NONE)
        for place, number in enumerate(self.members):
            for kind, (prompt, answer) in enumerate(texts[number]):
                targets, segment = answer + [IGNORED] * whole, TEXT + (1 + answers) * place
                ids = (prompt[-1:] + answer)[: len(targets)]
                own[number] += put(ids, len(prompt) - 1, segment + 1 + kind, segment, targets, answers * number + kind)
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
        return _columns_of(self.pair(row), whole=False)


@dataclass(frozen=True)
class PackedRouterCollator(RouterCollator):
    """Rows for the routers, packed; malicious and benign ones in lines of their own where they are many."""

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """The tensors of :func:`pack`, answers to their last token, and ``malicious`` (rows,) bool."""
        malicious = [row.label == "malicious" for row in rows]
        texts = [(self.encode.wanted(row),) for row in rows]
        batch = pack(texts, self.encode.tokenizer.pad_token_id, kinds=malicious, whole=True)
        return {**batch, "malicious": torch.tensor(malicious)}


@dataclass(frozen=True)
class Predicted:
    """What a model says of the tokens of answers, row by row of the batch."""

    logits: torch.Tensor
    """(tokens, vocabulary), gradients attached."""
    targets: torch.Tensor
    """(tokens,) int64: the tokens of the answers."""
    answers: torch.Tensor
    """(tokens,) int64: which answer each is of."""
    count: int
    """Answers of the batch."""

    def cross_entropy(self) -> torch.Tensor:
        """Mean over the tokens of each answer, (answers,) float32, in nats per token."""
        losses = functional.cross_entropy(self.logits.float(), self.targets, reduction="none")
        sums = losses.new_zeros(self.count).index_add(0, self.answers, losses)
        return sums / torch.bincount(self.answers, minlength=self.count).clamp(min=1)


def predicted(model: Any, batch: dict[str, torch.Tensor], accepts: frozenset[str], each: int = 1) -> Predicted:
    """Predict the answers of a batch, of packed lines or one answer a line.

    Args:
        model: The model.
        batch: From a collator of this module or of :mod:`mogu.train.batches`.
        accepts: Names of the parameters of the model's forward; see :func:`~mogu.train.batches.answer_logits`.
        each: Answers of a packed text.
    """
    if "segments" not in batch:
        logits, labels = answer_logits(model, batch, accepts)
        said = labels[:, 1:] != IGNORED
        return Predicted(logits[:, :-1][said], labels[:, 1:][said], said.nonzero()[:, 0], len(labels))
    targets, answers = batch["targets"], batch["answers"]
    inputs: dict[str, Any] = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"]}
    kept = targets.shape[1] - int((targets != IGNORED).any(dim=0).nonzero()[0])
    if "logits_to_keep" in accepts:
        inputs["logits_to_keep"] = kept
    mask = as_read_by(model, segment_mask(batch["segments"], batch["prompts"]))
    logits = model(**inputs, attention_mask=mask, use_cache=False).logits[:, -kept:]
    said = answers[:, -kept:] != _NONE
    return Predicted(logits[said], targets[:, -kept:][said], answers[:, -kept:][said], each * len(batch["line"]))


def pair_cross_entropy(
    model: Any, batch: dict[str, torch.Tensor], accepts: frozenset[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross-entropy over each wanted answer, and over each unwanted one.

    Args:
        model: The model.
        batch: From :class:`PackedCollator` or :class:`~mogu.train.batches.PairCollator`.
        accepts: As for :func:`predicted`.

    Returns:
        Two (pairs,) float32 tensors, in nats per token, gradients attached.
    """
    if "segments" not in batch:
        wanted, unwanted = response_cross_entropy(*answer_logits(model, batch, accepts)).chunk(2)
        return wanted, unwanted
    means = predicted(model, batch, accepts, each=2).cross_entropy()
    return means[0::2], means[1::2]


def of_texts(states: torch.Tensor, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """What a forward found at the columns of lines, text by text, what several texts share in each.

    Args:
        states: (layers, lines, columns).
        batch: What went through the model.

    Returns:
        (layers, texts, longest text), and (texts, longest text) bool: which of them are there.
    """
    if "segments" not in batch:
        return states, batch["attention_mask"].bool()
    columns = batch["columns"]
    return states[:, batch["line"][:, None], columns.clamp(min=0)], columns >= 0


def lines_with(batch: dict[str, torch.Tensor], texts: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The lines of a batch that hold some of its texts, as a batch of their own.

    Args:
        batch: From a collator whose answers are of one text each.
        texts: (chosen,) int64.

    Returns:
        The batch, and (texts,) bool: which texts are in it, some perhaps besides the chosen ones.
    """
    if "segments" not in batch:
        held = torch.zeros(len(batch["input_ids"]), dtype=torch.bool, device=texts.device)
        held[texts] = True
        made = {name: tensor[held] for name, tensor in batch.items()}
        if "line" in made:
            made["line"] = torch.arange(len(made["line"]), device=texts.device)
        return made, held
    lines = batch["line"][texts].unique()
    held = torch.isin(batch["line"], lines)
    made = {name: tensor[lines] if name in _OF_COLUMNS else tensor[held] for name, tensor in batch.items()}
    return {**made, "line": torch.searchsorted(lines, made["line"])}, held


def as_read_by(model: Any, mask: torch.Tensor) -> torch.Tensor:
    """A mask of :func:`segment_mask` as the model's attention wants it: sdpa reads truth values, eager adds."""
    if _attention(model) == "sdpa":
        return mask
    dtype = next(model.parameters()).dtype
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def _attention(model: Any) -> str | None:
    inner = getattr(model, "module", model)  # what trains on several devices hides the model there
    return getattr(inner.config.get_text_config(), "_attn_implementation", None)


class _Collator(Protocol):
    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]: ...

    def length(self, row: Row) -> int: ...


_Plain = TypeVar("_Plain", bound=_Collator)


def packed_if_alike(
    model: Any,
    plain: _Plain,
    packed: _Plain,
    rows: Sequence[Row],
    losses: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    accepts: frozenset[str],
) -> _Plain:
    """``packed`` where ``model`` computes the same with its lines, else ``plain``.

    Decided by trial: the longest of ``rows`` and the shortest go through the model both ways, without gradients.

    Args:
        model: peft model, in the stage that is trained.
        plain: Makes a line of each answer.
        packed: Makes packed lines of the same.
        rows: The rows to train on, at least one.
        losses: Of a batch, one for each answer.
        accepts: Names of the parameters of the base's forward.
    """
    by_length = sorted(rows, key=plain.length)
    if not may_pack(model, accepts, plain.length(by_length[-1])):
        return plain
    return packed if _same_losses(model, packed, plain, [by_length[-1], by_length[0]], losses) else plain


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
    model: Any,
    packed: _Collator,
    plain: _Collator,
    rows: Sequence[Row],
    losses: Callable[[dict[str, torch.Tensor]], torch.Tensor],
) -> bool:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            found = [losses({k: v.to(model.device) for k, v in c(rows).items()}) for c in (plain, packed)]
    except torch.OutOfMemoryError:
        raise
    except REFUSED_MASK:
        return False
    finally:
        model.train(was_training)
    tolerance = _TOLERANCE.get(model.dtype, _ROUGH_TOLERANCE)
    return bool(((found[0] - found[1]).abs() <= tolerance * found[0].abs().clamp(min=1)).all())
