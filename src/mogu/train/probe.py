"""In which layers is it readable what is asked? A logistic probe for each layer, scored on kinds that it never saw.

Easy sets say nothing about a layer: style alone separates them everywhere. So whole harm categories, and where there
are several sources whole sources, are kept from the probe's training and scored; a malicious request and its harmless
twin stay on one side. The score is the log-loss there (an AUROC misses what a probe is sure of and wrong about).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from mogu.data.rows import Row
from mogu.errors import TrainingError
from mogu.statistics import auroc
from mogu.train.fit import fit_probe

FOLDS = 5
"""Parts into which categories, or sources, are divided; each is held out once."""
L2 = 0.1
"""Ridge of a probe on standardised states; a weaker one is surer of kinds that it never saw, and loses there."""
TOLERANCE = 0.02
"""Of the best layers' score that a first routed layer further up may cost."""
_STEPS = 20
"""L-BFGS steps: enough for logits that correlate by 0.997 and more."""


@dataclass(frozen=True)
class Score:
    """Of one layer and one kind of states, on what was held out."""

    log_loss: float
    """Nats; malicious rows weigh half, plain and borderline benign ones share the other half."""
    auroc: float
    """Malicious against benign and borderline."""
    twins: float | None
    """Malicious against borderline benign rows only; ``None`` without these."""


@dataclass(frozen=True)
class Choice:
    """The layers that are worth routing."""

    layers: tuple[int, ...]
    log_loss: float
    """Mean over the chosen layers."""
    best: float
    """Mean over the k layers with the lowest log-loss."""


def held_out_parts(rows: Sequence[Row], folds: int = FOLDS) -> dict[str, list[int]]:
    """Part of each row, for each way of holding out: ``categories``, and ``sources`` where malicious rows have several.

    A borderline row goes with its malicious twin. Without two malicious categories, rows are held out one by one
    (``rows``), which says less.

    Raises:
        TrainingError: Only one label in ``rows``.
    """
    if len({row.label for row in rows}) < 2:
        raise TrainingError("a layer probe needs benign and malicious rows; the data has only one kind")
    malicious = [row for row in rows if row.label == "malicious"]
    found = {}
    if len({row.category for row in malicious}) > 1:
        found["categories"] = _parts(rows, [(row.category, row.label) for row in rows], folds)
    if len({row.source for row in malicious}) > 1:
        found["sources"] = _parts(rows, _sources(rows), folds)
    return found or {"rows": _parts(rows, [row.id for row in rows], folds)}


def _sources(rows: Sequence[Row]) -> list[Hashable]:
    """Where a label has one source only, its categories stand for sources."""
    single = {
        label for label in ("benign", "malicious") if len({row.source for row in rows if row.label == label}) == 1
    }
    return [(row.source, row.label, row.category if row.label in single else "") for row in rows]


def _parts(rows: Sequence[Row], groups: Sequence[Hashable], folds: int) -> list[int]:
    """Groups in parts of about equal size, each label apart, the largest first; twins follow the malicious row."""
    group_of = {row.id: group for row, group in zip(rows, groups, strict=True)}
    label_of = {row.id: row.label for row in rows}
    own = [
        group_of[row.twin] if row.borderline and label_of.get(row.twin) == "malicious" else group_of[row.id]
        for row in rows
    ]
    part: dict[Hashable, int] = {}
    for label in ("malicious", "benign"):
        sizes: dict[Hashable, int] = defaultdict(int)
        for row, group in zip(rows, own, strict=True):
            if row.label == label and group not in part:
                sizes[group] += 1
        load = [0] * min(folds, max(len(sizes), 1))
        for group in sorted(sizes, key=lambda one: (-sizes[one], str(one))):
            part[group] = load.index(min(load))
            load[part[group]] += sizes[group]
    return [part[group] for group in own]


def row_weights(rows: Sequence[Row]) -> torch.Tensor:
    """(n,) float32, summing to 1: malicious rows half, plain and borderline benign rows alike in the other half."""
    kinds = ["malicious" if row.label == "malicious" else "borderline" if row.borderline else "benign" for row in rows]
    benign = [kind for kind in ("benign", "borderline") if kind in kinds]
    share = {"malicious": 0.5} | {kind: 0.5 / len(benign) for kind in benign}
    weights = torch.tensor([share[kind] / kinds.count(kind) for kind in kinds])
    return weights / weights.sum()


def score(states: torch.Tensor, rows: Sequence[Row], parts: dict[str, list[int]], l2: float = L2) -> Score:
    """How well a probe on ``states`` tells malicious from benign rows of kinds that it never saw.

    Args:
        states: (rows, width) float32.
        rows: What was read.
        parts: From :func:`held_out_parts`; the score is the mean over its ways of holding out.
        l2: Ridge on standardised states.
    """
    y = torch.tensor([float(row.label == "malicious") for row in rows])
    each = [_score(states, y, rows, torch.tensor(part), l2) for part in parts.values()]
    twins = [one.twins for one in each if one.twins is not None]
    return Score(
        log_loss=sum(one.log_loss for one in each) / len(each),
        auroc=sum(one.auroc for one in each) / len(each),
        twins=sum(twins) / len(twins) if twins else None,
    )


def _score(x: torch.Tensor, y: torch.Tensor, rows: Sequence[Row], part: torch.Tensor, l2: float) -> Score:
    logits, known = torch.zeros(len(y)), torch.zeros(len(y), dtype=torch.bool)
    for number in part.unique().tolist():
        out = part == number
        rest = [row for row, held in zip(rows, out.tolist(), strict=True) if not held]
        if len({row.label for row in rest}) < 2:
            continue
        w, b = fit_probe(x[~out], y[~out], row_weights(rest), l2, _STEPS)
        logits[out], known[out] = x[out] @ w + b, True
    if len(set(y[known].tolist())) < 2:
        raise TrainingError("a layer probe needs rows of both labels to hold out; add malicious or benign rows")
    seen = [row for row, was in zip(rows, known.tolist(), strict=True) if was]
    losses = nn.functional.binary_cross_entropy_with_logits(logits[known], y[known], reduction="none")
    by_kind: dict[str, list[float]] = {"malicious": [], "benign": [], "borderline": []}
    for row, logit in zip(seen, logits[known].tolist(), strict=True):
        by_kind["borderline" if row.borderline else row.label].append(logit)
    found = auroc(by_kind["malicious"], [*by_kind["benign"], *by_kind["borderline"]])
    assert found is not None
    return Score(float(row_weights(seen) @ losses), found, auroc(by_kind["malicious"], by_kind["borderline"]))


def choose_layers(log_losses: Sequence[float], budget: float, tolerance: float = TOLERANCE) -> Choice:
    """The k layers to route: the best ones, or the best above a layer further up where that costs little.

    Everything below the first routed layer is shared between head and tail, and kept in training; what lies between
    routed layers saves nothing. So of the best k layers from each layer up, those that begin uppermost are taken among
    all within the tolerance.

    Args:
        log_losses: Of each layer, from the first up.
        budget: k as a share of the layers, in (0, 1]; at least one layer.
        tolerance: Share by which the mean log-loss of the chosen may lie above that of the best k layers.
    """
    depth = len(log_losses)
    k = min(max(round(budget * depth), 1), depth)
    lowest = _mean(log_losses, _best(log_losses, range(depth), k))
    for first in range(depth - k, -1, -1):
        above = _best(log_losses, range(first, depth), k)
        if _mean(log_losses, above) <= lowest * (1 + tolerance):
            break
    return Choice(tuple(above), _mean(log_losses, above), lowest)


def _best(values: Sequence[float], layers: Sequence[int], k: int) -> list[int]:
    """The k of ``layers`` with the lowest values, of equals the lower ones; from the lowest layer up."""
    return sorted(sorted(layers, key=lambda layer: (values[layer], layer))[:k])


def _mean(values: Sequence[float], layers: Sequence[int]) -> float:
    return sum(values[layer] for layer in layers) / len(layers)
