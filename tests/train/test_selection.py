"""Choosing by validation: which checkpoint, and which shift."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest
import small
import tiny
import torch

from mogu.adapter.model import active_config, set_shift, set_stage
from mogu.recipe import BalanceRecipe
from mogu.respond import respond
from mogu.train import selection
from mogu.train.selection import (
    Balance,
    Checkpoint,
    Respondent,
    best_balance,
    best_checkpoint,
    check_responder,
    choose_shift,
    responder_rows,
    validation_groups,
)

ROWS = small.rows()
HELP, REFUSAL, STAMMER = (
    "Sure, here is how to paint a car:",
    "I can't help with that.",
    "car car car car car car car car car",
)


def ask(answer: Any) -> Respondent:
    return Respondent(small.Canned(answer), small.tokenizer(), None, 4)


# checkpoints


def test_the_first_good_checkpoint_is_best() -> None:
    checks = [Checkpoint(80, 0.9, 0.0), Checkpoint(160, 0.95, 0.05), Checkpoint(240, 1.0, 0.0)]
    assert [check.good for check in checks] == [False, True, True]
    assert best_checkpoint(checks) is checks[1]


@pytest.mark.parametrize(("on_target", "degenerate"), [(0.94, 0.0), (1.0, 0.06), (0.9, 0.1)])
def test_off_target_or_broken_is_not_good(on_target: float, degenerate: float) -> None:
    assert not Checkpoint(80, on_target, degenerate).good


def test_without_a_good_one_most_on_target_less_broken_wins_and_of_equals_the_later() -> None:
    checks = [Checkpoint(80, 0.5, 0.0), Checkpoint(160, 0.9, 0.4), Checkpoint(240, 0.6, 0.0), Checkpoint(320, 0.6, 0.0)]
    assert best_checkpoint(checks) is checks[3]
    assert best_checkpoint(checks[:2]) is checks[1]


@pytest.mark.parametrize(
    ("stage", "answer", "on_target", "degenerate"),
    [
        ("glad", HELP, 1.0, 0.0),
        ("glad", REFUSAL, 0.0, 0.0),
        ("glad", STAMMER, 0.0, 1.0),
        ("unwill", REFUSAL, 1.0, 0.0),
        ("unwill", HELP, 0.0, 0.0),
        ("unwill", STAMMER, 0.0, 1.0),
    ],
)
def test_a_responder_is_on_target_when_it_does_what_it_is_for(
    stage: Any, answer: str, on_target: float, degenerate: float
) -> None:
    check = check_responder(ask(lambda _: answer), stage, responder_rows(ROWS), 80)
    assert check == Checkpoint(80, on_target, degenerate)


def test_shares_are_counted_over_both_labels() -> None:
    rows = responder_rows(ROWS)
    assert [row.label for row in rows] == ["malicious"] * 3 + ["benign"] * 3
    assert {row.split for row in rows} == {"validation"}
    assert not any(row.borderline for row in rows)
    check = check_responder(ask(lambda text: REFUSAL if "steal" in text else HELP), "unwill", rows, 8)
    assert check.on_target == 0.5


def test_as_many_rows_as_asked_for() -> None:
    assert len(responder_rows(ROWS, 2)) == 4
    assert {kind: len(group) for kind, group in validation_groups(ROWS, 2).items()} == {
        "malicious": 2,
        "benign": 2,
        "borderline": 2,
    }
    assert all(row.borderline for row in validation_groups(ROWS, 9)["borderline"])
    assert not any(row.borderline for row in validation_groups(ROWS, 9)["benign"])


def test_answers_are_given_in_evaluation_mode_and_training_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.adapted(small.base())
    set_stage(model, "glad")
    model.train()
    seen = []

    def response_ids(model: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(model.training)
        return enumerate(torch.tensor([[5, 6]] * 6))

    monkeypatch.setattr(selection, "response_ids", response_ids)
    Respondent(model, small.tokenizer(), None, 4).labels(responder_rows(ROWS), 4)
    assert seen == [False]
    assert model.training


def test_a_random_responder_is_asked_in_its_own_stage() -> None:
    model = tiny.adapted(small.base(), strength=2.0)
    answers = {}
    for stage in ("glad", "unwill"):
        set_stage(model, stage)  # type: ignore[arg-type]
        answers[stage] = respond(model, small.tokenizer(), [row.instruction for row in ROWS[:3]], max_new_tokens=8)
    assert answers["glad"] != answers["unwill"]


# the balance


def trial(shift: float, malicious: float, benign: float, borderline: float = 0.0, degenerate: float = 0.0) -> Balance:
    return Balance(shift, malicious, benign, borderline, degenerate)


LIMITS = BalanceRecipe(benign_refused=0.03, borderline_refused=0.12)


def test_within_the_limits_the_greatest_net_benefit_wins() -> None:
    trials = [trial(-2, 0.5, 0.0), trial(-1, 0.9, 0.03, 0.12), trial(0, 0.97, 0.04, 0.1), trial(1, 1.0, 0.0, 0.13)]
    assert best_balance(trials, LIMITS).shift == -1
    assert best_balance(trials, BalanceRecipe(benign_refused=0.04, borderline_refused=0.12)).shift == 0
    assert best_balance(trials, BalanceRecipe(benign_refused=0.04, borderline_refused=0.13)).shift == 1


def test_one_more_malicious_prompt_is_not_worth_many_harmless_ones() -> None:
    trials = [trial(-1, 0.90, 0.0, 0.0), trial(0, 0.94, 0.02, 0.08)]
    assert best_balance(trials, LIMITS).shift == -1
    assert best_balance([trial(-1, 0.90, 0.0, 0.0), trial(0, 1.0, 0.02, 0.07)], LIMITS).shift == 0
    assert best_balance([trial(-1, 0.90, 0.0), trial(0, 0.96, 0.0, degenerate=0.07)], LIMITS).shift == -1


def test_the_limits_come_on_top_of_what_the_mildest_trial_refuses() -> None:
    trials = [trial(-2, 0.5, 0.2, 0.3), trial(-1, 0.9, 0.22, 0.4), trial(0, 1.0, 0.3, 0.4)]
    assert best_balance(trials, LIMITS).shift == -1


def test_of_equals_the_one_that_refuses_less_then_the_smaller_shift_wins() -> None:
    assert best_balance([trial(-1, 0.9, 0.0, 0.02), trial(0, 0.92, 0.02, 0.02)], LIMITS).shift == -1
    assert best_balance([trial(-1, 1.0, 0.0), trial(0.5, 1.0, 0.0)], LIMITS).shift == 0.5
    assert best_balance([trial(0.5, 1.0, 0.0), trial(-1, 1.0, 0.0)], LIMITS).shift == 0.5


def test_if_none_is_within_the_limits_the_greatest_benefit_wins() -> None:
    trials = [trial(-1, 0.5, 0.0, 0.3), trial(0, 0.8, 0.2, 0.1), trial(1, 0.9, 0.8, 0.0)]
    assert best_balance(trials, BalanceRecipe(benign_refused=0.0, borderline_refused=0.0)).shift == 0


class Shifted(small.Canned):
    """Refuses a prompt when shift + its alarm is above zero: malicious 1.5, borderline 0.5, benign -0.5."""

    def __init__(self) -> None:
        super().__init__(self._answer)
        self.model = tiny.adapted(small.base())
        self.tried: list[float] = []

    def __getattr__(self, name: str) -> Any:  # peft_config, active_adapter: what set_shift needs
        return getattr(self.__dict__["model"], name)

    def named_modules(self) -> Any:
        return self.model.named_modules()

    def _answer(self, text: str) -> str:
        shift = active_config(self.model).shift
        if not self.tried or self.tried[-1] != shift:
            self.tried.append(shift)
        alarm = 1.5 if "steal" in text else 0.5 if "paint" in text else -0.5
        return REFUSAL if shift + alarm > 0 else HELP


def test_the_best_shift_is_set_and_all_trials_are_returned_in_order() -> None:
    model = Shifted()
    recipe = BalanceRecipe(shifts=(1.0, 0.0, -1.0, -2.0), prompts=3, new_tokens=8)
    noted: list[float] = []
    trials = choose_shift(
        Respondent(model, small.tokenizer(), None, 4), ROWS, recipe, on_trial=lambda t: noted.append(t.shift)
    )
    assert [(t.shift, t.malicious_refused, t.benign_refused, t.borderline_refused) for t in trials] == [
        (-2.0, 0.0, 0.0, 0.0),
        (-1.0, 1.0, 0.0, 0.0),
        (0.0, 1.0, 0.0, 1.0),
        (1.0, 1.0, 1.0, 1.0),
    ]
    assert [t.shift for t in trials if t.chosen] == [-1.0]
    assert active_config(model.model).shift == -1.0
    assert noted == model.tried == [1.0, 0.0, -1.0, -2.0]
    assert {text for batch in model.asked for text in batch} == {
        row.instruction for group in validation_groups(ROWS, 3).values() for row in group
    }


def test_an_answer_whose_routed_head_was_seen_before_is_not_generated_again() -> None:
    """Each of the eight prompts has two heads over the four shifts; what follows a head is the plain base's."""
    model = Shifted()
    recipe = BalanceRecipe(shifts=(1.0, 0.0, -1.0, -2.0), prompts=3, new_tokens=8)
    choose_shift(Respondent(model, small.tokenizer(), None, 4), ROWS, recipe)
    asked = Counter()
    for batch, options in zip(model.asked, model.options, strict=True):
        asked[options["max_new_tokens"]] += len(batch)
    assert asked == {5: 3 * 8, 8: 2 * 8}  # m = 5; the first time no head is known


@pytest.mark.parametrize("routed_tokens", [0, 1, 20])
def test_any_number_of_routed_tokens_will_do(routed_tokens: int) -> None:
    model = tiny.adapted(small.base(), routed_tokens=routed_tokens)
    recipe = BalanceRecipe(shifts=(-2.0, 2.0), prompts=2, new_tokens=6)
    trials = choose_shift(Respondent(model, small.tokenizer(), None, 4), ROWS, recipe)
    assert [t.shift for t in trials] == [-2.0, 2.0]
    for found in trials:
        set_shift(model, found.shift)
        labels = Respondent(model, small.tokenizer(), None, 4).labels(validation_groups(ROWS, 2)["malicious"], 6)
        assert found.malicious_refused == labels.count("refusal") / 2


def test_trials_of_an_interrupted_search_are_not_repeated() -> None:
    model = Shifted()
    recipe = BalanceRecipe(shifts=(1.0, 0.0, -1.0), prompts=2, new_tokens=8)
    before = [trial(-1.0, 1.0, 0.0), trial(1.0, 1.0, 1.0, 1.0)]
    trials = choose_shift(Respondent(model, small.tokenizer(), None, 4), ROWS, recipe, before)
    assert model.tried == [0.0]
    assert [t.shift for t in trials] == [-1.0, 0.0, 1.0]
    assert [t.shift for t in trials if t.chosen] == [-1.0]
    assert active_config(model.model).shift == -1.0


def test_without_borderline_rows_their_rate_is_zero() -> None:
    model = Shifted()
    rows = [dataclasses.replace(row, twin="") for row in ROWS if not row.borderline]
    (only,) = choose_shift(Respondent(model, small.tokenizer(), None, 4), rows, BalanceRecipe(shifts=(3.0,)))
    assert (only.malicious_refused, only.benign_refused, only.borderline_refused) == (1.0, 1.0, 0.0)
