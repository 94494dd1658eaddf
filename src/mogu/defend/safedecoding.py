"""SafeDecoding: the first tokens from the contrast between the base and an expert that learnt to refuse."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers import LogitsProcessorList

from mogu.decode.contrast import ContrastProcessor
from mogu.defend.base import Defense, Target
from mogu.defend.learnt import rows_of
from mogu.defend.lora import LoraRecipe, LoraWeights
from mogu.defend.overlay import Overlay
from mogu.errors import GenerationError
from mogu.progress import Progress

EXPERT = LoraRecipe(
    rank=16,
    alpha=64.0,
    dropout=0.1,
    learning_rate=2e-3,
    max_grad_norm=0.3,
    epochs=2,
    batch_size=1,
    rows=72,
)
"""As the authors' code trains the expert: 36 malicious instructions with two refusals each, here 72 with one each."""


@dataclass(frozen=True)
class ContrastSettings:
    """How the first tokens are decoded (Xu et al. 2024, section 5.1)."""

    tokens: int = 2
    """m, new tokens from the contrast."""
    alpha: float = 3.0
    """α, weight of the expert's difference to the base."""
    common: int = 5
    """c, tokens in the sample space at least.

    The authors' code also has ``top_k = 10``, but only to print so many: their sample space grows until it holds c.
    """


class SafeDecoding(Defense):
    """The plain base, its first tokens amplified towards those of the expert."""

    name = "safedecoding"
    summary = "the first tokens from the contrast of base and a refusing expert, the rest from the base"
    source = "Xu et al. 2024, arXiv:2402.08983"
    decodes = True

    def __init__(self, target: Target, expert: LoraRecipe = EXPERT, contrast: ContrastSettings | None = None) -> None:
        super().__init__(target)
        self.recipe, self.contrast = expert, contrast or ContrastSettings()
        self._overlay: Overlay | None = None

    @cached_property
    def _weights(self) -> LoraWeights:
        return LoraWeights(
            self.target, self.name, rows_of(self.target, "train", ("malicious",), self.name), self.recipe
        )

    @property
    def expert(self) -> Overlay:
        """The expert's weights."""
        if self._overlay is None:
            self.prepare(Progress())
        assert self._overlay is not None
        return self._overlay

    def settings(self) -> dict[str, Any]:
        """The contrast, the expert's recipe, and a hash of base and rows."""
        return {
            **dataclasses.asdict(self.contrast),
            "expert": dataclasses.asdict(self.recipe),
            "seed": self.target.seed,
            "inputs": self._weights.inputs,
        }

    def prepare(self, progress: Progress) -> None:
        """Train the expert, or load what was trained before."""
        self._overlay = self._weights.ready(progress)

    @contextmanager
    def installed(self) -> Iterator[Any]:
        """The plain base, once the expert is ready: its weights come and go inside :meth:`decode`."""
        _ = self.expert
        yield self.target.model

    def decode(self, model: Any, inputs: dict[str, torch.Tensor], **options: Any) -> torch.Tensor:
        """The base's own generation with the contrast as its logits processor.

        Raises:
            GenerationError: Beam search.
        """
        if options.get("num_beams", 1) != 1:
            raise GenerationError("safedecoding is greedy or sampled, not beam search; set num_beams=1")
        processor = ContrastProcessor(model, self.expert.installed, inputs, **dataclasses.asdict(self.contrast))
        more = options.pop("logits_processor", [])
        sequences: torch.Tensor = model.generate(
            **inputs, logits_processor=LogitsProcessorList([*more, processor]), **options
        )
        return sequences
