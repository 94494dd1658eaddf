"""LoRA weights that a defence learns: trained once, kept in the workspace, put on the base while it decodes."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers import TrainingArguments, set_seed

from mogu import processes
from mogu.adapter import store
from mogu.data.rows import Row
from mogu.defend.base import Target
from mogu.defend.learnt import inputs_hash
from mogu.defend.overlay import Overlay
from mogu.progress import Progress
from mogu.train.batches import Encoder, RouterCollator, answer_logits
from mogu.train.losses import over_rows, response_cross_entropy
from mogu.train.shares import WEIGHTS
from mogu.train.trainers import AdapterTrainer, RowDataset, StepProgress
from mogu.versions import versions

_TOGETHER = 4
"""Rows of a step that go through the model at a time: of like length, so that little is padding."""


@dataclass(frozen=True)
class LoraRecipe:
    """How the LoRA weights of a defence are trained."""

    rank: int = 16
    """r of LoRA, on the modules that peft takes by default (q and v projections where it knows the architecture)."""
    alpha: float = 32.0
    """LoRA scale is alpha / rank."""
    dropout: float = 0.05
    """On LoRA's input while it trains."""
    learning_rate: float = 2e-4
    """Peak rate of AdamW, reached after ``warmup`` and falling linearly to 0."""
    warmup: float = 0.03
    """Share of the steps."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    epochs: int = 2
    """Passes over the rows."""
    batch_size: int = 8
    """Rows per optimizer step."""
    rows: int | None = None
    """At most so many rows, drawn with the seed; ``None`` is all."""
    answer_tokens: int = 128
    """Length at which answers are cut."""


class LoraWeights:
    """The LoRA weights of one defence on one base."""

    def __init__(self, target: Target, name: str, rows: Sequence[Row], recipe: LoraRecipe) -> None:
        """Nothing is trained yet.

        Args:
            target: The base, and where to keep the weights.
            name: Of the defence; its folder in the workspace.
            rows: Training rows; of each, the answer that a safe and useful model gives is learnt.
            recipe: The numbers.
        """
        pool = list(rows)
        random.Random(target.seed).shuffle(pool)
        self.target, self.name, self.recipe, self.rows = target, name, recipe, pool[: recipe.rows]
        self.inputs = inputs_hash(target, self.rows, dataclasses.asdict(recipe))
        self.folder = target.workspace / name / self.inputs

    def ready(self, progress: Progress) -> Overlay:
        """The weights, trained or from an earlier run; only finished training leaves its folder."""
        if processes.from_main((self.folder / "adapter_config.json").is_file):
            return Overlay(self.target.model, self._loaded)
        progress.begin(self.name, f"{self.name}: LoRA on {len(self.rows)} rows")
        overlay = Overlay(self.target.model, lambda base: self._trained(base, progress))
        progress.end(f"kept in {self.folder}")
        return overlay

    def _loaded(self, base: Any) -> PeftModel:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return PeftModel.from_pretrained(base, str(self.folder))

    def _trained(self, base: Any, progress: Progress) -> PeftModel:
        set_seed(self.target.seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = get_peft_model(base, self._config(base.config.model_type))
        encode = Encoder(self.target.tokenizer, self.target.template, self.recipe.answer_tokens)
        collate = RouterCollator(encode)
        with tempfile.TemporaryDirectory() as scratch:
            trainer = _AnswerTrainer(
                model=model,
                args=self._arguments(scratch, base),
                train_dataset=RowDataset(self.rows, collate.length),
                data_collator=collate,
                callbacks=[StepProgress(progress.update)],
            )
            trainer.train()
        record = {
            "base": self.target.name,
            "recipe": dataclasses.asdict(self.recipe),
            "rows": len(self.rows),
            "seed": self.target.seed,
            "versions": versions(),
        }
        text = {"training.json": json.dumps(record, indent=1) + "\n"}
        processes.from_main(lambda: store.save(model, self.folder, text))
        return model

    def _config(self, model_type: str) -> LoraConfig:
        return LoraConfig(
            task_type="CAUSAL_LM",
            r=self.recipe.rank,
            lora_alpha=self.recipe.alpha,
            lora_dropout=self.recipe.dropout,
            target_modules=TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model_type, "all-linear"),
        )

    def _arguments(self, scratch: str | Path, base: Any) -> TrainingArguments:
        recipe = self.recipe
        steps = -(-len(self.rows) // recipe.batch_size) * recipe.epochs
        together = math.gcd(recipe.batch_size, _TOGETHER)
        return TrainingArguments(
            output_dir=str(scratch),
            per_device_train_batch_size=together,
            gradient_accumulation_steps=recipe.batch_size // together,
            max_steps=steps,
            learning_rate=recipe.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=round(recipe.warmup * steps),
            max_grad_norm=recipe.max_grad_norm,
            weight_decay=0.0,
            logging_strategy="no",
            save_strategy="no",
            seed=self.target.seed,
            data_seed=self.target.seed,
            remove_unused_columns=False,
            report_to=[],
            disable_tqdm=True,
            use_cpu=base.device.type == "cpu",
            use_cache=bool(base.config.use_cache),  # Trainer writes it into the base's configuration
            dataloader_pin_memory=False,
            ddp_find_unused_parameters=False,
        )


class _AnswerTrainer(AdapterTrainer):
    """Cross-entropy of the wanted answers."""

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, torch.Tensor], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """Mean over rows of each answer's mean over tokens."""
        logits, labels = answer_logits(model, inputs, self.accepts)
        loss = self.finite(over_rows(response_cross_entropy(logits, labels), inputs.get(WEIGHTS)))
        return (loss, None) if return_outputs else loss
