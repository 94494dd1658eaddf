"""The last two stages: the balance between the responders, and the calibration of the risk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from mogu.adapter.model import active_config, set_shift, set_stage
from mogu.data.rows import Row
from mogu.progress import Progress
from mogu.recipe import BalanceRecipe
from mogu.train.risk import fit_risk
from mogu.train.selection import Balance, Respondent, choose_shift
from mogu.train.stages import Stages


def balance(
    ask: Respondent, rows: Sequence[Row], recipe: BalanceRecipe, stages: Stages, inputs: str, progress: Progress
) -> list[Balance]:
    """Choose the shift δ on validation prompts and set it; all trials, none where the recipe has one value.

    Args:
        ask: The routed model.
        rows: All rows; the validation split is used.
        recipe: Shifts, prompts, limits.
        stages: Where trials are kept.
        inputs: Hash of all that they depend on.
        progress: Told what happens.
    """
    if len(recipe.shifts) == 1:
        set_shift(ask.model, recipe.shifts[0])
        return []
    finished = stages.finished("balance", inputs)
    if finished is not None:
        trials = [Balance(**entry) for entry in finished]
        set_shift(ask.model, next(t.shift for t in trials if t.chosen))
        return trials
    set_stage(ask.model, "routed")
    progress.begin("balance", "balance: weighs refusals of malicious against those of benign prompts")
    before = [Balance(**entry) for entry in stages.finished("balance.part", inputs) or []]
    seen = list(before)

    def note(trial: Balance) -> None:
        seen.append(trial)
        stages.finish("balance.part", inputs, [asdict(t) for t in seen])
        progress.update(len(seen), len(recipe.shifts))

    trials = choose_shift(ask, rows, recipe, before, note)
    chosen = next(t for t in trials if t.chosen)
    progress.end(
        f"shift {chosen.shift:+g} refuses {chosen.malicious_refused:.0%} of malicious, "
        f"{chosen.benign_refused:.0%} of benign, {chosen.borderline_refused:.0%} of borderline validation prompts"
    )
    stages.finish("balance", inputs, [asdict(t) for t in trials])
    stages.drop("balance.part", inputs)
    return trials


def calibrate(
    ask: Respondent, rows: Sequence[Row], recipe: BalanceRecipe, stages: Stages, inputs: str, progress: Progress
) -> None:
    """Fit what turns router logits into a risk, and let the hand-over be what the recipe says.

    Arguments are those of :func:`balance`.
    """
    found = stages.finished("risk", inputs)
    if found is None:
        progress.begin("risk", "risk: calibrates the routers on validation prompts")
        fitted = fit_risk(ask, rows)
        found = [] if fitted is None else [fitted]
        stages.finish("risk", inputs, found)
        progress.end(f"log loss {fitted['prompt']['log_loss']:.2g}" if fitted else "too few validation rows")
    config = active_config(ask.model)
    config.risk = found[0] if found else None
    config.handover = recipe.handover if found else "fixed"  # type: ignore[assignment]
    config.risk_threshold = recipe.risk_threshold
