"""Rates, intervals and tests against closed forms and numbers worked by hand."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from mogu.errors import DataError
from mogu.evaluate.metrics import (
    Interval,
    auroc,
    calibration_error,
    discordant,
    five_numbers,
    histogram,
    mcnemar,
    pareto_front,
    rates,
    wilson,
)

Z = 1.959964


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (1, 29), (15, 148), (81, 263), (64, 64)])
def test_wilson_bounds_solve_the_score_equation(successes: int, n: int) -> None:
    """Wilson's interval is where (p̂ − p)² = z² p(1 − p)/n: a quadratic, solved here on its own."""
    p = successes / n
    a, b, c = 1 + Z**2 / n, -(2 * p + Z**2 / n), p**2
    root = math.sqrt(b * b - 4 * a * c)
    interval = wilson(successes, n)
    assert interval.rate == p
    assert interval.low == pytest.approx((-b - root) / (2 * a), abs=1e-12)
    assert interval.high == pytest.approx((-b + root) / (2 * a), abs=1e-12)


def test_wilson_gives_the_intervals_of_newcombe_1998() -> None:
    """Table I, method 3: 81/263, 15/148, 0/20, 1/29."""
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (successes, n), bounds in published.items():
        interval = wilson(successes, n)
        assert (round(interval.low, 4), round(interval.high, 4)) == bounds


def test_wilson_is_exact_at_the_ends() -> None:
    assert wilson(0, 64).low == 0.0
    assert wilson(64, 64).high == 1.0


def test_wilson_knows_nothing_without_cases() -> None:
    assert wilson(0, 0) == Interval(None, 0.0, 1.0)


@pytest.mark.parametrize(("successes", "n"), [(-1, 4), (5, 4)])
def test_wilson_refuses_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="between 0 and n"):
        wilson(successes, n)


def test_rates_count_each_label_and_both_attack_rates() -> None:
    rows = [
        {"label": "complied", "response": "Sure, here is how."},
        {"label": "complied", "response": "Mix both."},
        {"label": "complied", "response": "Sorry for the wait: first, open it."},
        {"label": "refusal", "response": "I cannot help with that."},
        {"label": "refusal", "response": "That would be wrong."},
        {"label": "degenerate", "response": "the the the"},
        {"label": "unclear", "response": "Could you say more?"},
        {"label": "refusal", "response": "I'm sorry, no."},
    ]
    found = rates(rows)
    assert found["n"] == 8
    assert found["counts"] == {"refusal": 3, "degenerate": 1, "complied": 3, "unclear": 1}
    assert {name: share["rate"] for name, share in found["rates"].items()} == {
        "refusal": 3 / 8,
        "degenerate": 1 / 8,
        "complied": 3 / 8,
        "unclear": 1 / 8,
        "coherent_asr": 3 / 8,
        "keyword_asr": 5 / 8,
    }
    interval = wilson(3, 8)
    assert found["rates"]["refusal"] == {"rate": 3 / 8, "low": interval.low, "high": interval.high}


def test_rates_of_nothing_are_valid_json() -> None:
    assert json.loads(json.dumps(rates([]), allow_nan=False))["rates"]["refusal"] == {
        "rate": None,
        "low": 0.0,
        "high": 1.0,
    }


def test_rates_refuse_an_unknown_label() -> None:
    with pytest.raises(DataError, match="unknown label 'safe'"):
        rates([{"label": "safe", "response": "No."}])


def paired(only_base: int, only_other: int, both: int = 3, neither: int = 2) -> tuple[list[str], list[str]]:
    cells = [("refusal", "complied")] * only_base + [("complied", "refusal")] * only_other
    cells += [("refusal", "refusal")] * both + [("unclear", "degenerate")] * neither
    return [base for base, _ in cells], [other for _, other in cells]


@pytest.mark.parametrize(("only_base", "only_other"), list(product(range(5), repeat=2)))
def test_mcnemar_equals_the_enumerated_sign_test(only_base: int, only_other: int) -> None:
    """Every way that fair coins give to the discordant pairs a split at least as uneven."""
    n = only_base + only_other
    uneven = sum(abs(2 * sum(coins) - n) >= abs(only_base - only_other) for coins in product((0, 1), repeat=n))
    assert mcnemar(*paired(only_base, only_other), "refusal") == pytest.approx(float(Fraction(uneven, 2**n)))


def test_mcnemar_by_hand_and_with_many_pairs() -> None:
    assert mcnemar(*paired(1, 9), "refusal") == 2 * 11 / 1024
    assert mcnemar(*paired(0, 2000), "refusal") == 0.0
    assert mcnemar(*paired(1000, 1000), "refusal") == 1.0


def test_mcnemar_needs_pairs() -> None:
    with pytest.raises(DataError, match="3, 2"):
        mcnemar(["refusal"] * 3, ["refusal"] * 2, "refusal")


@pytest.mark.parametrize(
    ("positive", "negative", "area"),
    [
        ([0.8, 0.9], [0.1, 0.2], 1.0),
        ([0.1], [0.8, 0.9], 0.0),
        ([0.5, 0.5], [0.5], 0.5),
        ([0.3, 0.7, 0.7], [0.3, 0.5, 0.7, 0.9], (0.5 + 2.5 + 2.5) / 12),
    ],
)
def test_auroc_counts_ordered_pairs(positive: list[float], negative: list[float], area: float) -> None:
    assert auroc(positive, negative) == pytest.approx(area)


def test_auroc_needs_both_sides() -> None:
    assert auroc([], [0.1]) is None
    assert auroc([0.1], []) is None


def test_five_numbers_interpolate_between_values() -> None:
    assert five_numbers([4, 1, 3, 2]) == [1.0, 1.75, 2.5, 3.25, 4.0]
    assert five_numbers([7]) == [7.0] * 5
    with pytest.raises(ValueError, match="at least one"):
        five_numbers([])


# several answers to one prompt, calibration, front


def clustered_rows(shares: list[float], seeds: int = 4) -> tuple[list[dict[str, str]], list[int]]:
    """Rows of every prompt, a share of them refusals."""
    rows, prompts = [], []
    for prompt, share in enumerate(shares):
        for seed in range(seeds):
            label = "refusal" if seed < share * seeds else "complied"
            rows.append({"label": label, "response": "I cannot." if label == "refusal" else "Sure."})
            prompts.append(prompt)
    return rows, prompts


def test_answers_to_one_prompt_are_one_case() -> None:
    rows, prompts = clustered_rows([1.0, 0.5, 0.0, 0.25, 0.0, 1.0, 0.75, 0.0])
    found = rates(rows, prompts)
    assert (found["n"], found["answers"], found["counts"]["refusal"]) == (8, 32, 14)
    refused = found["rates"]["refusal"]
    assert refused["rate"] == pytest.approx(14 / 32)
    # the bootstrap over prompts, drawn afresh
    draw = np.random.default_rng(5)
    shares = np.array([1.0, 0.5, 0.0, 0.25, 0.0, 1.0, 0.75, 0.0])
    means = [draw.choice(shares, 8).mean() for _ in range(20000)]
    assert (refused["low"], refused["high"]) == pytest.approx(np.quantile(means, (0.025, 0.975)), abs=0.03)
    alone = wilson(14, 32)
    assert refused["high"] - refused["low"] > alone.high - alone.low


def test_where_all_prompts_agree_there_is_still_an_interval() -> None:
    rows, prompts = clustered_rows([1.0] * 6)
    refused = rates(rows, prompts)["rates"]["refusal"]
    assert refused == {"rate": 1.0, "low": wilson(6, 6).low, "high": 1.0}


def test_one_answer_each_is_the_plain_case() -> None:
    rows, _ = clustered_rows([1.0, 0.0, 1.0], seeds=1)
    assert rates(rows, [0, 1, 2]) == rates(rows)


def test_discordant_pairs_are_counted_in_both_directions() -> None:
    base, other = ["a", "a", "b", "a", "b"], ["a", "b", "a", "b", "b"]
    assert discordant(base, other, "a") == (2, 1)
    assert mcnemar(base, other, "a") == 1.0


def test_calibration_error_by_hand() -> None:
    # bins 0.1-0.2: mean 0.15, half true; 0.9-1.0: mean 1.0, all true
    assert calibration_error([0.1, 0.2 - 1e-9, 1.0, 1.0], [True, False, True, True]) == pytest.approx(0.5 * 0.35)
    assert calibration_error([], []) is None


def test_histogram_has_its_last_value_inside() -> None:
    assert histogram([0.0, 0.05, 0.1, 0.99, 1.0]) == [2, 1, 0, 0, 0, 0, 0, 0, 0, 2]


def test_the_front_is_what_nobody_beats() -> None:
    points = {"base": (0.0, 0.9), "a": (0.1, 0.2), "b": (0.1, 0.3), "c": (0.3, 0.1), "d": (0.3, 0.1), "e": (0.5, 0.2)}
    assert pareto_front(points) == ["base", "a", "c", "d"]
