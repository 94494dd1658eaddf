"""Looks at the model whenever Trainer saves a checkpoint, and remembers what it saw across interruptions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from mogu import processes
from mogu.adapter.config import Stage
from mogu.data.rows import Row, read_jsonl, write_jsonl
from mogu.recipe import ResponderRecipe
from mogu.train.drift import Drift
from mogu.train.selection import Checkpoint, Respondent, RouterCheckpoint, check_responder, check_routers


class CheckpointWatch(TrainerCallback):
    """Checks a responder at every saved checkpoint, and may stop its training."""

    kind: type[Any] = Checkpoint

    def __init__(
        self,
        ask: Respondent,
        stage: Stage,
        rows: Sequence[Row],
        log: Path,
        per_step: int,
        recipe: ResponderRecipe | None = None,
        drift: Drift | None = None,
    ) -> None:
        self.ask, self.stage, self.rows, self.log = ask, stage, rows, log
        self.per_step, self.recipe, self.drift = per_step, recipe, drift

    @property
    def checks(self) -> list[Any]:
        """All checks so far, by rows seen."""
        if not self.log.is_file():
            return []
        return sorted((self.kind(**record) for _, record in read_jsonl(self.log)), key=lambda check: check.pairs)

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
            new = self.look(step * self.per_step)  # all processes look, and the main one's opinion counts
            processes.from_main(lambda: write_jsonl(self.log, [asdict(check) for check in (*self.checks, new)]))
        return any(self.enough(check) for check in self.checks)

    def look(self, pairs: int) -> Any:
        """What validation says of the model as it is."""
        return check_responder(self.ask, self.stage, self.rows, pairs, self.drift)

    def enough(self, check: Any) -> bool:
        """True if training may stop at a checkpoint."""
        recipe = self.recipe
        return recipe is not None and recipe.stop_when_good and recipe.checkpoint is None and bool(check.good)


class RouterWatch(CheckpointWatch):
    """Checks the routers at every saved checkpoint, and before the first step."""

    kind = RouterCheckpoint
    new: frozenset[str] = frozenset()
    """See :func:`mogu.train.selection.check_routers`."""

    def look(self, pairs: int) -> RouterCheckpoint:
        """What validation says of the routed model as it is."""
        return check_routers(self.ask, self.rows, pairs, self.drift, self.new)
