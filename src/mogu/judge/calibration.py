"""How far a judge agrees with people: recall, precision, false alarms and Cohen's kappa of the label "refusal"."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mogu.errors import DataError
from mogu.statistics import Interval, wilson

Human = Literal["refusal", "compliance", "apart"]
"""What a person's label says; `apart` is neither a full refusal nor a full compliance, and is only tabulated."""

HUMAN_LABELS: dict[str, Human] = {
    "refusal": "refusal",
    "full_refusal": "refusal",
    "2_full_refusal": "refusal",
    "complied": "compliance",
    "compliance": "compliance",
    "full_compliance": "compliance",
    "1_full_compliance": "compliance",
    "partial_refusal": "apart",
    "3_partial_refusal": "apart",
    "degenerate": "apart",
    "unclear": "apart",
}
"""Names that a field `label` may hold: our own, XSTest's (arXiv:2308.01263), and plain ones."""

UNPARSED = "unparsed"
"""Column of the confusion table for answers of a model judge that could not be read."""

_RESAMPLES = 2000


@dataclass(frozen=True)
class Agreement:
    """A judge against people on full refusals and full compliances; all intervals are 95%.

    Rows that people set apart (partial refusals, broken text), and rows whose judgement could not be parsed, count in
    `confusion` alone.
    """

    found: int
    """Refusals that the judge calls refusal."""
    missed: int
    """Refusals that it calls something else."""
    alarms: int
    """Compliances that it calls refusal."""
    passed: int
    """Compliances that it calls something else."""
    confusion: dict[tuple[str, str], int]
    """Rows by (person's label as written, judge's label)."""

    @property
    def n(self) -> int:
        """Rows that the four numbers rest on."""
        return self.found + self.missed + self.alarms + self.passed

    @property
    def recall(self) -> Interval:
        """Share of the refusals that the judge finds (Wilson)."""
        return wilson(self.found, self.found + self.missed)

    @property
    def precision(self) -> Interval:
        """Share of refusals among what the judge calls one (Wilson); depends on how many refusals there are."""
        return wilson(self.found, self.found + self.alarms)

    @property
    def false_alarms(self) -> Interval:
        """Share of the compliances that the judge calls a refusal (Wilson)."""
        return wilson(self.alarms, self.alarms + self.passed)

    @property
    def kappa(self) -> Interval:
        """Cohen's kappa with a percentile bootstrap, see :func:`cohen_kappa`."""
        return cohen_kappa(self.found, self.missed, self.alarms, self.passed)


def agreement(pairs: Iterable[tuple[str, str | None]]) -> Agreement:
    """Agreement over pairs of a person's label and the judge's (None where its answer could not be parsed).

    A judge's label counts as refusal or not by the same names as a person's; `degenerate` and `unclear` are no refusal.

    Raises:
        DataError: A label that is none of :data:`HUMAN_LABELS`.
    """
    confusion: Counter[tuple[str, str]] = Counter()
    cells: Counter[tuple[Human, bool]] = Counter()
    for person, judge in pairs:
        meaning = human_meaning(person)
        confusion[person, UNPARSED if judge is None else judge] += 1
        if judge is not None:
            cells[meaning, _calls_refusal(judge)] += 1
    return Agreement(
        found=cells["refusal", True],
        missed=cells["refusal", False],
        alarms=cells["compliance", True],
        passed=cells["compliance", False],
        confusion=dict(confusion),
    )


def cohen_kappa(found: int, missed: int, alarms: int, passed: int, *, seed: int = 0) -> Interval:
    """Cohen's kappa of a 2 × 2 table with a 95% percentile bootstrap over rows.

    κ = (p_o − p_e) / (1 − p_e) with observed agreement p_o and agreement by chance p_e (Cohen 1960, "A coefficient of
    agreement for nominal scales"). Resampling rows with replacement is drawing the four cells from a multinomial.
    Undefined, rate None within [-1, 1], without rows or where both sides give one and the same label throughout.
    """
    table = np.array([found, missed, alarms, passed], dtype=float)
    observed = _kappa(table[None])[0] if table.sum() else np.nan
    if np.isnan(observed):
        return Interval(None, -1.0, 1.0)
    drawn = np.random.default_rng(seed).multinomial(int(table.sum()), table / table.sum(), size=_RESAMPLES)
    low, high = np.nanquantile(_kappa(drawn.astype(float)), (0.025, 0.975))
    return Interval(float(observed), float(low), float(high))


def human_meaning(label: str) -> Human:
    """What a person's label says.

    Raises:
        DataError: An unknown name.
    """
    meaning = HUMAN_LABELS.get(label.strip().lower())
    if meaning is None:
        raise DataError(f"label {label!r} says nothing of refusal; known: {', '.join(HUMAN_LABELS)}")
    return meaning


def human_label(row: Mapping[str, Any]) -> str | None:
    """The person's label in a row, as written; None if it has none.

    It stands in the field `label`, by a name of :data:`HUMAN_LABELS`, or in `is_refusal` as true or false (1 or 0).

    Raises:
        DataError: The field holds something else.
    """
    if (label := row.get("label")) is not None:
        if not isinstance(label, str):
            raise DataError(f"label must be one of {', '.join(HUMAN_LABELS)}, not {label!r}")
        human_meaning(label)
        return label.strip()
    if (flag := row.get("is_refusal")) is None:
        return None
    if flag not in (0, 1):
        raise DataError(f"is_refusal must be true or false, not {flag!r}")
    return "refusal" if flag else "compliance"


def _calls_refusal(label: str) -> bool:
    meaning = HUMAN_LABELS.get(label.strip().lower())
    if meaning is None:
        raise DataError(f"the judge's label {label!r} says nothing of refusal; take the rubric 'refusal'")
    return meaning == "refusal"


def _kappa(tables: np.ndarray) -> np.ndarray:
    """Kappa of each row [found, missed, alarms, passed]; NaN where chance alone explains all agreement."""
    shares = tables / tables.sum(axis=1, keepdims=True)
    found, missed, alarms, passed = shares.T
    agreed = found + passed
    chance = (found + missed) * (found + alarms) + (alarms + passed) * (missed + passed)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(chance < 1, (agreed - chance) / (1 - chance), np.nan)
