"""The hand-over from the routed head to the plain tail, inside one ``generate`` call.

Routing changes keys and values at every position above the first routed layer, so the tail cannot use the head's cache
there: it reads prompt and head again with the plain base (:mod:`mogu.decode.reread`). transformers' own sampling loop
runs twice, with the caller's logits processors and stopping criteria, so every option of ``generate`` means what it
always means.

The only file on transformers' private generation API (checked against transformers 5.17): ``_sample``,
``_prepare_cache_for_generation``, and ``custom_generate``'s habit of dropping ``streamer`` and ``synced_gpus``.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.generation import MaxLengthCriteria, StoppingCriteria, StoppingCriteriaList, StopStringCriteria
from transformers.generation.configuration_utils import GenerationMode
from transformers.utils import ModelOutput

from mogu.adapter.config import HANDOVERS
from mogu.adapter.model import fused, plain_base, recorded_logits
from mogu.adapter.risk import MISSING
from mogu.decode.adaptive import HeadWatch, Thinking, Uneven, thinking_of
from mogu.decode.reread import Kept, changes_nothing, watch_head
from mogu.errors import AdapterError, GenerationError
from mogu.prefix import can_hold, prefilled

_MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)


def generate(
    model: PreTrainedModel,
    *args: Any,
    routed_tokens: int = 5,
    handover: str = "fixed",
    risk_threshold: float = 0.5,
    calibration: Mapping[str, Any] | None = None,
    think: str = "ignore",
    think_tokens: Sequence[Sequence[int]] | None = None,
    think_limit: int = 256,
    reference: bool = False,
    shared_prefix: int = 0,
    on_handover: Callable[[torch.Tensor], None] | None = None,
    **kwargs: Any,
) -> Any:
    """``model.generate`` with the first ``routed_tokens`` new tokens routed and the rest plain (MoGU paper, section 3).

    Args:
        model: The transformers model inside the tuner.
        *args: As for ``GenerationMixin.generate``.
        routed_tokens: m; 0 decodes with the plain base from the start.
        handover: ``fixed``: after m tokens, as published; ``risk``: after m tokens or later, when the risk at the
            newest token is not above ``risk_threshold``, each row at its own time; ``all``: never.
        risk_threshold: See ``handover``.
        calibration: ``MoguConfig.risk``. With it, an output as a dict holds ``risk`` (rows,) float32, read in the
            head's first forward; and always ``routed_tokens`` (rows,) int64, how many new tokens were routed.
        think: ``ignore``: m is counted from the first new token, as published; ``through``: a row that thinks stays
            routed through its thought and m tokens after it, each row at its own time.
        think_tokens: Ids of what begins a thought, and of what ends it.
        think_limit: New tokens after which the base takes over though a thought goes on.
        reference: Do as the authors' code does: an end-of-turn token inside the routed head is dropped and the base
            goes on. One prompt at a time. Otherwise such a token ends the answer.
        shared_prefix: Tokens with which all prompts begin, before any padding: read once instead of once for each row
            (:mod:`mogu.prefix`), unless the cache is of a kind that cannot.
        on_handover: Called with the sequences (rows × length) when the head is done.
        **kwargs: As for ``GenerationMixin.generate``: sampling, streaming, static caches, stopping criteria, ….

    Raises:
        GenerationError: Beam search, assisted decoding, guidance, embeddings for a prompt, a cache of the caller,
            ``routed_tokens`` below 0, or a hand-over that does not go with the other options.
        AdapterError: A hand-over by risk without calibration.
    """
    kwargs = {**inspect.signature(model.generate).bind_partial(*args).arguments, **kwargs}
    if routed_tokens < 0:
        raise GenerationError(f"routed_tokens must be at least 0, not {routed_tokens}")
    _check_handover(handover, reference, calibration)
    thinking = thinking_of(think, think_tokens, think_limit, reference)
    if kwargs.get("assistant_model") is not None:
        raise GenerationError("routed decoding does not work with an assistant model; drop assistant_model")
    if kwargs.get("past_key_values") is not None:
        raise GenerationError("routed decoding re-reads the prompt and takes no past_key_values; pass the whole prompt")
    if kwargs.get("custom_generate") is not None:
        raise GenerationError(
            "routed decoding is itself a custom_generate; call inside model.disable_adapter() for another"
        )
    if kwargs.get("inputs_embeds") is not None:
        raise GenerationError("routed decoding re-reads its own tokens and takes no inputs_embeds; pass input_ids")
    if routed_tokens == 0:
        with plain_base(model):
            if shared_prefix:
                ids = kwargs["input_ids"]
                kwargs["past_key_values"] = prefilled(model, ids[:1, :shared_prefix], len(ids))
            return model.generate(**kwargs)
    _take_stop_strings(kwargs)
    streamer, synced_gpus = kwargs.get("streamer"), bool(kwargs.get("synced_gpus"))

    def loop(
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> Any:
        mode = generation_config.get_generation_mode()
        if mode not in _MODES:
            raise GenerationError(
                f"routed decoding is greedy or sampled, not {mode.value.replace('_', ' ')}; set num_beams=1"
            )
        if generation_config.guidance_scale not in (None, 1):
            raise GenerationError(
                "classifier-free guidance keeps a cache that the hand-over cannot renew; drop guidance_scale"
            )
        run = _Run(model, logits_processor, stopping_criteria, generation_config, streamer, synced_gpus, model_kwargs)
        run.shared_prefix = shared_prefix
        run.thinking = None if handover == "all" else thinking
        adaptive = handover == "risk" or run.thinking is not None
        if adaptive and len(input_ids) > 1:
            _check_rows(generation_config, streamer)
        head, watch = run.head(input_ids, routed_tokens, calibration, handover, risk_threshold)
        finished = watch.ended
        sequences = head if isinstance(head, torch.Tensor) else head.sequences
        if reference:
            sequences, finished = _drop_end_of_turn(
                sequences, finished, input_ids.shape[1], generation_config._eos_token_tensor
            )
        if on_handover is not None:
            on_handover(sequences)
        if bool(finished.all()) or (not adaptive and sequences.shape[1] >= generation_config.max_length):
            if streamer is not None:
                streamer.end()
            return _told(head, watch)
        start = input_ids.shape[1]
        if adaptive and bool((watch.routed[~finished] < sequences.shape[1] - start).any()):
            uneven = Uneven(watch.routed, finished, start, shared_prefix)
            return _told(run.uneven_tail(head, uneven), watch)
        tail = run.tail(sequences, finished, start)
        return tail if isinstance(head, torch.Tensor) else _told(_join(head, tail), watch)

    return model.generate(custom_generate=loop, **kwargs)


def _take_stop_strings(kwargs: dict[str, Any]) -> None:
    """Turn ``stop_strings`` into a criterion: with a callable ``custom_generate`` transformers loses the tokenizer."""
    config = kwargs.get("generation_config")
    strings = kwargs.pop("stop_strings", None) or (None if config is None else config.stop_strings)
    tokenizer = kwargs.pop("tokenizer", None)
    if strings is None:
        return
    if tokenizer is None:
        raise GenerationError("stop_strings needs the tokenizer; pass tokenizer=… to generate")
    if config is not None:
        kwargs["generation_config"] = copy.deepcopy(config)
        kwargs["generation_config"].stop_strings = None
    criteria = kwargs.get("stopping_criteria") or []
    kwargs["stopping_criteria"] = StoppingCriteriaList([*criteria, StopStringCriteria(tokenizer, strings)])


class _Run:
    """The two sampling loops of one call, with all that they share."""

    def __init__(
        self,
        model: PreTrainedModel,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        config: GenerationConfig,
        streamer: Any,
        synced_gpus: bool,
        model_kwargs: dict[str, Any],
    ) -> None:
        self.model = model
        self.logits_processor = logits_processor
        self.stopping_criteria = stopping_criteria
        self.config = config
        self.streamer = streamer
        self.synced_gpus = synced_gpus
        self.model_kwargs = model_kwargs
        self.pad = config._pad_token_tensor
        self.shared_prefix = 0
        self.thinking: Thinking | None = None
        self.lower = watch_head(model, config, model_kwargs, synced_gpus)

    def head(
        self,
        input_ids: torch.Tensor,
        routed_tokens: int,
        calibration: Mapping[str, Any] | None = None,
        handover: str = "fixed",
        threshold: float = 0.5,
    ) -> tuple[Any, HeadWatch]:
        """Routed tokens; returns the loop's output and what was seen of its rows."""
        caller = _Watch(self.stopping_criteria, input_ids, pads=self.pad is not None)
        length = min(input_ids.shape[1] + routed_tokens, self.config.max_length)
        adaptive = handover == "risk" or self.thinking is not None
        stops = [caller] if adaptive or handover != "fixed" else [caller, MaxLengthCriteria(length)]
        asked = handover == "risk" or (calibration is not None and self.config.return_dict_in_generate)
        with (
            recorded_logits(self.model) if asked else nullcontext(lambda: None) as logits,
            fused(self.model),
            nullcontext() if self.lower is None else self.lower.watched(),
        ):
            watch = HeadWatch(
                logits,
                lambda: caller.finished,
                calibration,
                routed_tokens if adaptive else None,
                threshold if handover == "risk" else None,
                self.thinking,
            )
            self._read_prefix(input_ids, self.model_kwargs)
            output = self._sample(
                input_ids,
                self.logits_processor,
                StoppingCriteriaList([*stops, watch]),
                None if self.streamer is None else _OpenEnded(self.streamer),
                self.model_kwargs,
            )
        return output, watch

    def uneven_tail(self, head: Any, uneven: Uneven) -> Any:
        """The rest, where rows were ready at different times; the whole output."""
        before, pad = (head if isinstance(head, torch.Tensor) else head.sequences), int(self.pad or 0)
        tail = self.tail(uneven.pack(before, pad), uneven.ended, uneven.prompt_length, uneven)
        sequences = uneven.unpack(before, tail if isinstance(tail, torch.Tensor) else tail.sequences, pad)
        if isinstance(tail, torch.Tensor):
            return sequences
        tail.sequences = sequences
        for key in ("scores", "logits"):
            if tail.get(key) is not None:
                tail[key] = uneven.scores(head[key], tail[key], sequences.shape[1] - uneven.prompt_length)
        return tail

    def tail(
        self, sequences: torch.Tensor, finished: torch.Tensor, prompt_length: int, uneven: Uneven | None = None
    ) -> Any:
        """The rest, from the plain base with a fresh cache; finished rows get padding only."""
        kwargs = {k: v for k, v in self.model_kwargs.items() if k not in ("past_key_values", "cache_params")}
        if uneven is None:
            _extend(kwargs, sequences.shape[1] - prompt_length)
        else:
            uneven.extend(kwargs)
        kept = self._leave(sequences, kwargs, uneven is None)
        prompts = sequences.shape[0] // self.config.num_return_sequences
        length = self.config.max_length - 1 + (0 if uneven is None else uneven.extra)
        self.model._prepare_cache_for_generation(
            self.config, kwargs, self.config.get_generation_mode(), prompts, length
        )
        processors, criteria = list(self.logits_processor), list(self.stopping_criteria)
        if uneven is not None:
            processors, criteria = [uneven.processors(processors)], [uneven.criteria(criteria)]
        if bool(finished.any()):
            processors.append(_Pad(finished, 0 if self.pad is None else int(self.pad)))
        criteria.append(_Done(finished, pads=self.pad is not None))
        cache = kwargs.get("past_key_values")
        with plain_base(self.model), nullcontext() if kept is None else kept.reread(cache, self.shared_prefix):
            self._read_prefix(sequences, kwargs)
            return self._sample(
                sequences, LogitsProcessorList(processors), StoppingCriteriaList(criteria), self.streamer, kwargs
            )

    def _leave(self, sequences: torch.Tensor, kwargs: dict[str, Any], even: bool) -> Kept | None:
        """Drop the head's cache but for what the tail's re-read can use: nothing where rows were moved."""
        cache, kept = self.model_kwargs.get("past_key_values"), None
        if even and self.lower is not None and changes_nothing(self.model, len(self.lower.below)):
            kept = self.lower.keep(sequences, kwargs)
        if isinstance(cache, DynamicCache):
            cache.layers.clear()  # transformers' generate holds on to the cache until the end
        return kept

    def _read_prefix(self, input_ids: torch.Tensor, model_kwargs: dict[str, Any]) -> None:
        """Fill the empty cache with what all rows begin with."""
        cache = model_kwargs.get("past_key_values")
        if self.shared_prefix and can_hold(cache):
            prefilled(self.model, input_ids[:1, : self.shared_prefix], len(input_ids), cache)

    def _sample(
        self,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        streamer: Any,
        model_kwargs: dict[str, Any],
    ) -> Any:
        return self.model._sample(
            input_ids,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            generation_config=self.config,
            synced_gpus=self.synced_gpus,
            streamer=streamer,
            **model_kwargs,
        )


def _check_handover(handover: str, reference: bool, calibration: Mapping[str, Any] | None) -> None:
    if handover not in HANDOVERS:
        raise GenerationError(f"unknown hand-over {handover!r}; choose from {', '.join(HANDOVERS)}")
    if handover != "fixed" and reference:
        raise GenerationError(f"reference decoding hands over after m tokens, not by {handover}; drop one of them")
    if handover == "risk" and calibration is None:
        raise AdapterError(MISSING)


def _check_rows(config: GenerationConfig, streamer: Any) -> None:
    """Rows that hand over at different times have no common steps to stream or to keep states of."""
    if streamer is not None:
        raise GenerationError("a batch that hands over by risk or thought cannot be streamed; ask one prompt at a time")
    if config.output_attentions or config.output_hidden_states:
        raise GenerationError(
            "a batch that hands over by risk or thought has no common steps of attentions or hidden states; "
            "ask one at a time"
        )


def _told(output: Any, watch: HeadWatch) -> Any:
    """An output as a dict with what the head saw: ``risk`` and ``routed_tokens`` of each row."""
    if not isinstance(output, torch.Tensor):
        if watch.prompt_risk is not None:
            output["risk"] = watch.prompt_risk
        output["routed_tokens"] = watch.routed
    return output


def _extend(kwargs: dict[str, Any], new: int) -> None:
    """Let masks and positions made for the prompt cover ``new`` more tokens."""
    if (mask := kwargs.get("attention_mask")) is not None:
        kwargs["attention_mask"] = torch.cat([mask, mask.new_ones(mask.shape[0], new)], dim=-1)
    if (positions := kwargs.get("position_ids")) is not None:
        steps = torch.arange(1, new + 1, device=positions.device, dtype=positions.dtype)
        kwargs["position_ids"] = torch.cat([positions, positions[..., -1:] + steps], dim=-1)
    if (types := kwargs.get("token_type_ids")) is not None:
        kwargs["token_type_ids"] = torch.cat([types, types[:, -1:].expand(-1, new)], dim=-1)


def _drop_end_of_turn(
    sequences: torch.Tensor, finished: torch.Tensor, prompt_length: int, end_of_turn: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    if sequences.shape[0] != 1:
        raise GenerationError("reference decoding takes one prompt at a time")
    ended = end_of_turn is not None and bool(torch.isin(sequences[0, -1], end_of_turn))
    if ended and sequences.shape[1] > prompt_length:
        return sequences[:, :-1], torch.zeros_like(finished)
    return sequences, finished


def _join(head: ModelOutput, tail: ModelOutput) -> ModelOutput:
    """One output from two: sequences and cache of the tail, per-step tuples one after the other."""
    for key in ("scores", "logits", "attentions", "hidden_states"):
        if head.get(key) is not None and tail.get(key) is not None:
            tail[key] = head[key] + tail[key]
    return tail


class _Watch(StoppingCriteria):
    """The caller's criteria, remembering which rows they have ended."""

    def __init__(self, criteria: StoppingCriteriaList, input_ids: torch.Tensor, pads: bool) -> None:
        self.criteria = criteria
        self.finished = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        if pads:
            self.eos_token_id = None  # transformers pads finished rows where a criterion has this name

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        done = self.criteria(input_ids, scores, **kwargs).bool()
        self.finished = self.finished | done.to(self.finished.device)
        return done


class _Done(StoppingCriteria):
    """Rows that finished in the head are finished."""

    def __init__(self, finished: torch.Tensor, pads: bool) -> None:
        self.finished = finished
        if pads:
            self.eos_token_id = None  # as above

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return self.finished


class _Pad(LogitsProcessor):
    """Rows that finished in the head can only be followed by padding."""

    def __init__(self, finished: torch.Tensor, pad_token_id: int) -> None:
        self.finished, self.pad_token_id = finished, pad_token_id

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        only_pad = torch.full_like(scores, float("-inf"))
        only_pad[:, self.pad_token_id] = 0.0
        return torch.where(self.finished[:, None], only_pad, scores)


class _OpenEnded:
    """A streamer that the head does not close."""

    def __init__(self, streamer: Any) -> None:
        self.streamer = streamer

    def put(self, value: torch.Tensor) -> None:
        self.streamer.put(value)

    def end(self) -> None:
        """Left to the tail."""
