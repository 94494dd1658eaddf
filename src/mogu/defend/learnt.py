"""What the learning defences share: which rows, and when something learnt earlier is still good."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Sequence
from typing import Any

import torch

from mogu.data.rows import Row
from mogu.defend.base import Target
from mogu.errors import TrainingError


def rows_of(target: Target, split: str, labels: Sequence[str], needed_by: str) -> list[Row]:
    """The rows of one split that carry one of ``labels``.

    Raises:
        TrainingError: There is none of one of the labels.
    """
    rows = [row for row in target.rows() if row.split == split]
    for label in labels:
        if not any(row.label == label for row in rows):
            raise TrainingError(f"{needed_by} learns from {label} rows and the data has none in the {split} split")
    return [row for row in rows if row.label in labels]


def inputs_hash(target: Target, rows: Sequence[Row], settings: dict[str, Any]) -> str:
    """Short hash of all that decides what is learnt: base, template, rows, settings, seed.

    Two bases of one name are told apart by the first number of each of their parameters.
    """
    model = target.model
    first = [float(parameter.detach().flatten()[0]) for parameter in model.parameters()]
    value = [
        *(target.name, str(model.dtype), first, target.template, target.seed),
        [dataclasses.asdict(row) for row in rows],
        settings,
    ]
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def read_batch(model: Any, batch: dict[str, torch.Tensor], *, last_logits: bool = False, **options: Any) -> Any:
    """Output of one forward of a left-padded batch; every row's positions count from its first real token.

    Args:
        model: The plain base.
        batch: ``input_ids`` and ``attention_mask``.
        last_logits: Logits are wanted of the last token only, where the model can leave out the others.
        **options: Of the model's forward.
    """
    accepts = inspect.signature(model.forward).parameters
    optional: dict[str, Any] = {"position_ids": (batch["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)}
    if last_logits:
        optional["logits_to_keep"] = 1
    with torch.inference_mode():
        return model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            use_cache=False,
            **{name: value for name, value in optional.items() if name in accepts},
            **options,
        )
