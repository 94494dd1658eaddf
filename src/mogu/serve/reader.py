"""Forwards of rows of unequal length, routed and plain ones mixed, over :class:`~mogu.serve.slots.Slots`.

Batches are padded on the left, so that every row's last token is in the last column; the padding is not written to the
cache. Masks (rows, 1, tokens, columns) and positions are given to the model. Whether an architecture understands them,
and keeps nothing but keys and values, is found by trial when an engine starts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from mogu.adapter.model import decoder_layers, fused, mogu_layers
from mogu.adapter.rows import Rows, by_row
from mogu.adapter.skip import skipped
from mogu.errors import AdapterError, ModelError
from mogu.prefix import REFUSED, tolerance
from mogu.serve.attention import grouped
from mogu.serve.slots import Place, Slots

Depth = Literal["whole", "upper", "lower"]
"""All layers; from the first routed one up, on states that were kept; only those below it."""

_WINDOW = 5
"""Sliding window during the trial: shorter than its rows."""
_TRIAL = (9, 5)
"""Tokens of the trial's rows."""


@dataclass(frozen=True)
class Part:
    """Tokens of one row that a forward reads."""

    slot: int
    start: int
    """Tokens of the row that were read before."""
    ids: Sequence[int]
    shift: float | None
    """δ with which they are routed; ``None``: plain."""


class _Reached(Exception):
    """The lower layers have been computed."""


class Reader:
    """One model, its routing by row, and the cache of its rows.

    Use as a context: until it is left, projections are fused and the model is the reader's alone.

    Raises:
        ModelError: The architecture keeps a state that :class:`Slots` cannot hold, or takes no mask by row.
        AdapterError: There is an adapter, but nothing of it can be routed.
    """

    def __init__(self, model: Any) -> None:
        self.peft = model
        self.model = model.base_model.model if hasattr(model, "peft_config") else model
        self.config = self.model.config.get_text_config()
        layers = mogu_layers(self.model)
        if layers and (layers[0][1].disable_adapters or layers[0][1].numbers() is None):
            raise AdapterError("the adapter is disabled or not in the routed stage; load it with mogu.load to serve it")
        self.routed = bool(layers)
        self.dtype: torch.dtype = self.model.dtype
        self.adapter_dtype = next(layers[0][1].mogu_glad_A.parameters()).dtype if layers else self.dtype
        self.device: torch.device = self.model.device
        self.below = decoder_layers(self.model)[: layers[0][0]] if layers else []
        self.lowest = decoder_layers(self.model)[layers[0][0]] if layers else None
        self.outputs: int | None = None
        self.keeps_states = False
        """Whether a hand-over may begin at the first routed layer."""
        self.form: Callable[[torch.Tensor], Any] = self._full
        self.slots = Slots(0)
        self.rows = Rows()
        accepted = inspect.signature(self.model.forward).parameters
        self.options = {"use_cache": True} | ({"logits_to_keep": 1} if "logits_to_keep" in accepted else {})
        self._leaving = ExitStack()

    def __enter__(self) -> Reader:
        with ExitStack() as entering:
            self.rows = entering.enter_context(by_row(self.model))
            entering.enter_context(grouped(self.model))
            if self.routed:
                entering.enter_context(fused(self.peft))
            if self.below:
                handle = self.below[-1].register_forward_hook(self._keep)
                entering.callback(handle.remove)
            self._try_all()
            self._leaving = entering.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.close()

    def start(self, tokens: int, columns: int) -> None:
        """An empty cache for so many tokens."""
        self.slots = Slots(tokens)
        self.slots.lay_out(columns)

    def read(self, parts: Sequence[Part], depth: Depth = "whole") -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """One forward.

        Returns:
            Logits (rows, vocabulary) after each row's last token, ``None`` where only the lower layers were asked;
            router logits (2, routed layers, rows, tokens), unwill first, ``None`` without routed rows.
        """
        width = max(len(part.ids) for part in parts)
        ids, starts, positions, place = self._placed(parts, width)
        self.slots.place = place
        self.rows.set([part.shift for part in parts], width, self.device, self.adapter_dtype)
        inputs = {"input_ids": ids, "position_ids": positions.clamp(min=0), "past_key_values": self.slots}
        inputs["attention_mask"] = self.form(positions)
        if depth == "lower":
            self._read_lower(inputs)
            return None, None
        with ExitStack() as skipping:
            if depth == "upper":
                where = starts[:, None] + positions.clamp(min=0)
                skipping.enter_context(skipped(self.below, self.slots.read_states(where), self.outputs))
            output = self.model(**inputs, **self.options)
        routers = None
        if self.rows.any_routed and self.rows.logits:
            first = self.rows.logits[0].device  # layers of one model may lie on several
            routers = torch.stack([each.to(first) for each in self.rows.logits])
            routers = routers.view(len(routers), len(parts), width, 2).permute(3, 0, 1, 2)
        return output.logits[:, -1], routers

    def _placed(self, parts: Sequence[Part], width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Place]:
        """Ids and positions (rows, width), where each row's slot begins in the block, and the place of the forward."""
        slots, counts = [part.slot for part in parts], [len(part.ids) for part in parts]
        table = [[0] * (width - len(part.ids)) + list(part.ids) for part in parts]
        begins = [part.start + count - width for part, count in zip(parts, counts, strict=True)]
        numbers = torch.tensor([[slot * self.slots.columns for slot in slots], begins], device=self.device)
        starts = numbers[0]
        positions = numbers[1][:, None] + torch.arange(width, device=self.device)
        target, source = (starts[:, None] + positions).flatten(), None
        if min(counts) < width:
            pads = torch.tensor([width - count for count in counts], device=self.device)
            source = (torch.arange(width, device=self.device) >= pads[:, None]).flatten().nonzero().flatten()
            target = target[source]
        following = slots == list(range(slots[0], slots[0] + len(slots)))
        where = slice(slots[0], slots[0] + len(slots)) if following else torch.tensor(slots, device=self.device)
        longest = max(part.start + count for part, count in zip(parts, counts, strict=True))
        return torch.tensor(table, device=self.device), starts, positions, Place(where, longest, target, source)

    def _read_lower(self, inputs: dict[str, Any]) -> None:
        def stop(*_: Any) -> None:
            raise _Reached

        assert self.lowest is not None
        handle = self.lowest.register_forward_pre_hook(stop)
        try:
            self.model(**inputs, **self.options)
        except _Reached:
            pass
        finally:
            handle.remove()

    def _keep(self, layer: Any, args: Any, output: Any) -> None:
        """Of every forward that computes the lower layers; of ``upper`` ones, the states that were put in."""
        alone = isinstance(output, torch.Tensor)
        self.outputs = None if alone else len(output)
        if self.slots.place is not None:
            self.slots.write_states(output if alone else output[0])

    # masks

    def _visible(self, positions: torch.Tensor, window: int | None = None) -> torch.Tensor:
        """(rows, 1, tokens, columns), 0 where a token sees, the least number where it does not."""
        assert self.slots.place is not None
        columns = torch.arange(self.slots.place.longest, device=self.device)
        at = positions.clamp(min=0)[:, None, :, None]
        hidden = columns > at
        if window is not None:
            hidden |= columns <= at - window
        mask = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device)
        return mask.masked_fill_(hidden, torch.finfo(self.dtype).min)

    def _full(self, positions: torch.Tensor) -> torch.Tensor:
        return self._visible(positions)

    def _sliding(self, positions: torch.Tensor) -> torch.Tensor:
        return self._visible(positions, self.config.sliding_window)

    def _by_kind(self, positions: torch.Tensor) -> dict[str, torch.Tensor]:
        window = getattr(self.config, "sliding_window", None)
        masks = {"full_attention": self._visible(positions)}
        masks["sliding_attention"] = masks["full_attention"] if window is None else self._visible(positions, window)
        return masks

    # the trial

    def _try_all(self) -> None:
        sliding = getattr(self.config, "sliding_window", None) is not None
        forms: list[Callable[[torch.Tensor], Any]] = (
            [self._by_kind] if getattr(self.config, "layer_types", None) else []
        )
        forms += [self._sliding, self._full] if sliding else [self._full]
        with torch.inference_mode(), _narrow(self.config):
            for self.form in forms:
                if self._agrees(self._try_rows):
                    self.keeps_states = bool(self.below) and self._agrees(self._try_upper)
                    return
        raise ModelError(
            f"{self.config.model_type} cannot be served: its rows cannot begin and end by themselves in one batch "
            "(it keeps more than keys and values, or takes no mask for each row); use mogu generate"
        )

    def _agrees(self, attempt: Callable[[], Iterator[tuple[torch.Tensor, torch.Tensor]]]) -> bool:
        self.start(96, 32)
        try:
            return all(
                bool((found - wanted).abs().max() <= tolerance(self.dtype) * wanted.abs().max())
                for found, wanted in attempt()
            )
        except torch.OutOfMemoryError:
            raise
        except REFUSED:
            return False

    def _try_rows(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Two rows, of which the longer is read in two parts beside the other, and a step of both."""
        long, short = (self._ids(length) for length in _TRIAL)
        shift = 0.0 if self.routed else None
        self.read([Part(1, 0, long[:4], None)])
        logits, _ = self.read([Part(2, 0, short, shift), Part(1, 4, long[4:], None)])
        assert logits is not None
        yield logits[:1].float(), self._whole(short, shift)
        yield logits[1:].float(), self._whole(long, None)
        self.slots.move(2, 0, len(short))
        logits, _ = self.read([Part(0, len(short), [7], shift), Part(1, len(long), [8], None)])
        assert logits is not None
        yield logits[:1].float(), self._whole([*short, 7], shift)
        yield logits[1:].float(), self._whole([*long, 8], None)

    def _try_upper(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """A row that is read routed, and again from the first routed layer up."""
        ids = self._ids(_TRIAL[0])
        self.read([Part(0, 0, ids[:-1], 0.0)])
        self.read([Part(0, len(ids) - 1, ids[-1:], None)], "lower")
        logits, _ = self.read([Part(0, 0, ids[:4], None)], "upper")
        logits, _ = self.read([Part(0, 4, ids[4:], None)], "upper")
        assert logits is not None
        yield logits.float(), self._whole(ids, None)

    def _whole(self, ids: Sequence[int], shift: float | None) -> torch.Tensor:
        """Logits (1, vocabulary) as the model computes them by itself."""
        self.rows.set([shift], len(ids), self.device, self.adapter_dtype)
        place, self.slots.place = self.slots.place, None
        output = self.model(input_ids=torch.tensor([list(ids)], device=self.device), use_cache=False)
        self.slots.place = place
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits

    def _ids(self, length: int) -> list[int]:
        return [(3 + 5 * n) % self.config.vocab_size for n in range(length)]


@contextmanager
def _narrow(config: Any) -> Iterator[None]:
    """A sliding window shorter than the trial's rows inside: models read it when they make their own masks."""
    window = getattr(config, "sliding_window", None)
    if window is None:
        yield
        return
    config.sliding_window = min(window, _WINDOW)
    try:
        yield
    finally:
        config.sliding_window = window
