"""Supervised fine-tuning: LoRA on refusals of malicious instructions and good answers to benign ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from mogu.defend.base import Defense, Target
from mogu.defend.learnt import rows_of
from mogu.defend.lora import LoraRecipe, LoraWeights
from mogu.defend.overlay import Overlay
from mogu.progress import Progress

RECIPE = LoraRecipe(rows=600)
"""The MoGU paper gives no numbers for its SFT baseline; these are customary ones for instruction tuning with LoRA, on
as many rows as the paper trains on (300 malicious, 300 benign)."""


class Sft(Defense):
    """The base with LoRA weights fine-tuned on the training rows of both labels."""

    name = "sft"
    summary = "LoRA fine-tuned on refusals of malicious and answers to benign instructions"
    source = "the SFT baseline of Du et al. 2024 (MoGU), arXiv:2405.14488"
    decodes = True

    def __init__(self, target: Target, recipe: LoraRecipe = RECIPE) -> None:
        super().__init__(target)
        self.recipe = recipe
        self._overlay: Overlay | None = None

    @cached_property
    def _weights(self) -> LoraWeights:
        rows = rows_of(self.target, "train", ("benign", "malicious"), self.name)
        return LoraWeights(self.target, self.name, rows, self.recipe)

    def settings(self) -> dict[str, Any]:
        """The recipe, and a hash of base and rows."""
        return {**dataclasses.asdict(self.recipe), "seed": self.target.seed, "inputs": self._weights.inputs}

    def prepare(self, progress: Progress) -> None:
        """Train, or load what was trained before."""
        self._overlay = self._weights.ready(progress)

    @contextmanager
    def installed(self) -> Iterator[Any]:
        """The fine-tuned model."""
        if self._overlay is None:
            self.prepare(Progress())
        assert self._overlay is not None
        with self._overlay.installed() as model:
            yield model
