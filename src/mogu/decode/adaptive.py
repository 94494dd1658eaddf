"""Rows that hand over at their own time: by risk, while it is above a threshold; by thought, m tokens after it is over.

After each new token the risk at the newest token that was read decides, or what was written. The head goes on until
every row is ready for the base or has ended; what rows that were ready earlier were given beyond that point (surplus)
is dropped. The tail then holds heads of unequal length, so blank columns go in front of the shorter ones. The caller's
processors and criteria see each row without its blanks: greedy, every row gets the tokens that it gets alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation import StoppingCriteria, StoppingCriteriaList

from mogu.adapter.config import THINK
from mogu.adapter.risk import risk_of
from mogu.errors import GenerationError


@dataclass(frozen=True)
class Thinking:
    """What begins and ends a thought, as token ids."""

    begins: tuple[int, ...]
    ends: tuple[int, ...]
    limit: int
    """New tokens after which a row is ready though its thought goes on."""

    def counted(self, sequences: torch.Tensor, start: int) -> torch.Tensor:
        """New tokens of each row that are no thought: none while one goes on, else those after it, int64 (rows,).

        Args:
            sequences: Prompts, padded on the left, and what was written so far, int64 (rows, length).
            start: Columns of the prompts. A thought that the prompt's end begins counts as one of the answer.
        """
        length = sequences.shape[1]
        begun, ended = self._last(sequences, self.begins), self._last(sequences, self.ends)
        after = torch.where(ended >= 0, ended, 0).clamp(min=start)
        counted = torch.where((begun >= 0) & (ended <= begun), 0, length - after)
        return torch.where(torch.full_like(counted, length - start) >= self.limit, length - start, counted)

    @staticmethod
    def _last(sequences: torch.Tensor, marker: tuple[int, ...]) -> torch.Tensor:
        """Column after the last ``marker`` of each row; -1 where there is none."""
        size = len(marker)
        if sequences.shape[1] < size:
            return torch.full((len(sequences),), -1, device=sequences.device)
        found = (sequences.unfold(1, size, 1) == sequences.new_tensor(marker)).all(dim=2)
        columns = torch.arange(size, found.shape[1] + size, device=sequences.device)
        return torch.where(found, columns, -1).amax(dim=1)


def thinking_of(
    think: str, tokens: Sequence[Sequence[int]] | None, limit: int, reference: bool = False
) -> Thinking | None:
    """What options of ``generate`` mean; ``None`` where all tokens count.

    Raises:
        GenerationError: Unknown, without the tokens of a thought, or together with reference decoding.
    """
    if think not in THINK:
        raise GenerationError(f"unknown think {think!r}; choose from {', '.join(THINK)}")
    if think == "ignore":
        return None
    if reference:
        raise GenerationError("reference decoding hands over after m tokens, thought or not; drop reference or think")
    if not tokens:
        raise GenerationError("think='through' needs think_tokens: ids that begin a thought, and ids that end it")
    begins, ends = tokens
    return Thinking(tuple(begins), tuple(ends), limit)


class HeadWatch(StoppingCriteria):
    """Reads the risk in the head, and notes for each row when it ended or was ready for the plain base.

    Never stops a single row, which would be padded; all of them when no row has a reason to stay.
    """

    def __init__(
        self,
        logits: Callable[[], torch.Tensor | None],
        finished: Callable[[], torch.Tensor],
        calibration: Mapping[str, Any] | None,
        routed_tokens: int | None,
        threshold: float | None,
        thinking: Thinking | None = None,
    ) -> None:
        """Watch one head.

        Args:
            logits: Router logits (2, routed layers, rows, tokens) of the last forward.
            finished: Rows (bool) that the caller's criteria have ended so far; read after these.
            calibration: ``MoguConfig.risk``; ``None``: no risk is read.
            routed_tokens: m, before which no row is ready; ``None``: rows are never ready.
            threshold: Risk above which a row stays; ``None``: whatever it is.
            thinking: Tokens of a thought do not count; ``None``: all do.
        """
        self.thinking = thinking
        self.logits, self.finished, self.calibration = logits, finished, calibration
        self.routed_tokens, self.threshold = routed_tokens, threshold
        self.steps = 0
        self.prompt_risk: torch.Tensor | None = None
        self.ended_at = self.ready_at = torch.empty(0, dtype=torch.long)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """All rows at once, when none has a reason to stay: (rows,) bool."""
        if self.steps == 0:
            self.ended_at = torch.full((len(input_ids),), -1, device=input_ids.device)
            self.ready_at = self.ended_at.clone()
        self.steps += 1
        by_risk = self.routed_tokens is not None and self.threshold is not None
        risk = self._risk() if self.steps == 1 or by_risk else None
        staying = (self.ended_at < 0) & (self.ready_at < 0)
        self.ended_at = torch.where(staying & self.finished(), self.steps, self.ended_at)
        if self.routed_tokens is not None and self.steps >= self.routed_tokens:
            ready = staying & (self.ended_at < 0)
            if self.thinking is not None:
                ready &= self.thinking.counted(input_ids, input_ids.shape[1] - self.steps) >= self.routed_tokens
            if self.threshold is not None:
                if risk is None:
                    return torch.zeros_like(staying)
                ready &= risk <= self.threshold
            self.ready_at = torch.where(ready, self.steps, self.ready_at)
            return torch.full_like(ready, bool(((self.ended_at >= 0) | (self.ready_at >= 0)).all()))
        return torch.zeros_like(staying)

    def _risk(self) -> torch.Tensor | None:
        logits = self.logits()
        if logits is None or self.calibration is None:
            return None
        first = self.steps == 1
        risk = risk_of(logits[..., -1], self.calibration, "prompt" if first else "answer")
        if first:
            self.prompt_risk = risk
        return risk

    @property
    def ended(self) -> torch.Tensor:
        """Rows (bool) whose answers are complete."""
        return self.ended_at >= 0

    @property
    def routed(self) -> torch.Tensor:
        """Routed new tokens of each row that count, int64 (rows,)."""
        return torch.where(self.ready_at >= 0, self.ready_at, torch.where(self.ended, self.ended_at, self.steps))


class Uneven:
    """A tail whose rows had heads of unequal length.

    Rows lie as ``shared prefix | blanks | rest of the prompt | head``, all equally long.
    """

    def __init__(self, routed: torch.Tensor, ended: torch.Tensor, prompt_length: int, shared: int) -> None:
        """Lay out a tail.

        Args:
            routed: Head tokens of each row, int64 (rows,).
            ended: Rows that need no tail; they come along, cut to the longest head of the others.
            prompt_length: Columns of the prompts.
            shared: Tokens that all prompts begin with, before any padding.
        """
        self.routed, self.ended = routed, ended
        self.prompt_length, self.shared = prompt_length, shared
        self.longest = int(routed[~ended].max())
        self.blanks = torch.where(ended, 0, self.longest - routed).tolist()
        self.steps = 0
        self.done_at = torch.full_like(routed, -1)

    @property
    def extra(self) -> int:
        """Columns by which the tail is longer than the longest answer."""
        return max(self.blanks)

    def pack(self, sequences: torch.Tensor, pad: int) -> torch.Tensor:
        """Prompts and heads (rows, prompt and longest head) of the head's sequences, surplus dropped."""
        kept = sequences[:, : self.prompt_length + self.longest]
        return self._shifted(kept, pad)

    def extend(self, kwargs: dict[str, Any]) -> None:
        """Let masks and positions made for the prompts cover the heads, and skip the blanks."""
        new = self.longest
        if (mask := kwargs.get("attention_mask")) is not None:
            kwargs["attention_mask"] = self._shifted(torch.cat([mask, mask.new_ones(len(mask), new)], dim=1), 0)
        if (positions := kwargs.get("position_ids")) is not None:
            steps = torch.arange(1, new + 1, device=positions.device, dtype=positions.dtype)
            kwargs["position_ids"] = self._shifted(torch.cat([positions, positions[:, -1:] + steps], dim=1), 0)
        if (types := kwargs.get("token_type_ids")) is not None:
            kwargs["token_type_ids"] = self._shifted(torch.cat([types, types[:, -1:].expand(-1, new)], dim=1), 0)

    def _shifted(self, rows: torch.Tensor, blank: int) -> torch.Tensor:
        """Each row with its blanks behind the shared prefix, cut where the longest head ends."""
        shifted = rows.clone()
        for index, blanks in enumerate(self.blanks):
            shifted[index, self.shared + blanks :] = rows[index, self.shared : rows.shape[1] - blanks]
            shifted[index, self.shared : self.shared + blanks] = blank
        return shifted

    def processors(self, inner: Sequence[LogitsProcessor]) -> LogitsProcessor:
        """The caller's processors, which see each row without blanks."""
        return _Processors(self, LogitsProcessorList(inner))

    def criteria(self, inner: Sequence[StoppingCriteria]) -> StoppingCriteria:
        """The caller's criteria, likewise; notes when each row ends."""
        return _Criteria(self, StoppingCriteriaList(inner))

    def each(self, input_ids: torch.Tensor, call: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """What ``call`` returns for each row, asked once for every number of blanks with these cut out of all rows."""
        found: torch.Tensor | None = None
        for blanks in sorted(set(self.blanks)):
            mine = torch.tensor([own == blanks for own in self.blanks], device=input_ids.device)
            seen = torch.cat([input_ids[:, : self.shared], input_ids[:, self.shared + blanks :]], dim=1)
            value = call(seen)
            found = value if found is None else torch.where(mine.view(-1, *[1] * (value.dim() - 1)), value, found)
        assert found is not None
        return found

    def unpack(self, head: torch.Tensor, tail: torch.Tensor, pad: int) -> torch.Tensor:
        """Prompts and answers, padded on the right, of the sequences of head and tail."""
        start = self.prompt_length
        done = torch.where(self.done_at < 0, self.steps, self.done_at)
        lengths = torch.where(self.ended, self.routed, self.routed + done).tolist()
        sequences = head.new_full((len(head), start + max(lengths)), pad)
        sequences[:, :start] = head[:, :start]
        for index, length in enumerate(lengths):
            kept = int(self.routed[index])
            sequences[index, start : start + kept] = head[index, start : start + kept]
            written = tail[index, start + self.longest :][: length - kept]
            sequences[index, start + kept : start + length] = written
        return sequences

    def scores(
        self, head: Sequence[torch.Tensor], tail: Sequence[torch.Tensor], length: int
    ) -> tuple[torch.Tensor, ...]:
        """One tensor (rows, vocabulary) for each of ``length`` new tokens, from those of head and tail."""
        found = []
        for step in range(length):
            rows = []
            for index, (kept, ended) in enumerate(zip(self.routed.tolist(), self.ended.tolist(), strict=True)):
                if ended or step < kept:
                    rows.append(head[min(step, len(head) - 1)][index])
                else:
                    rows.append(tail[min(step - kept, len(tail) - 1)][index])
            found.append(torch.stack(rows))
        return tuple(found)


class _Processors(LogitsProcessor):
    def __init__(self, uneven: Uneven, inner: LogitsProcessorList) -> None:
        self.uneven, self.inner = uneven, inner

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return self.uneven.each(input_ids, lambda seen: self.inner(seen, scores.clone()))


class _Criteria(StoppingCriteria):
    def __init__(self, uneven: Uneven, inner: StoppingCriteriaList) -> None:
        self.uneven, self.inner = uneven, inner

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        uneven = self.uneven
        uneven.steps += 1
        done = uneven.each(input_ids, lambda seen: self.inner(seen, scores, **kwargs).bool())
        uneven.done_at = torch.where(done & (uneven.done_at < 0), uneven.steps, uneven.done_at)
        return uneven.done_at >= 0
