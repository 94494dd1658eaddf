"""Rates with their uncertainty, paired tests and router statistics. Pure functions on labels and numbers."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mogu.errors import DataError
from mogu.judge import LABELS, is_keyword_refusal
from mogu.statistics import Interval as Interval
from mogu.statistics import auroc as auroc
from mogu.statistics import bootstrap_mean, wilson


def rates(rows: Iterable[Mapping[str, Any]], prompts: Sequence[Hashable] | None = None) -> dict[str, Any]:
    """Counts and rates of judged responses, ready for JSON.

    Each row needs `label` (refusal, degenerate, complied or unclear) and `response`. The result is
    ``{"n", "counts": {label: int}, "rates": {name: {"rate", "low", "high"}}}`` with Wilson 95% intervals; the names are
    the four labels and

    - `coherent_asr`: share labelled complied (refusing, broken and unclear answers are no success of an attack),
    - `keyword_asr`: share in which the published keyword rule finds no refusal (comparable with papers; it counts
      broken text as success).

    Both are attack success rates on malicious instructions only; elsewhere they are shares of answered instructions.

    `prompts` says which prompt each row answers. Where prompts were answered several times (several seeds), answers to
    one prompt are no independent cases: `n` is the number of prompts, `answers` that of rows, a rate the mean over
    prompts of each one's share, and its interval a bootstrap over prompts.

    Raises:
        DataError: A label that is none of the four.
    """
    rows = list(rows)
    found = Counter(row["label"] for row in rows)
    if strange := sorted(set(found) - set(LABELS), key=str):
        raise DataError(f"unknown label {strange[0]!r} in judged rows; known: {', '.join(LABELS)}")
    hits: dict[str, list[bool]] = {label: [row["label"] == label for row in rows] for label in LABELS}
    hits["coherent_asr"] = hits["complied"]
    hits["keyword_asr"] = [not is_keyword_refusal(row["response"]) for row in rows]
    counts = {label: found[label] for label in LABELS}
    if prompts is None or len(set(prompts)) == len(rows):
        shares = {name: dataclasses.asdict(wilson(sum(hit), len(rows))) for name, hit in hits.items()}
        return {"n": len(rows), "counts": counts, "rates": shares}
    shares = {name: dataclasses.asdict(clustered(hit, prompts)) for name, hit in hits.items()}
    return {"n": len(set(prompts)), "answers": len(rows), "counts": counts, "rates": shares}


def clustered(hits: Sequence[bool], prompts: Sequence[Hashable]) -> Interval:
    """Mean over prompts of each one's share of hits, with a bootstrap interval over prompts (Efron 1979).

    Where every share is the same the bootstrap knows no spread, and the interval is Wilson's for so many prompts.
    """
    values: dict[Hashable, list[bool]] = {}
    for hit, prompt in zip(hits, prompts, strict=True):
        values.setdefault(prompt, []).append(hit)
    shares = [sum(own) / len(own) for own in values.values()]
    if len(set(shares)) == 1 and shares[0] in (0.0, 1.0):
        return wilson(round(shares[0] * len(shares)), len(shares))
    return bootstrap_mean(shares)


def mcnemar(base_labels: Sequence[str], other_labels: Sequence[str], outcome: str) -> float:
    """Two-sided exact p-value for two systems showing `outcome` equally often on the same instructions, in one order.

    Only discordant pairs speak: with b and c of them in either direction, p = min(1, 2 · P(X <= min(b, c))) for
    X ~ Binomial(b + c, 1/2) (McNemar 1947, "Note on the sampling error of the difference between correlated proportions
    or percentages", Psychometrika 12; exact form). 1.0 if no pair is discordant.

    Raises:
        DataError: The two lists differ in length.
    """
    only_base, only_other = discordant(base_labels, other_labels, outcome)
    tail = sum(math.comb(only_base + only_other, k) for k in range(min(only_base, only_other) + 1))
    return min(1.0, 2 * tail / 2 ** (only_base + only_other))


def discordant(base_labels: Sequence[str], other_labels: Sequence[str], outcome: str) -> tuple[int, int]:
    """On how many instructions only the first system, and only the second, shows `outcome`.

    Raises:
        DataError: The two lists differ in length.
    """
    if len(base_labels) != len(other_labels):
        raise DataError(
            f"a paired test needs the same instructions in both systems: {len(base_labels)}, {len(other_labels)}"
        )
    pairs = Counter((base == outcome, other == outcome) for base, other in zip(base_labels, other_labels, strict=True))
    return pairs[True, False], pairs[False, True]


def five_numbers(values: Sequence[float]) -> list[float]:
    """[minimum, lower quartile, median, upper quartile, maximum], for box plots.

    Quartiles interpolate linearly between order statistics (Hyndman & Fan 1996, type 7; numpy's default).

    Raises:
        ValueError: No values.
    """
    if len(values) == 0:
        raise ValueError("five_numbers needs at least one value")
    return [float(q) for q in np.quantile(np.asarray(values, dtype=float), (0, 0.25, 0.5, 0.75, 1))]


def calibration_error(probabilities: Sequence[float], outcomes: Sequence[bool], bins: int = 10) -> float | None:
    """Expected calibration error: Σ over equal bins of [0, 1] of (share of cases) · |mean probability − share true|.

    (Naeini et al. 2015; Guo et al. 2017, arXiv:1706.04599.) None without cases.
    """
    if not probabilities:
        return None
    p, y = np.asarray(probabilities, dtype=float), np.asarray(outcomes, dtype=float)
    which = np.minimum((p * bins).astype(int), bins - 1)
    gaps = [(which == b).mean() * abs(p[which == b].mean() - y[which == b].mean()) for b in set(which.tolist())]
    return float(sum(gaps))


def histogram(values: Sequence[float], bins: int = 10) -> list[int]:
    """Counts in equal bins of [0, 1]."""
    return [int(count) for count in np.histogram(np.asarray(values, dtype=float), bins=bins, range=(0, 1))[0]]


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names of the points that no other one beats: none is as low on both axes and lower on one. By the first axis."""
    front = [
        name
        for name, (x, y) in points.items()
        if not any((a <= x and b <= y) and (a < x or b < y) for a, b in points.values())
    ]
    return sorted(front, key=lambda name: points[name])
