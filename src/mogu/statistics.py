"""Uncertainty of what is counted: judge and evaluation state their numbers the same way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """An observed share, or another statistic, with its confidence interval."""

    rate: float | None
    """What was observed, for a share in [0, 1]; None where there were no cases."""
    low: float
    high: float


def wilson(successes: int, n: int, z: float = 1.959964) -> Interval:
    """Wilson score interval of a binomial proportion; 95% by default.

    centre = (p + z²/2n) / (1 + z²/n), half width = z / (1 + z²/n) · sqrt(p(1 − p)/n + z²/4n²)
    (Wilson 1927, "Probable inference, the law of succession, and statistical inference", JASA 22). Unlike the normal
    approximation it stays inside [0, 1] and is not empty at 0 of n. Without cases the rate is None within [0, 1].

    Raises:
        ValueError: Not 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie between 0 and n = {n}, not {successes}")
    if n == 0:
        return Interval(None, 0.0, 1.0)
    p = successes / n
    scale = 1 + z * z / n
    centre = (p + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, centre - half)  # exact at the ends, where rounding would leave 1e-17
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(p, low, high)


def bootstrap_mean(values: Sequence[float], *, resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean with its 95% percentile bootstrap interval over values (Efron 1979); None within [-inf, inf] without any."""
    import numpy as np

    if len(values) == 0:
        return Interval(None, -math.inf, math.inf)
    data = np.asarray(values, dtype=float)
    draw = np.random.default_rng(seed)
    means = [data[draw.integers(len(data), size=len(data))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(data.mean()), float(low), float(high))


def auroc(scores_positive: Sequence[float], scores_negative: Sequence[float]) -> float | None:
    """Chance that a positive case scores above a negative one, ties counting half; None if either side is empty.

    Equals U / (n₊ n₋) (Mann & Whitney 1947), the area under the ROC curve (Hanley & McNeil 1982).
    """
    import numpy as np

    positive = np.asarray(scores_positive, dtype=float)
    negative = np.sort(np.asarray(scores_negative, dtype=float))
    if positive.size == 0 or negative.size == 0:
        return None
    below = np.searchsorted(negative, positive, side="left")
    not_above = np.searchsorted(negative, positive, side="right")
    return float((below + not_above).mean() / 2 / negative.size)
