"""Answers of OpenAI's API, and what we add to them under ``mogu``."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class TokenTrace(BaseModel):
    """Router weights at one token, of each routed layer from the first up."""

    token: str
    routed: bool | None = None
    risk: float | None = None
    unwill: list[float] | None = None
    glad: list[float] | None = None


class Trace(BaseModel):
    """What the routers did, token by token."""

    layers: list[int] | None = None
    prompt: list[TokenTrace] | None = None
    answer: list[TokenTrace] | None = None


class Report(BaseModel):
    """What the routers made of a prompt, and how its answer was guarded."""

    risk: float | None = Field(None, description="Calibrated probability that the prompt asks for harm.")
    routed_tokens: int | None = Field(None, description="New tokens that the routed model chose.")
    glad: float | None = Field(None, description="Mean router weight at the prompt's last token.")
    unwill: float | None = None
    trace: Trace | None = None


class Usage(BaseModel):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(BaseModel):
    """A token that might have been."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token that was chosen."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Of an answer, or of a piece of one."""

    content: list[TokenLogprob] | None
    refusal: None = None


class TextLogprobs(BaseModel):
    """The older form."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class Said(BaseModel):
    """What the assistant said."""

    role: Literal["assistant"]
    content: str | None
    refusal: None


class Delta(BaseModel):
    """What is new of it."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: Said
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]
    mogu: Report


class ChatChunkChoice(BaseModel):
    """Piece of an answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class TextChoice(BaseModel):
    """One completion, or a piece of one."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    token_ids: list[int] | None = Field(None, description="Where asked for; with the end-of-turn token.")
    mogu: Report | None = None


class Answered(BaseModel):
    """What all completions have."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage | None = None
    mogu: Report | None = Field(None, description="Of the first choice.")


class ChatCompletion(Answered):
    """Answers to a conversation."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]


class ChatChunk(Answered):
    """One event of a stream."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatChunkChoice]


class Completion(Answered):
    """Completions of prompts; also one event of a stream."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[TextChoice]


class Categories(BaseModel):
    """The one category."""

    malicious: bool


class Scores(BaseModel):
    """Its risk."""

    malicious: float


class InputTypes(BaseModel):
    """What was read for it."""

    malicious: list[Literal["text"]]


class ModerationResult(BaseModel):
    """Of one input."""

    flagged: bool
    categories: Categories
    category_scores: Scores
    category_applied_input_types: InputTypes


class Moderation(BaseModel):
    """Results in the order of the inputs."""

    id: str
    model: str
    results: list[ModerationResult]


class Model(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int = Field(description="Most tokens of prompt and answer together, as vLLM tells it.")


class Models(BaseModel):
    """All of them."""

    object: Literal["list"]
    data: list[Model]


class Fault(BaseModel):
    """What was wrong, the field, and a word for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class Failed(BaseModel):
    """Every answer that is none."""

    error: Fault


class State(BaseModel):
    """Of the server."""

    status: Literal["ok", "ready", "shutting down"]
