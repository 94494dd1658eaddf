"""Looks at a responder whenever Trainer saves a checkpoint, and remembers what it saw across interruptions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from mogu.adapter.config import Stage
from mogu.data.rows import Row, read_jsonl, write_jsonl
from mogu.recipe import ResponderRecipe
from mogu.train.selection import Checkpoint, Respondent, check_responder


class CheckpointWatch(TrainerCallback):
    """Checks a responder at every saved checkpoint, and may stop its training."""

    def __init__(
        self, ask: Respondent, stage: Stage, rows: Sequence[Row], log: Path, per_step: int, recipe: ResponderRecipe
    ) -> None:
        self.ask, self.stage, self.rows, self.log = ask, stage, rows, log
        self.per_step, self.recipe = per_step, recipe

    @property
    def checks(self) -> list[Checkpoint]:
        """All checks so far, by pairs seen."""
        if not self.log.is_file():
            return []
        return sorted((Checkpoint(**record) for _, record in read_jsonl(self.log)), key=lambda c: c.pairs)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After each checkpoint."""
        if self.catch_up(state.global_step):
            control.should_training_stop = True

    def knows(self, step: int) -> bool:
        """True if the checkpoint after ``step`` was checked."""
        return any(check.pairs == step * self.per_step for check in self.checks)

    def catch_up(self, step: int) -> bool:
        """Check the model unless it was before an interruption; True if training may stop."""
        if not self.knows(step):
            new = check_responder(self.ask, self.stage, self.rows, step * self.per_step)
            write_jsonl(self.log, [asdict(check) for check in (*self.checks, new)])
        check = next(c for c in self.checks if c.pairs == step * self.per_step)
        return self.recipe.stop_when_good and self.recipe.checkpoint is None and check.good
