"""What the tail's re-read need not compute: everything below the first routed layer.

Routing changes what the first routed layer puts out, and nothing below it. So the head keeps the keys and values of the
lower layers and the hidden states that leave them, and the tail reads prompt and head again from the first routed layer
up. Where that is not sure to be the same (static and offloaded caches, other kinds of cache layers, outputs that would
show the skipped layers, models that hand more than hidden states to their upper layers), all is read again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import DynamicCache, GenerationConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from mogu.adapter.model import decoder_layers, mogu_layers, plain_base
from mogu.adapter.skip import Caught, caught, skipped
from mogu.prefix import REFUSED, tolerance

_TRIAL = 6
"""Tokens on which it is tried whether skipping changes anything."""
_alike: WeakKeyDictionary[nn.Module, dict[tuple[int, torch.dtype], bool]] = WeakKeyDictionary()
"""What was found, by first routed layer and dtype."""


class _Reached(Exception):
    """The layers below have been computed."""


@dataclass
class Kept:
    """The lower layers after prompt and head; used up by one :meth:`reread`."""

    below: Sequence[nn.Module]
    states: torch.Tensor
    """(rows, tokens, width): what the last of them put out."""
    outputs: int | None
    """As in :class:`mogu.adapter.skip.Caught`."""
    layers: list[Any]
    """Their part of the cache."""

    @contextmanager
    def reread(self, cache: DynamicCache, prefix: int = 0) -> Iterator[None]:
        """The first forward inside (with a shared ``prefix``, the first two) computes the upper layers only.

        Each lower layer's part of ``cache``, empty till then so that masks come out right, is filled in its place.
        """
        parts = [self.states[:1, :prefix], self.states[:, prefix:]] if prefix else [self.states]
        del self.states
        with ExitStack() as skipping:

            def begin() -> None:
                skipping.close()
                if parts:
                    skipping.enter_context(skipped(self.below, parts.pop(0), self.outputs, fill))

            def fill(index: int) -> None:
                layer = self.layers[index]
                cache.layers[index : index + 1] = [_beginning(layer, prefix) if parts else layer]
                if index == len(self.below) - 1:
                    begin()

            begin()
            yield


class Head:
    """Watches the lower layers during the head."""

    def __init__(self, model: PreTrainedModel, cache: DynamicCache, first: int) -> None:
        self.model, self.cache = model, cache
        layers = decoder_layers(model)
        self.below, self.lowest_routed = layers[:first], layers[first]
        self.found = Caught()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Around the head's forwards."""
        with caught(self.below) as self.found:
            yield

    def keep(self, sequences: torch.Tensor, model_kwargs: dict[str, Any]) -> Kept | None:
        """What the head leaves, after the lower layers have also read its last token; ``None`` if it does not fit.

        Args:
            sequences: (rows, length) int64, prompt and head.
            model_kwargs: Masks and positions of these.
        """
        rows, length = sequences.shape
        forwards = self.found.forwards
        layers = self.cache.layers[: len(self.below)]
        if not all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
            return None
        if sum(states.shape[1] for states in forwards) == length - 1:
            forwards.append(self._read_last(sequences, model_kwargs))
        if not forwards or any(layer.get_seq_length() != length for layer in layers):
            return None
        states = torch.cat([states.expand(rows, -1, -1) for states in forwards], dim=1)
        forwards.clear()
        return Kept(self.below, states, self.found.outputs, layers) if states.shape[1] == length else None

    def _read_last(self, sequences: torch.Tensor, model_kwargs: dict[str, Any]) -> torch.Tensor:
        """States (rows, 1, width) of the last token, which the head chose and did not read."""

        def stop(*_: Any) -> None:
            raise _Reached

        inputs = self.model.prepare_inputs_for_generation(
            sequences, next_sequence_length=1, **{**model_kwargs, "past_key_values": self.cache, "use_cache": True}
        )
        handle = self.lowest_routed.register_forward_pre_hook(stop)
        try:
            with caught(self.below) as found:
                self.model.forward(**inputs)  # not a call: hooks that count forwards would count a part as one
        except _Reached:
            pass
        finally:
            handle.remove()
        assert found.states is not None
        return found.states


def watch_head(
    model: PreTrainedModel, config: GenerationConfig, model_kwargs: dict[str, Any], synced_gpus: bool
) -> Head | None:
    """For a head whose lower layers may be kept; ``None`` where all has to be read again."""
    cache, layers = model_kwargs.get("past_key_values"), mogu_layers(model)
    shown = config.return_dict_in_generate and (config.output_attentions or config.output_hidden_states)
    if not isinstance(cache, DynamicCache) or type(cache) is not DynamicCache or cache.offloading:
        return None
    if not layers or layers[0][0] == 0 or shown:
        return None
    if not model_kwargs.get("use_cache", True) or config.prefill_chunk_size is not None or synced_gpus:
        return None
    return Head(model, cache, layers[0][0])


def changes_nothing(model: PreTrainedModel, first: int) -> bool:
    """Whether a re-read from layer ``first`` up is the same as a whole one, tried once for each model."""
    found, key = _alike.setdefault(model, {}), (first, model.dtype)
    if key not in found:
        with torch.no_grad():
            found[key] = _tried(model, first)
    return found[key]


def _tried(model: PreTrainedModel, first: int) -> bool:
    config = model.config.get_text_config()
    ids = torch.arange(_TRIAL + 1, device=model.device)[None] % config.vocab_size
    prompt, following = ids[:, :_TRIAL], ids[:, _TRIAL:]
    head = Head(model, DynamicCache(config=config), first)

    def read(tokens: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        mask = tokens.new_ones(1, cache.get_seq_length() + tokens.shape[1])
        output = model.forward(input_ids=tokens, attention_mask=mask, past_key_values=cache, use_cache=True)
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits

    try:
        cache = DynamicCache(config=config)
        with plain_base(model):
            whole = torch.cat([read(prompt, cache), read(following, cache)])
        with head.watched():
            read(prompt[:, :-1], head.cache)  # routed, as a head is
        kept, cache = head.keep(prompt, {"attention_mask": torch.ones_like(prompt)}), DynamicCache(config=config)
        if kept is None:
            return False
        with plain_base(model), kept.reread(cache):
            short = torch.cat([read(prompt, cache), read(following, cache)])
    except torch.OutOfMemoryError:
        raise
    except REFUSED:
        return False
    return bool((whole - short).abs().max() <= tolerance(model.dtype) * whole.abs().max())


def _beginning(layer: DynamicLayer, tokens: int) -> DynamicLayer:
    """The first tokens of the first row."""
    made = DynamicLayer()
    made.update(layer.keys[:1, :, :tokens], layer.values[:1, :, :tokens])
    return made
