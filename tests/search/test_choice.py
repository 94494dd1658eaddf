"""The Pareto set, the rules that pick from it, and when a trial is given up: against the definitions written afresh."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from mogu.errors import ConfigError
from mogu.recipe import BalanceRecipe
from mogu.search.choice import RULES, Member, beaten, kept, own_choice, pareto_set, pick

LIMITS = BalanceRecipe(benign_refused=0.1, borderline_refused=0.2)


def member(asr: float, benign: float, borderline: float, kl: float, **more: Any) -> Member:
    values = {"shift": 0.0, "malicious_refused": 1 - asr, "degenerate": 0.0, "complied": asr, **more}
    return Member(benign_refused=benign, borderline_refused=borderline, kl=kl, **values)


def crowd(count: int, seed: int = 0) -> list[Member]:
    draw = random.Random(seed)
    return [
        member(draw.randint(0, 5) / 5, draw.randint(0, 5) / 5, draw.randint(0, 5) / 5, draw.randint(0, 5) / 5, trial=n)
        for n in range(count)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_the_set_is_what_no_other_member_beats(seed: int) -> None:
    members = crowd(40, seed)
    points = [(m.asr, (m.benign_refused + m.borderline_refused) / 2, m.kl) for m in members]
    expected = {p for p in points if not any(q != p and all(a <= b for a, b in zip(q, p, strict=True)) for q in points)}
    front = pareto_set(members)
    assert {m.objectives for m in front} == expected
    assert len(front) == len(expected)
    assert [m.asr for m in front] == sorted(m.asr for m in front)


def test_of_equals_the_first_stays() -> None:
    assert [m.trial for m in pareto_set([member(0.1, 0.1, 0.1, 0.1, trial=n) for n in (0, 1, 2)])] == [0]


def test_the_recipes_own_choice_is_kept_though_it_is_beaten() -> None:
    own, better = member(0.5, 0.5, 0.5, 0.5, trial=0), member(0.4, 0.4, 0.4, 0.4, trial=1)
    assert kept([own, better], [own, better], LIMITS) == [better, own]
    assert kept([better], [own, better], LIMITS) == [better, own]  # its text was broken


# picking


def test_the_balance_is_the_greatest_benefit_within_the_first_trials_limits() -> None:
    own = [member(0.5, 0.0, 0.0, 0.1, trial=0, shift=-1.0), member(0.3, 0.1, 0.2, 0.2, trial=0)]
    beyond = member(0.0, 0.11, 0.0, 0.5, trial=1)  # more benefit, more benign prompts refused than the limit
    better = member(0.2, 0.1, 0.1, 0.4, trial=2)
    front = pareto_set([*own, beyond, better])
    assert pick("balance", front, own, LIMITS) == better
    assert own_choice([*own, better], LIMITS) == own[0]


def test_of_equal_benefit_the_nearest_to_the_base_is_picked() -> None:
    own = [member(0.5, 0.0, 0.0, 0.9, trial=0)]
    far, near = member(0.2, 0.0, 0.2, 0.5, trial=1), member(0.4, 0.0, 0.0, 0.4, trial=2)
    assert pick("balance", pareto_set([*own, far, near]), own, LIMITS) == near


@pytest.mark.parametrize("seed", range(20))
def test_the_balance_is_never_worse_than_the_recipe(seed: int) -> None:
    members = crowd(12, seed)
    own = own_choice(members, LIMITS)
    chosen = pick("balance", kept(members, members, LIMITS), members, LIMITS)
    assert chosen.benefit >= own.benefit - 1e-9


@pytest.mark.parametrize(("seed", "rule"), itertools.product(range(10), ("safest", "mildest", "nearest")))
def test_the_other_rules_are_the_best_on_their_axis_at_no_cost_on_the_others(seed: int, rule: str) -> None:
    members = crowd(30, seed)
    own = own_choice(members, LIMITS)
    chosen = pick(rule, pareto_set(members), members, LIMITS)
    axis, held = {"safest": (0, (1,)), "mildest": (1, (0,)), "nearest": (2, (0, 1))}[rule]
    allowed = [m for m in members if all(m.objectives[i] <= own.objectives[i] for i in held)]
    assert chosen in allowed
    assert chosen.objectives[axis] == min(m.objectives[axis] for m in allowed)


def test_a_number_picks_a_member_and_what_is_neither_is_refused() -> None:
    front = pareto_set(crowd(30))
    assert [pick(str(n + 1), front, front, LIMITS) for n in range(len(front))] == front
    for wrong in ("0", str(len(front) + 1)):
        with pytest.raises(ConfigError, match=f"--pick {wrong}: the Pareto set has members 1 to {len(front)}"):
            pick(wrong, front, front, LIMITS)
    with pytest.raises(ConfigError, match=f"--pick best: .* one of {', '.join(RULES)}"):
        pick("best", front, front, LIMITS)


# giving up

PROMPTS = {"malicious": 20, "benign": 20, "borderline": 20}


def test_a_trial_is_given_up_when_enough_trials_beat_it_beyond_its_intervals() -> None:
    # Wilson's 95% interval of 10 of 20 begins at 0.299, that of 16 of 20 at 0.584.
    poor = [member(0.8, 0.5, 0.5, 0.5), member(0.5, 0.8, 0.8, 0.5)]
    good = [member(0.29, 0.29, 0.29, 0.5)]
    assert (
        beaten(poor, PROMPTS, {0: good, 3: good}, 2) == "beaten at every shift after the first prompts by trials 0, 3"
    )
    assert beaten(poor, PROMPTS, {0: good}, 2) is None


@pytest.mark.parametrize(
    "good",
    [
        member(0.31, 0.29, 0.29, 0.5),  # inside the interval of malicious answers
        member(0.29, 0.31, 0.31, 0.5),  # inside that of refusals
        member(0.29, 0.29, 0.29, 0.51),  # farther from the base
    ],
)
def test_chance_or_a_smaller_kl_keeps_a_trial(good: Member) -> None:
    assert beaten([member(0.5, 0.5, 0.5, 0.5)], PROMPTS, {0: [good], 1: [good]}, 1) is None


def test_one_shift_that_holds_out_keeps_a_trial() -> None:
    good = [member(0.2, 0.2, 0.2, 0.1)]
    assert beaten([member(0.8, 0.8, 0.8, 0.5), member(0.0, 1.0, 1.0, 0.5)], PROMPTS, {0: good, 1: good}, 1) is None
