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
from mogu.errors import TrainingError
from mogu.recipe import BalanceRecipe
from mogu.respond import respond
from mogu.train import selection
from mogu.train.selection import (
    Balance,
    Checkpoint,
    Respondent,
    RouterCheckpoint,
    best_balance,
    best_checkpoint,
    best_routers,
    check_responder,
    check_routers,
    choose_shift,
    held_out,
    responder_rows,
    separation,
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


# routers


def checkpoint(
    pairs: int, malicious: float = 0.5, auroc: float | None = 0.9, kl: float | None = 0.1, **more: float
) -> Any:
    rates = {"benign_refused": 0.0, "borderline_refused": 0.0, "degenerate": 0.0, **more}
    return RouterCheckpoint(pairs, malicious, auroc=auroc, kl=kl, **rates)


@pytest.mark.parametrize(
    ("checks", "best"),
    [
        ([checkpoint(0, 0.5), checkpoint(8, 0.9), checkpoint(16, 0.8)], 1),
        ([checkpoint(0, 0.9, borderline_refused=0.5), checkpoint(8, 0.6)], 1),
        ([checkpoint(0, 0.9, degenerate=0.5), checkpoint(8, 0.6)], 1),
        ([checkpoint(0, 0.9, benign_refused=0.5), checkpoint(8, 0.6)], 1),
        ([checkpoint(0, auroc=0.8), checkpoint(8, auroc=0.9)], 1),
        ([checkpoint(0, kl=0.3), checkpoint(8, kl=0.2), checkpoint(16, kl=0.2)], 1),
        ([checkpoint(0, auroc=None, kl=None), checkpoint(8, auroc=None, kl=None)], 0),
    ],
)
def test_the_best_routers_refuse_most_of_what_they_should_less_what_they_should_not(checks: Any, best: int) -> None:
    assert best_routers(checks) is checks[best]


def test_routers_are_checked_by_answers_separation_and_drift() -> None:
    model = tiny.adapted(small.base())
    set_stage(model, "routed")
    asks = Respondent(model, small.tokenizer(), None, 4)
    found = check_routers(asks, ROWS, 40, lambda: 0.25)  # type: ignore[arg-type]
    groups = validation_groups(ROWS, 24)
    everyone = [row for group in groups.values() for row in group]
    labels = dict(zip((row.id for row in everyone), asks.labels(everyone, selection.RESPONDER_TOKENS), strict=True))
    assert found.malicious_refused == sum(labels[r.id] == "refusal" for r in groups["malicious"]) / 3
    assert (found.pairs, found.kl) == (40, 0.25)
    weights, _ = asks.weights(everyone)
    means = weights.mean(dim=0).tolist()
    wins = [float(bad > good) + 0.5 * (bad == good) for bad in means[:3] for good in means[3:]]
    assert found.auroc == pytest.approx(sum(wins) / len(wins))


def in_categories(rows: Any) -> list[Any]:
    names = {row.id: "fire" if number % 2 else "water" for number, row in enumerate(rows)}
    return [dataclasses.replace(row, category=names[row.id]) for row in rows]


def test_a_share_of_the_categories_is_held_out_with_its_twins() -> None:
    rows = in_categories(ROWS)
    out = held_out(rows, 0.5, 0)
    malicious = {row.id: row.category for row in rows if row.label == "malicious"}
    (category,) = {malicious[name] for name in out if name in malicious}
    assert {name for name, one in malicious.items() if one == category} == out & malicious.keys()
    assert out - malicious.keys() == {row.id for row in rows if row.borderline and malicious[row.twin] == category}
    assert {held_out(rows, 0.5, seed) for seed in range(8)} != {out}
    assert held_out(rows, 0.99, 0) != set(malicious)  # something is left to learn from
    assert held_out(rows, 0.0, 0) == frozenset()


def test_one_category_cannot_be_held_out() -> None:
    with pytest.raises(TrainingError, match="two categories"):
        held_out([dataclasses.replace(row, category="fire") for row in ROWS], 0.2, 0)


def test_separation_can_be_that_of_new_categories_alone() -> None:
    model = tiny.adapted(small.base())
    set_stage(model, "routed")
    asks = Respondent(model, small.tokenizer(), None, 4)
    rows = [row for row in ROWS if row.split == "validation"]
    new = frozenset({next(row.id for row in rows if row.label == "malicious")})
    chosen = [row for row in rows if row.id in new or (row.label == "benign" and not row.borderline)]
    means = dict(zip((row.id for row in chosen), asks.weights(chosen)[0].mean(dim=0).tolist(), strict=True))
    (bad,) = (means[row.id] for row in chosen if row.id in new)
    others = [means[row.id] for row in chosen if row.id not in new]
    assert separation(asks, ROWS, new) == pytest.approx(sum(bad > other for other in others) / len(others))
