"""From a request to prompts for the engine: what is checked that a schema cannot say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mogu.chat import TEMPLATES, Ending, prompt_ids, text_ids
from mogu.errors import ConfigError
from mogu.serve.errors import ApiError, invalid, not_allowed, unknown_model, unsupported
from mogu.serve.requests import Engine, Prompt, Routing, Sampling
from mogu.serve.schemas import (
    ChatRequest,
    Completing,
    CompletionRequest,
    Message,
    ModerationRequest,
    Overrides,
    TextPart,
)
from mogu.serve.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COMPLETION_TOKENS = 16
"""New tokens of a completion that names no number, as OpenAI's."""
_STRENGTH = {"fixed": 0, "risk": 1, "all": 2}
_SEEDS = (1 << 63) - 1


@dataclass(frozen=True)
class Plan:
    """What to ask of the engine, and what to remember."""

    prompts: tuple[Prompt, ...]
    """The n answers to the first prompt, then those to the second."""
    instructions: tuple[str, ...]
    """What each was asked last, for the judge of refusals."""
    prompt_tokens: int
    """Each prompt counted once, as OpenAI does."""
    stream: bool
    include_usage: bool
    trace: bool
    token_ids: bool = False
    """Whether each choice tells its tokens' ids."""
    named_by_id: bool = False
    """Whether logprobs name tokens by their ids."""


@dataclass(frozen=True)
class Planner:
    """Makes plans for one model."""

    engine: Engine
    tokenizer: PreTrainedTokenizerBase
    settings: Settings

    def chat(self, body: ChatRequest) -> Plan:
        """Raises :class:`ApiError` with the field that cannot be."""
        self._check_model(body.model)
        if body.top_logprobs is not None and not body.logprobs:
            raise invalid("top_logprobs", "'top_logprobs' needs 'logprobs': true")
        if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
            raise invalid("max_tokens", "'max_tokens' and 'max_completion_tokens' differ; give one")
        ending: Ending = "none" if body.add_generation_prompt is False else "answer"
        if body.continue_final_message:
            if body.add_generation_prompt:
                raise invalid("add_generation_prompt", "'add_generation_prompt' excludes 'continue_final_message'")
            if body.messages[-1].role != "assistant":
                raise invalid("continue_final_message", "The last message is not an assistant's: it cannot go on")
            ending = "continue"
        ids = self.conversation(body.messages, "messages", ending)
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        most = body.max_completion_tokens or body.max_tokens
        field = "max_completion_tokens" if body.max_completion_tokens else "max_tokens"
        said = next((message.text for message in reversed(body.messages) if message.role == "user"), "")
        return self._plan(body, [ids], [said], "messages", logprobs, most, field)

    def completions(self, body: CompletionRequest) -> Plan:
        """Raises :class:`ApiError` with the field that cannot be."""
        self._check_model(body.model)
        if body.best_of is not None and body.best_of != body.n:
            raise unsupported("best_of", "it must be equal to n")
        asked: Sequence[str | list[int]]
        if isinstance(body.prompt, str):
            asked = [body.prompt]
        elif isinstance(body.prompt[0], int):
            asked = [[n for n in body.prompt if isinstance(n, int)]]
        else:
            asked = [one for one in body.prompt if not isinstance(one, int)]
        if len(asked) * body.n > self.settings.max_choices:
            raise self._too_many("prompt" if len(asked) > 1 else "n")
        ids = [self._prompt(one, f"prompt[{place}]" if len(asked) > 1 else "prompt") for place, one in enumerate(asked)]
        said = [one if isinstance(one, str) else "" for one in asked]
        most = body.max_tokens or COMPLETION_TOKENS
        plan = self._plan(body, ids, said, "prompt", body.logprobs, most, "max_tokens")
        return replace(plan, token_ids=body.return_token_ids, named_by_id=body.return_tokens_as_token_ids)

    def moderation(self, body: ModerationRequest) -> list[tuple[int, ...]]:
        """Token ids of each input, as the first or last turn of a conversation.

        Raises:
            ApiError: With the field that cannot be.
        """
        if body.model is not None and not body.model.startswith(("omni-moderation", "text-moderation")):
            self._check_model(body.model)
        if not self.settings.served.calibrated:
            message = f"The model {self.settings.served.name} has no calibrated risk to moderate by"
            raise ApiError(400, message, code="no_risk_calibration", param="model")
        conversations = _conversations(body.input)
        if len(conversations) > self.settings.max_choices:
            raise self._too_many("input")
        found = [self.conversation(messages, "input", "answer") for messages in conversations]
        for ids in found:
            self._room(ids, "input")
        return found

    def conversation(self, messages: Sequence[Message], field: str, ending: Ending) -> tuple[int, ...]:
        """Token ids of ``messages``, formatted as the model was trained."""
        template = self.settings.served.template
        for place, message in enumerate(messages):
            # Templates of the paper's time know two roles: any other would be written as one of these.
            other = message.role == "tool" or (message.role in ("system", "developer") and place > 0)
            if template in TEMPLATES and other:
                raise invalid(f"{field}[{place}].role", f"The chat template of this model has no such turn at {place}")
        said = [{"role": "system" if m.role == "developer" else m.role, "content": m.text} for m in messages]
        try:
            return tuple(prompt_ids(self.tokenizer, said, template=template, ending=ending))
        except ConfigError as error:
            raise invalid(field, str(error)) from error
        except Exception as error:  # a template may raise anything
            if type(error).__module__.split(".")[0] != "jinja2":
                raise
            reason = f"The model's chat template takes no such conversation: {str(error)[:200]}"
            raise invalid(field, reason) from error

    def _prompt(self, asked: str | list[int], field: str) -> tuple[int, ...]:
        ids = text_ids(self.tokenizer, asked) if isinstance(asked, str) else asked
        size = len(self.tokenizer)
        if any(n >= size for n in ids):
            raise invalid(field, f"A token id is not below {size}, the size of the vocabulary")
        return tuple(ids)

    def _check_model(self, model: str) -> None:
        if model != self.settings.served.name:
            raise unknown_model(model)

    def _too_many(self, field: str) -> ApiError:
        return invalid(field, f"At most {self.settings.max_choices} answers or inputs in one request")

    def _plan(
        self,
        body: Completing,
        ids: Sequence[tuple[int, ...]],
        said: Sequence[str],
        field: str,
        logprobs: int | None,
        most: int | None,
        most_field: str,
    ) -> Plan:
        if body.stream_options is not None and not body.stream:
            raise invalid("stream_options", "'stream_options' needs 'stream': true")
        if body.n > self.settings.max_choices:
            raise self._too_many("n")
        routing = route(body.mogu, self.settings)
        prompts = []
        for one in ids:
            sampling = Sampling(
                max_tokens=self._limit(one, field, most, most_field),
                temperature=body.temperature,
                top_p=body.top_p,
                top_k=max(body.top_k, 0),
                seed=body.seed,
                presence_penalty=body.presence_penalty,
                frequency_penalty=body.frequency_penalty,
                stop=body.stops,
                logprobs=logprobs,
            )
            prompts += [Prompt(one, _numbered(sampling, choice), routing) for choice in range(body.n)]
        return Plan(
            prompts=tuple(prompts),
            instructions=tuple(text for text in said for _ in range(body.n)),
            prompt_tokens=sum(map(len, ids)),
            stream=body.stream,
            include_usage=body.stream_options is not None and body.stream_options.include_usage,
            trace=routing.trace,
        )

    def _room(self, ids: tuple[int, ...], field: str) -> int:
        """Tokens that an answer to ``ids`` may have."""
        context = min(self.engine.context, self.engine.load().kv_limit)
        if not ids:
            raise invalid(field, "The prompt is empty")
        if len(ids) >= context:
            message = f"This model's maximum context length is {context} tokens; the prompt has {len(ids)}"
            raise invalid(field, message, "context_length_exceeded")
        return context - len(ids)

    def _limit(self, ids: tuple[int, ...], field: str, most: int | None, most_field: str) -> int:
        room, cap = self._room(ids, field), self.settings.max_tokens
        if most is None:
            return room if cap is None else min(room, cap)
        if cap is not None and most > cap:
            raise invalid(most_field, f"This server answers with at most {cap} tokens")
        if most > room:
            message = (
                f"This model's maximum context length is {room + len(ids)} tokens; the prompt has {len(ids)} and "
                f"'{most_field}' is {most}"
            )
            raise invalid(most_field, message, "context_length_exceeded")
        return most


def route(asked: Overrides, settings: Settings) -> Routing:
    """How an answer is guarded: as served, or as the client asks where that is no less.

    Raises:
        ApiError: 403 for less protection without leave; 400 where there is nothing to route.
    """
    served = settings.served
    if not served.routed:
        given = asked.model_dump(exclude_defaults=True)
        if given:
            raise unsupported(f"mogu.{next(iter(given))}", "the model that is served has no adapter")
        return Routing()
    if not settings.allow_overrides:
        if asked.routed_tokens is not None and asked.routed_tokens < served.routed_tokens:
            raise not_allowed("mogu.routed_tokens", f"at least {served.routed_tokens}")
        if asked.handover is not None and _STRENGTH[asked.handover] < _STRENGTH[served.handover]:
            raise not_allowed("mogu.handover", f"at least {served.handover}")
        if asked.dial < 0:
            raise not_allowed("mogu.dial", "at least 0")
    if asked.handover == "risk" and not served.calibrated:
        raise unsupported("mogu.handover", "the adapter has no calibrated risk")
    return Routing(
        routed_tokens=served.routed_tokens if asked.routed_tokens is None else asked.routed_tokens,
        handover=served.handover if asked.handover is None else asked.handover,
        dial=settings.dial + asked.dial,
        trace=asked.trace,
    )


def _numbered(sampling: Sampling, choice: int) -> Sampling:
    return sampling if sampling.seed is None else replace(sampling, seed=(sampling.seed + choice) & _SEEDS)


def _conversations(asked: object) -> list[list[Message]]:
    """Each input as messages; parts of one text are one input, as OpenAI's."""
    if isinstance(asked, str):
        return [[Message(role="user", content=asked)]]
    assert isinstance(asked, list)
    if isinstance(asked[0], TextPart):
        return [[Message(role="user", content=[part for part in asked if isinstance(part, TextPart)])]]
    if isinstance(asked[0], Message):
        return [asked]
    return [one if isinstance(one, list) else [Message(role="user", content=one)] for one in asked]
