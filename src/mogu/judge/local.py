"""Judges on this machine: a causal language model with a rubric, or a sequence classifier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mogu.errors import ConfigError, ModelError
from mogu.judge.models import Judgement, OnDone, Row, hash_prompt, read_answer
from mogu.judge.rubrics import Messages, Rubric

_ANSWER_TOKENS = 256
_HEAD = "ForSequenceClassification"


class LanguageModelJudge:
    """Asks a causal language model greedily, through its own chat template.

    Args:
        model: ``"smollm2"``, a hub id, a local folder, or a ``.gguf`` file.
        rubric: The question.
        batch_size: Prompts at a time.
        max_new_tokens: Length at which an answer is cut.
        **loading: Options of :func:`mogu.models.load_base`.

    Raises:
        ModelError: As :func:`mogu.models.load_base`.
    """

    def __init__(
        self, model: str, rubric: Rubric, *, batch_size: int = 8, max_new_tokens: int = _ANSWER_TOKENS, **loading: Any
    ) -> None:
        from mogu.models import load_base

        self.rubric = rubric
        self.name = f"{model}#{rubric.name}"
        self._batch_size, self._max_new_tokens = batch_size, max_new_tokens
        self._model, self._tokenizer = load_base(model, **loading)

    def prompt_hash(self, row: Row) -> str:
        """Hash of the conversation, before the chat template."""
        return hash_prompt(self._prompt(row))

    def judge(self, rows: Sequence[Row], on_done: OnDone | None = None) -> list[Judgement]:
        """A judgement for each row, in order."""
        from mogu.respond import respond

        prompts = [self._prompt(row) for row in rows]

        def judgement(index: int, answer: str) -> Judgement:
            return read_answer(self.name, self.rubric, prompts[index], answer)

        answers = respond(
            self._model,
            self._tokenizer,
            prompts,
            max_new_tokens=self._max_new_tokens,
            batch_size=self._batch_size,
            on_done=None if on_done is None else lambda index, answer: on_done(index, judgement(index, answer)),
        )
        return [judgement(index, answer) for index, answer in enumerate(answers)]

    def _prompt(self, row: Row) -> Messages:
        """One user turn: some chat templates reject a system turn, others drop it without a word."""
        turns = self.rubric.messages(row["instruction"], row["response"])
        return [{"role": "user", "content": "\n\n".join(turn["content"] for turn in turns)}]


class ClassifierJudge:
    """Asks a sequence classifier about the pair of instruction and response.

    The label is the most probable one, the score the probability of one label.

    Args:
        model: A hub id or a local folder.
        score_label: Name or index of the label whose probability is the score; None: the one called "harmful".
        batch_size: Rows at a time.
        device: As for :func:`mogu.models.load_base`.

    Raises:
        ModelError: It cannot be loaded, or is no classifier.
        ConfigError: No such label.
    """

    def __init__(
        self,
        model: str,
        score_label: str | int | None = None,
        *,
        batch_size: int = 8,
        device: str | None = None,
    ) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification

        from mogu.models import load_tokenizer

        self._tokenizer = load_tokenizer(model)
        self._tokenizer.padding_side = "right"  # an encoder counts positions from the left
        if not is_classifier(model):
            raise ModelError(f"{model} has no classification head; give a …{_HEAD} model")
        try:
            loaded = AutoModelForSequenceClassification.from_pretrained(_path(model), dtype=torch.float32)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ModelError(f"cannot load classifier {model!r}: {' '.join(str(error).split())[:240]}") from error
        loaded.config.pad_token_id = self._tokenizer.pad_token_id
        self._model = loaded.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
        names: dict[int, str] = loaded.config.id2label
        self.labels = [names[index] for index in sorted(names)]
        """Names of the classes, in the order of its outputs."""
        self._scored = _label_index(model, self.labels, score_label)
        self._batch_size = batch_size
        self.name = f"{model}:{self.labels[self._scored]}"

    def prompt_hash(self, row: Row) -> str:
        """Hash of the pair."""
        return hash_prompt([row["instruction"], row["response"]])

    def judge(self, rows: Sequence[Row], on_done: OnDone | None = None) -> list[Judgement]:
        """A judgement for each row, in order; the raw answer is the probability of every label."""
        import torch

        done: list[Judgement] = []
        for start in range(0, len(rows), self._batch_size):
            batch = rows[start : start + self._batch_size]
            encoded = self._tokenizer(
                [row["instruction"] for row in batch],
                [row["response"] for row in batch],
                truncation=True,
                max_length=self._longest(),
                padding=True,
                return_tensors="pt",
            ).to(self._model.device)
            with torch.inference_mode():
                shares = self._model(**encoded).logits.float().softmax(dim=-1).tolist()
            for row, probabilities in zip(batch, shares, strict=True):
                done.append(self._judgement(row, probabilities))
                if on_done is not None:
                    on_done(len(done) - 1, done[-1])
        return done

    def _judgement(self, row: Row, probabilities: list[float]) -> Judgement:
        best = max(range(len(probabilities)), key=probabilities.__getitem__)
        said = ", ".join(f"{label}: {share:.4f}" for label, share in zip(self.labels, probabilities, strict=True))
        return Judgement(self.name, self.prompt_hash(row), said, probabilities[self._scored], self.labels[best])

    def _longest(self) -> int:
        """Tokens that the model takes. A tokenizer without a limit of its own names an astronomical one, and some
        encoders keep two of their positions to themselves.
        """
        limit: int = self._tokenizer.model_max_length
        positions = getattr(self._model.config, "max_position_embeddings", None)
        return limit if positions is None else min(limit, positions - 2)


def is_classifier(model: str) -> bool:
    """Whether a model's configuration names a sequence classification head; False also where it cannot be read."""
    from transformers import AutoConfig

    from mogu.models import EMBEDDED

    if model == EMBEDDED or model.endswith(".gguf"):
        return False
    try:
        config = AutoConfig.from_pretrained(_path(model))
    except (OSError, ValueError, KeyError):
        return False
    return any(name.endswith(_HEAD) for name in config.architectures or ())


def _path(model: str) -> str:
    folder = Path(model).expanduser()
    return str(folder) if folder.is_dir() else model


def _label_index(model: str, labels: list[str], wanted: str | int | None) -> int:
    if len(labels) < 2:
        raise ModelError(f"{model} has one output; a classifier needs at least two labels")
    name = "harmful" if wanted is None else str(wanted)
    lower = [label.lower() for label in labels]
    if name.lower() in lower:
        return lower.index(name.lower())
    if name.isdigit() and int(name) < len(labels):
        return int(name)
    known = ", ".join(f"{index} {label}" for index, label in enumerate(labels))
    raise ConfigError(f"{model} has no label {name!r}; name the one to score with --score-label: {known}")
