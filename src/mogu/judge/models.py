"""Model judges: a language model behind an endpoint, one on this machine, or a classifier. One protocol for all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mogu.errors import ConfigError
from mogu.judge.rubrics import Messages, Rubric, rubric_named

Row = Mapping[str, Any]
"""At least the strings `instruction` and `response`."""


@dataclass(frozen=True)
class Judgement:
    """What a model judge said of one response, with all that is needed to check it later."""

    judge: str
    """Name of the judge: model and rubric."""
    prompt_hash: str
    """First 16 hex digits of the SHA-256 of the exact prompt."""
    answer: str
    """The model's raw answer."""
    score: float | None = None
    """None for a judge that only names labels, and where the answer could not be parsed."""
    label: str | None = None
    """None for a judge that only scores, and where the answer could not be parsed."""
    scores: dict[str, int] = field(default_factory=dict)
    """Score by aspect, where a rubric has them."""

    @property
    def parsed(self) -> bool:
        """Whether the answer said anything."""
        return self.score is not None or self.label is not None


OnDone = Callable[[int, Judgement], None]
"""Told the index and judgement of each row as it is done, in any order."""


class ModelJudge(Protocol):
    """Anything that judges rows; see docs/judge.md for one of your own."""

    @property
    def name(self) -> str:
        """What decides its judgements besides the prompt: model and rubric."""

    def prompt_hash(self, row: Row) -> str:
        """Hash of the exact prompt for a row, known without asking."""

    def judge(self, rows: Sequence[Row], on_done: OnDone | None = None) -> list[Judgement]:
        """A judgement for each row, in order."""


def hash_prompt(prompt: Messages | Sequence[str]) -> str:
    """First 16 hex digits of the SHA-256 of a prompt as JSON."""
    return hashlib.sha256(json.dumps(prompt, ensure_ascii=False).encode()).hexdigest()[:16]


def read_answer(judge: str, rubric: Rubric, prompt: Messages, answer: str) -> Judgement:
    """The judgement that a raw answer to ``prompt`` stands for."""
    reading = rubric.read(answer)
    return Judgement(judge, hash_prompt(prompt), answer, reading.score, reading.label, reading.scores)


@dataclass(frozen=True)
class JudgeSettings:
    """Which judge to open, as the command line names it."""

    judge: str
    """URL of an OpenAI-compatible endpoint, or a model: hub id, folder, .gguf file, or smollm2."""
    model: str | None = None
    """What the endpoint calls its model."""
    rubric: str | None = None
    """Name of a built-in rubric for a language model; None: refusal."""
    key_env: str | None = None
    """Environment variable that holds the endpoint's key."""
    score_label: str | None = None
    """Name or index of the classifier's label whose probability is the score; None: the one called harmful."""
    concurrency: int = 4
    """Requests to an endpoint at a time."""
    batch_size: int = 8
    """Rows at a time for a model on this machine."""
    dtype: str | None = None
    device: str | None = None
    quantize: str | None = None

    def need_no(self, what: str, *fields: str) -> None:
        """Raise ConfigError for a setting that means nothing to this kind of judge: ignored it would mislead."""
        for name in fields:
            if getattr(self, name) is not None:
                option = "judge-model" if name == "model" else name.replace("_", "-")
                raise ConfigError(f"--{option} does not go with {what} (--judge {self.judge})")


def open_judge(settings: JudgeSettings) -> ModelJudge:
    """The judge that ``settings`` name; whether a local model is a classifier is read from its configuration.

    Raises:
        ConfigError: Settings that do not go together, an unknown rubric, a key that is not set.
        ModelError: The model cannot be loaded.
    """
    rubric = rubric_named(settings.rubric or "refusal")
    if settings.judge.startswith(("http://", "https://")):
        from mogu.judge.endpoint import EndpointJudge

        if settings.model is None:
            raise ConfigError(f"name the model that {settings.judge} shall judge with: --judge-model NAME")
        settings.need_no("an endpoint", "score_label", "dtype", "device", "quantize")
        return EndpointJudge(
            settings.judge,
            settings.model,
            rubric,
            key_env=settings.key_env,
            concurrency=settings.concurrency,
        )
    from mogu.judge import local

    settings.need_no("a model on this machine", "model", "key_env")
    if local.is_classifier(settings.judge):
        settings.need_no("a classifier", "rubric", "dtype", "quantize")
        return local.ClassifierJudge(
            settings.judge, settings.score_label, batch_size=settings.batch_size, device=settings.device
        )
    settings.need_no("a language model", "score_label")
    return local.LanguageModelJudge(
        settings.judge,
        rubric,
        batch_size=settings.batch_size,
        dtype=settings.dtype,
        device=settings.device,
        quantize=settings.quantize,
    )
