"""Requests of OpenAI's API, and what we take beside it under ``mogu``; answers are in :mod:`mogu.serve.replies`.

A field that is ``null`` is as good as left out. What is not here is refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

Text = Annotated[str, Field(max_length=4_000_000)]
Short = Annotated[str, Field(max_length=512)]
Stop = Annotated[str, Field(min_length=1, max_length=512)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
Nothing = Annotated[list[Any], Field(max_length=0)]
"""A list that must be empty."""


def _with_nulls(schema: dict[str, Any]) -> None:
    """Say in JSON Schema that ``null`` is as good as nothing, for fields that are known and for others."""
    required = schema.get("required", [])
    for name, field in schema.get("properties", {}).items():
        if name not in required:
            told = {key: field.pop(key) for key in ("title", "description", "default") if key in field}
            schema["properties"][name] = {"anyOf": [field, {"type": "null"}], **told}
    schema["additionalProperties"] = {"type": "null"}


class Asked(BaseModel):
    """Part of a request: types are taken strictly, unknown fields are an error."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, json_schema_extra=_with_nulls)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        return {name: value for name, value in data.items() if value is not None} if isinstance(data, dict) else data


class TextPart(Asked):
    """Part of a message."""

    type: Literal["text"]
    text: Text


def _kind(value: Any) -> str | None:
    return "text" if isinstance(value, str) else "parts" if isinstance(value, list) else None


Content = Annotated[
    Annotated[Text, Tag("text")] | Annotated[list[TextPart], Field(min_length=1), Tag("parts")], Discriminator(_kind)
]


class Message(Asked):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content
    tool_call_id: Short = ""
    tool_calls: Nothing = []
    annotations: Nothing = []

    @property
    def text(self) -> str:
        """The content as one string; parts are joined by line breaks."""
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)


class StreamOptions(Asked):
    """What a stream tells beside the answer."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class TextFormat(Asked):
    """The one format of answers."""

    type: Literal["text"]


class Overrides(Asked):
    """How this answer is guarded; what is left out is as the server was started."""

    routed_tokens: int | None = Field(None, ge=0, le=1_000_000, description="m: new tokens from the routed model.")
    handover: Literal["fixed", "risk", "all"] | None = Field(None, description="When the plain base takes over.")
    dial: float = Field(0.0, ge=-100, le=100, description="Added to the router logits: above 0 safer.")
    trace: bool = Field(False, description="Tell the router weights of each layer at each token.")


class Completing(Asked):
    """What both kinds of completions take."""

    model: str = Field(max_length=512)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1, le=1 << 31, description="0 and -1 are all.")
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] = []
    n: int = Field(1, ge=1, le=128)
    max_tokens: int | None = Field(None, ge=1, le=1 << 31)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: dict[str, float] = Field({}, max_length=0, description="Must be empty.")
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: Short = Field("", description="Taken and not used.")
    metadata: dict[str, str] = Field({}, max_length=16, description="Taken and not used.")
    mogu: Overrides = Field(default_factory=lambda: Overrides.model_validate({}))

    @property
    def stops(self) -> tuple[str, ...]:
        """Strings that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class ChatRequest(Completing):
    """``POST /v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1, max_length=4096)
    max_completion_tokens: int | None = Field(None, ge=1, le=1 << 31)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: TextFormat | None = None
    modalities: list[Literal["text"]] = Field(["text"], max_length=1)
    tools: Nothing = []
    tool_choice: Literal["none", "auto"] = "none"
    parallel_tool_calls: bool = True
    functions: Nothing = []
    store: Literal[False] = False
    service_tier: Literal["auto", "default"] = "auto"
    safety_identifier: Short = Field("", description="Taken and not used.")
    prompt_cache_key: Short = Field("", description="Taken and not used.")
    add_generation_prompt: bool | None = Field(None, description="Whether the assistant begins a turn; default: yes.")
    continue_final_message: bool = Field(False, description="Go on with the last message, an assistant's.")


class CompletionRequest(Completing):
    """``POST /v1/completions``."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1)]
    )
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: Literal[False] = False
    suffix: Literal[""] = ""
    best_of: int | None = Field(None, ge=1, le=128, description="No more than n.")
    return_token_ids: bool = Field(False, description="As vLLM's: each choice has its tokens' ids.")
    return_tokens_as_token_ids: bool = Field(False, description="As vLLM's: logprobs name tokens token_id:N.")


class ModerationRequest(Asked):
    """``POST /v1/moderations``: texts, or conversations."""

    input: (
        Text
        | Annotated[list[Text], Field(min_length=1)]
        | Annotated[list[TextPart], Field(min_length=1)]
        | Annotated[list[Message], Field(min_length=1)]
        | Annotated[list[Annotated[list[Message], Field(min_length=1)]], Field(min_length=1)]
    )
    model: str | None = Field(None, max_length=512)


def field_names(*models: type[BaseModel]) -> frozenset[str]:
    """Names of all fields of ``models``."""
    return frozenset(name for model in models for name in model.model_fields)


FIELDS = field_names(
    *(ChatRequest, CompletionRequest, ModerationRequest, Message, TextPart, StreamOptions, TextFormat, Overrides)
)
"""Names of all fields that a request may have."""
