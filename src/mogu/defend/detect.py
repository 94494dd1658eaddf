"""Detection of malicious instructions before the base answers: a linear probe of the base, or a classifier by name."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from mogu import processes
from mogu.data.rows import Row, write_text
from mogu.defend.base import REFUSAL, Conversation, Defense, Stopped, Target
from mogu.defend.conversation import user_texts
from mogu.defend.learnt import inputs_hash, read_batch, rows_of
from mogu.errors import ConfigError, ModelError
from mogu.progress import Progress
from mogu.respond import batches
from mogu.train.fit import fit_probe

_LABELS = ("benign", "malicious")


@dataclass(frozen=True)
class DetectSettings:
    """What detects, and when it stops a conversation."""

    model: str | None = None
    """Hub id or folder of a text classifier, which reads the user's last turn; ``None`` is a probe of the base."""
    malicious_class: int = 1
    """Class of that classifier that means malicious."""
    threshold: float = 0.5
    """Stops above this probability of malicious."""
    l2: float = 0.01
    """Ridge of the probe, on standardised hidden states."""


class Detect(Defense):
    """Refuses conversations that a binary classifier takes for malicious."""

    name = "detect"
    summary = "a classifier reads the instruction and stops malicious ones"
    source = "the detect-input baseline of Du et al. 2024 (MoGU), arXiv:2405.14488"

    def __init__(self, target: Target, settings: DetectSettings | None = None) -> None:
        super().__init__(target)
        self.options = settings or DetectSettings()
        self._detector: Probe | Classifier | None = None

    @cached_property
    def _rows(self) -> tuple[list[Row], list[Row]]:
        train, validation = (rows_of(self.target, split, _LABELS, self.name) for split in ("train", "validation"))
        return train, validation

    @cached_property
    def _inputs(self) -> str:
        train, validation = self._rows
        return inputs_hash(self.target, [*train, *validation], dataclasses.asdict(self.options))

    def settings(self) -> dict[str, Any]:
        """The options; for the probe also a hash of base and rows."""
        learnt = {"inputs": self._inputs} if self.options.model is None else {}
        return {**dataclasses.asdict(self.options), **learnt}

    def prepare(self, progress: Progress) -> None:
        """Load the classifier, or the probe; fit the probe if there is none yet."""
        if self.options.model is not None:
            self._detector = Classifier(self.target, self.options)
            return
        path = self.target.workspace / self.name / self._inputs
        if not processes.from_main(path.with_suffix(".json").is_file):
            progress.begin(self.name, "detect: a probe on the hidden states of the last prompt token")
            report = processes.from_main(lambda: self._fit(path, progress))
            progress.end(f"layer {report['layer']}, {report['right']:.0%} of validation instructions right")
        self._detector = Probe(self.target, path)

    def before(self, conversations: Sequence[Conversation]) -> list[Conversation | Stopped]:
        """The conversations, or a stop for each that is more likely malicious than the threshold."""
        if not conversations:
            return []
        if self._detector is None:
            self.prepare(Progress())
        assert self._detector is not None
        return [
            Stopped(REFUSAL, f"malicious with probability {p:.2f}") if p > self.options.threshold else conversation
            for conversation, p in zip(conversations, self._detector(conversations), strict=True)
        ]

    def _fit(self, path: Path, progress: Progress) -> dict[str, Any]:
        """Fit a probe on every layer, keep the one with the least log-loss on the validation split."""
        train, validation = self._rows
        x, x_val = (last_states(self.target, [row.instruction for row in rows]) for rows in (train, validation))
        (y, weight), (y_val, weight_val) = (_balanced(rows) for rows in (train, validation))
        best: tuple[float, int, torch.Tensor, torch.Tensor] | None = None
        losses = []
        for layer in range(x.shape[1]):
            w, b = fit_probe(x[:, layer], y, weight, self.options.l2)
            logits = x_val[:, layer] @ w + b
            loss = float(weight_val @ functional.binary_cross_entropy_with_logits(logits, y_val, reduction="none"))
            losses.append(round(loss, 4))
            if best is None or loss < best[0]:
                best = (loss, layer, w, b)
            progress.update(layer + 1, x.shape[1])
        assert best is not None
        _, layer, w, b = best
        right = float(((x_val[:, layer] @ w + b > 0) == (y_val > 0)).float().mean())
        report = {"layer": layer + 1, "right": right, "log_loss": losses, "rows": [len(train), len(validation)]}
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        save_file({"weight": w.contiguous(), "bias": b}, temporary)
        temporary.replace(path.with_suffix(".safetensors"))
        write_text(path.with_suffix(".json"), json.dumps(report, indent=1) + "\n")  # last: it says that all is there
        return report


class Probe:
    """Logistic regression on one layer's hidden state at the last prompt token."""

    def __init__(self, target: Target, path: Path) -> None:
        self.target = target
        self.layer = int(json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["layer"])
        tensors = load_file(path.with_suffix(".safetensors"))
        self.weight, self.bias = tensors["weight"], tensors["bias"]

    def __call__(self, conversations: Sequence[Conversation]) -> list[float]:
        """P(malicious) of each."""
        states = last_states(self.target, conversations)[:, self.layer - 1]
        return [float(p) for p in torch.sigmoid(states @ self.weight + self.bias)]


class Classifier:
    """A sequence classification model by name, on what the user said last."""

    def __init__(self, target: Target, options: DetectSettings) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.target, self.malicious = target, options.malicious_class
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(options.model)
            model = AutoModelForSequenceClassification.from_pretrained(options.model)
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelError(f"cannot load the classifier {options.model!r}: {reason}") from error
        self.classes = int(model.config.num_labels)
        if not 0 <= self.malicious < max(self.classes, 2):
            raise ConfigError(
                f"malicious_class {self.malicious} is none of the {self.classes} classes of {options.model}"
            )
        self.model = model.eval().to(target.model.device)

    def __call__(self, conversations: Sequence[Conversation]) -> list[float]:
        """P(malicious) of each."""
        found: list[float] = []
        for start in range(0, len(conversations), self.target.batch_size):
            batch = conversations[start : start + self.target.batch_size]
            texts = [(user_texts(conversation) or [""])[-1] for conversation in batch]
            inputs = self.tokenizer(texts, return_tensors="pt", padding=True, truncation=True)
            with torch.inference_mode():
                logits = self.model(**inputs.to(self.model.device)).logits.float()
            if self.classes == 1:  # one logit, for class 1
                logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
            found += [float(p) for p in logits.softmax(dim=-1)[:, self.malicious]]
        return found


def last_states(target: Target, prompts: Sequence[str | Conversation]) -> torch.Tensor:
    """Hidden states after every layer of the base at the last prompt token.

    Returns:
        (prompts, layers, width) float32 on the CPU.
    """
    states: list[torch.Tensor] = [torch.empty(0)] * len(prompts)
    model, size = target.model, target.batch_size
    for indices, batch in batches(target.tokenizer, prompts, size, target.template, model.device):
        output = read_batch(model, batch, last_logits=True, output_hidden_states=True)
        last = torch.stack([layer[:, -1].float() for layer in output.hidden_states[1:]], dim=1).cpu()
        for index, row in zip(indices, last, strict=True):
            states[index] = row
    return torch.stack(states)


def _balanced(rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels (1 for malicious) and weights with which both labels weigh the same and all sum to 1."""
    y = torch.tensor([float(row.label == "malicious") for row in rows])
    share = y.mean()
    return y, torch.where(y > 0, 0.5 / share, 0.5 / (1 - share)) / len(y)
