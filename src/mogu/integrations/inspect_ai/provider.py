"""A model provider: a run folder answers whatever inspect_ai asks, routed for the first tokens, then plain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from inspect_ai._util.error import PrerequisiteError
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
)
from inspect_ai.tool import ToolChoice, ToolInfo
from jinja2 import TemplateError

from mogu.chat import Message, prompt_ids
from mogu.errors import ConfigError, MoguError
from mogu.integrations.batching import Batcher
from mogu.integrations.complete import Completion, Settings, complete
from mogu.loading import load_run

MAX_TOKENS = 512
"""Length at which an answer is cut where neither the task nor ``--max-tokens`` says."""

_UNSUPPORTED = (
    "best_of",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "prompt_logprobs",
    "response_schema",
)


class MoguAPI(ModelAPI):
    """A run folder as inspect_ai model; model arguments (``-M``) are those of the constructor."""

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig | None = None,
        *,
        base: str | None = None,
        plain: bool = False,
        template: str | None = None,
        routed_tokens: int | None = None,
        dtype: str | None = None,
        device: str | None = None,
        quantize: str | None = None,
        batch_size: int = 16,
        **unknown: Any,
    ) -> None:
        """Load the model.

        Args:
            model_name: Run folder or adapter folder.
            base_url: Not used.
            api_key: Not used.
            config: Settings of all requests.
            base: Another copy of the base model.
            plain: Answer as the base, without the adapter.
            template: Published chat template; default: the adapter's, else the tokenizer's.
            routed_tokens: m, where it shall differ from what the adapter was trained with.
            dtype: As for :func:`mogu.load`.
            device: As for :func:`mogu.load`.
            quantize: As for :func:`mogu.load`.
            batch_size: Requests that are decoded together.
            **unknown: Refused.

        Raises:
            PrerequisiteError: Anything that a user can mend; inspect shows it as one line.
        """
        super().__init__(model_name=model_name, config=config or GenerateConfig())
        with _one_line():
            if unknown:
                known = "base, plain, template, routed_tokens, dtype, device, quantize, batch_size"
                raise ConfigError(f"unknown model argument {next(iter(unknown))!r}; known: {known}")
            if batch_size < 1:
                raise ConfigError(f"batch_size must be at least 1, not {batch_size}")
            self.run = load_run(
                model_name,
                base=base,
                plain=plain,
                template=template,
                routed_tokens=routed_tokens,
                dtype=dtype,
                device=device,
                quantize=quantize,
            )
        self.batch_size = batch_size
        self._record = self.run.record()
        self._batcher = Batcher(partial(complete, self.run.model, self.run.tokenizer), batch_size)

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """Answer a conversation.

        Raises:
            PrerequisiteError: Tools, pictures, settings that routed decoding does not know, or a conversation that the
                model's chat template does not take.
        """
        with _one_line():
            _check(tools, config)
            ids = prompt_ids(self.run.tokenizer, _messages(input), template=self.run.template)
        asked = config.max_tokens or MAX_TOKENS
        settings = _settings(config, min(asked, self._room(ids, asked)))
        if settings.new_tokens < 1:
            return ModelOutput.from_content(self.model_name, "", stop_reason="model_length")
        with _one_line():
            completions = await self._batcher.answer(ids, settings)
        return self._output(ids, completions, cut_by="max_tokens" if settings.new_tokens == asked else "model_length")

    def _room(self, ids: Sequence[int], asked: int) -> int:
        """New tokens for which the model has positions."""
        positions = getattr(self.run.model.config.get_text_config(), "max_position_embeddings", None)
        return asked if positions is None else int(positions) - len(ids)

    def _output(self, ids: Sequence[int], completions: Sequence[Completion], cut_by: str) -> ModelOutput:
        choices = [
            ChatCompletionChoice(
                message=ChatMessageAssistant(content=one.text, model=self.model_name, source="generate"),
                stop_reason=cut_by if one.ended_by == "length" else "stop",
            )
            for one in completions
        ]
        new = sum(one.tokens for one in completions)
        usage = ModelUsage(input_tokens=len(ids), output_tokens=new, total_tokens=len(ids) + new)
        return ModelOutput(model=self.model_name, choices=choices, usage=usage, metadata=self._record)

    async def count_text_tokens(self, text: str) -> int:
        """Tokens of ``text`` by the model's own tokenizer."""
        return len(await self.tokenize(text))

    async def tokenize(self, text: str) -> list[int]:
        """Token ids of ``text`` without special tokens."""
        return list(self.run.tokenizer(text, add_special_tokens=False)["input_ids"])

    def max_tokens(self) -> int | None:
        """Length at which an answer is cut by default."""
        return MAX_TOKENS

    def max_connections(self) -> int:
        """Requests at a time: a batch."""
        return self.batch_size

    def connection_key(self) -> str:
        """Two models share nothing."""
        return str(id(self))

    def collapse_user_messages(self) -> bool:
        """Many chat templates want user and assistant in turn."""
        return True

    def collapse_assistant_messages(self) -> bool:
        """As above."""
        return True


def _check(tools: Sequence[ToolInfo], config: GenerateConfig) -> None:
    if tools:
        raise ConfigError(
            f"mogu models call no tools, and this task has some ({tools[0].name}, …); choose another task"
        )
    for name in _UNSUPPORTED:
        if getattr(config, name, None) not in (None, False, 0):
            raise ConfigError(f"mogu models do not know the setting {name}; leave it out")


def _messages(chat: Sequence[ChatMessage]) -> list[Message]:
    for message in chat:
        if message.role == "tool":
            raise ConfigError("mogu models call no tools, and this conversation has a tool's answer in it")
        parts = [] if isinstance(message.content, str) else message.content
        if other := {part.type for part in parts} - {"text", "reasoning"}:
            raise ConfigError(f"mogu models read text only, and this conversation holds: {', '.join(sorted(other))}")
    return [{"role": message.role, "content": message.text} for message in chat]


def _settings(config: GenerateConfig, new_tokens: int) -> Settings:
    return Settings(
        new_tokens=new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        seed=config.seed,
        stop=tuple(config.stop_seqs or ()),
        choices=config.num_choices or 1,
    )


@contextmanager
def _one_line() -> Iterator[None]:
    """What a user can mend, as the error that inspect shows without a stack trace."""
    try:
        yield
    except MoguError as error:
        raise PrerequisiteError(" ".join(str(error).split())) from error
    except TemplateError as error:
        raise PrerequisiteError(f"the model's chat template takes no such conversation: {error}") from error
