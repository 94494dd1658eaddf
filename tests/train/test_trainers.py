"""The trainers against the same steps taken by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import oracle
import pytest
import small
import tiny
import torch
from torch.testing import assert_close

from mogu.adapter.model import mogu_layers, plain_base, recorded_weights, set_stage
from mogu.data.rows import Row
from mogu.errors import TrainingError
from mogu.recipe import BackboneRecipe, ResponderRecipe, RouterRecipe
from mogu.train.batches import Encoder, PairCollator, RouterCollator
from mogu.train.losses import IGNORED
from mogu.train.packing import PackedRouterCollator
from mogu.train.trainers import (
    LOG_RATIO_CAP,
    LOG_RATIO_FLOOR,
    JsonlLog,
    ResponderTrainer,
    RouterTrainer,
    RowDataset,
    training_arguments,
)

ROWS = [row for row in small.rows() if row.split == "train"]
RATE = 3e-3


class Recording:
    """A collator that remembers its batches."""

    def __init__(self, collate: Any) -> None:
        self.collate = collate
        self.batches: list[list[Row]] = []

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        self.batches.append(list(rows))
        return self.collate(rows)


def encoder() -> Encoder:
    return Encoder(small.tokenizer(), None, 12)


def adapted(stage: str, **settings: Any) -> Any:
    model = tiny.adapted(small.base(), strength=0.3, **settings)
    set_stage(model, stage)  # type: ignore[arg-type]
    return model


def trainer(
    kind: type, model: Any, recipe: Any, folder: Path, rows: Sequence[Row], collate: Any, **arguments: Any
) -> Any:
    settings: dict[str, Any] = {
        "learning_rate": RATE,
        "batch_size": recipe.batch_size,
        "accumulation": recipe.accumulation,
        "epochs": 2,
        "max_steps": -1,
        "save_steps": 100,
        "seed": 0,
        "quiet": True,
        "use_cpu": True,
        **arguments,
    }
    return kind(
        model=model,
        recipe=recipe,
        args=training_arguments(folder, **settings),
        train_dataset=RowDataset(rows),
        data_collator=collate,
    )


def own_loss(model: Any, row: Row, answer: str, closed: bool) -> torch.Tensor:
    """Cross-entropy of one answer alone, without padding, over all logits."""
    prompt, response = encoder()(row.instruction, answer, closed=closed)
    ids = torch.tensor([prompt + response])
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
    return oracle.cross_entropy(logits, ids[0], len(prompt), ids.shape[1])


def pair_losses(model: Any, row: Row, stage: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Wanted and unwanted."""
    refusal, glad = own_loss(model, row, row.unwill, True), own_loss(model, row, row.glad, False)
    return (refusal, glad) if stage == "unwill" else (glad, refusal)


def trained(model: Any) -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def steps_by_hand(model: Any, groups: Sequence[Sequence[Sequence[Row]]], stage: str) -> None:
    """One AdamW step per group of batches, on the mean over its batches of the mean ratio of their pairs."""
    parameters = list(trained(model).values())
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    for group in groups:
        optimizer.zero_grad()
        means = []
        for batch in group:
            ratios = [wanted / unwanted for wanted, unwanted in (pair_losses(model, row, stage) for row in batch)]
            means.append(torch.stack(ratios).mean())
        torch.stack(means).mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)  # Trainer's default
        optimizer.step()


# responders


@pytest.mark.parametrize("stage", ["glad", "unwill"])
@pytest.mark.parametrize(("batch_size", "accumulation", "pairs"), [(2, 3, 6), (1, 4, 6), (2, 2, 7)])
def test_optimizer_steps_are_those_of_adamw_on_the_mean_ratio(
    tmp_path: Path, stage: str, batch_size: int, accumulation: int, pairs: int
) -> None:
    """Also where the last step of an epoch has fewer batches than the others, or its last batch fewer pairs."""
    ours, by_hand = adapted(stage), adapted(stage)
    collate = Recording(PairCollator(encoder(), wants_refusal=stage == "unwill"))
    recipe = ResponderRecipe(batch_size=batch_size, accumulation=accumulation)
    made = trainer(ResponderTrainer, ours, recipe, tmp_path, ROWS[:pairs], collate)
    made.train()
    batches_per_epoch = -(-pairs // batch_size)
    groups = []
    for epoch in range(2):
        batches = collate.batches[epoch * batches_per_epoch :][:batches_per_epoch]
        assert sorted(row.id for batch in batches for row in batch) == sorted(row.id for row in ROWS[:pairs])
        groups += [batches[at : at + accumulation] for at in range(0, len(batches), accumulation)]
    assert made.state.global_step == len(groups)
    before = {name: p.detach().clone() for name, p in trained(by_hand).items()}
    steps_by_hand(by_hand, groups, stage)
    result = trained(ours)
    assert set(result) == set(before)
    assert all(stage in name for name in result)
    for name, parameter in trained(by_hand).items():
        assert not torch.equal(parameter, before[name])
        assert_close(result[name], parameter, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("loss", ["ratio", "log_ratio"])
def test_the_loss_of_a_padded_batch_is_the_mean_over_its_pairs_alone(tmp_path: Path, loss: str) -> None:
    model = adapted("unwill")
    collate = PairCollator(encoder(), wants_refusal=True)
    made = trainer(ResponderTrainer, model, ResponderRecipe(loss=loss), tmp_path, ROWS, collate)
    expected = []
    for row in ROWS[:5]:
        wanted, unwanted = pair_losses(model, row, "unwill")
        if loss == "ratio":
            expected.append(wanted / unwanted)
        else:
            bounded = unwanted.clamp(LOG_RATIO_FLOOR, LOG_RATIO_CAP)
            expected.append(wanted.clamp(min=LOG_RATIO_FLOOR).log() - bounded.log())
    assert_close(made.compute_loss(model, collate(ROWS[:5])), torch.stack(expected).mean(), atol=1e-5, rtol=1e-4)


def test_only_the_active_responder_changes(tmp_path: Path) -> None:
    model = adapted("glad")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    collate = PairCollator(encoder(), wants_refusal=False)
    trainer(ResponderTrainer, model, ResponderRecipe(batch_size=2, accumulation=1), tmp_path, ROWS[:4], collate).train()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if "mogu_glad_A" in name or "mogu_glad_B" in name}


# routers


@pytest.mark.parametrize("collator", [RouterCollator, PackedRouterCollator])
@pytest.mark.parametrize("penalty", ["squared", "l1"])
@pytest.mark.parametrize("router", ["folded", "factored"])
def test_the_router_loss_is_cross_entropy_plus_penalty_without_padding(
    tmp_path: Path, penalty: str, router: str, collator: type
) -> None:
    model = adapted("routed", router=router)
    rows = ROWS[:5]
    assert {row.label for row in rows} == {"benign", "malicious"}
    collate = collator(encoder())
    recipe = RouterRecipe(penalty=penalty, penalty_weight=3.0)
    made = trainer(RouterTrainer, model, recipe, tmp_path, rows, collate)
    expected = []
    for row in rows:
        bad = float(row.label == "malicious")
        with recorded_weights(model) as weights:
            cross_entropy = own_loss(model, row, row.wanted, bool(bad))
            unwill, glad = weights()
        power = 2 if penalty == "squared" else 1
        terms = [
            abs(u - bad) ** power + abs(g - (1 - bad)) ** power
            for u, g in zip(unwill.flatten().tolist(), glad.flatten().tolist(), strict=True)
        ]
        expected.append(cross_entropy.item() + 3.0 * sum(terms) / len(terms))
    loss = made.compute_loss(model, collate(rows)).item()
    assert loss == pytest.approx(sum(expected) / len(expected), rel=1e-4)


def test_only_the_routers_change_and_they_learn(tmp_path: Path) -> None:
    model = adapted("routed", router="folded")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    collate = RouterCollator(encoder())
    recipe = RouterRecipe(batch_size=4, accumulation=1)
    made = trainer(RouterTrainer, model, recipe, tmp_path, ROWS[:8], collate, learning_rate=0.03, epochs=5)
    first = made.compute_loss(model, collate(ROWS[:8])).item()
    made.train()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if "_router" in name}
    assert made.compute_loss(model.eval(), collate(ROWS[:8])).item() < 0.9 * first


# both


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_training(tmp_path: Path, value: float) -> None:
    model = adapted("glad")
    with torch.no_grad():
        mogu_layers(model)[-1][1].mogu_glad_B["default"].fill_(value)
    collate = PairCollator(encoder(), wants_refusal=False)
    made = trainer(ResponderTrainer, model, ResponderRecipe(), tmp_path, ROWS, collate)
    with pytest.raises(TrainingError, match="the loss is nan at step 0; lower the learning rate") as raised:
        made.train()
    assert "\n" not in str(raised.value)


def test_a_checkpoint_holds_the_adapter_only_and_the_last_step_always_has_one(tmp_path: Path) -> None:
    model = adapted("glad")
    collate = PairCollator(encoder(), wants_refusal=False)
    recipe = ResponderRecipe(batch_size=1, accumulation=1)
    trainer(ResponderTrainer, model, recipe, tmp_path, ROWS[:5], collate, max_steps=5, save_steps=2, epochs=1).train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [f"checkpoint-{n}" for n in (2, 4, 5)]
    assert (tmp_path / "checkpoint-5" / "adapter_model.safetensors").is_file()
    assert not list(tmp_path.rglob("model.safetensors"))


def test_the_rate_is_constant_and_what_is_logged_lands_in_the_file(tmp_path: Path) -> None:
    model = adapted("glad")
    collate = PairCollator(encoder(), wants_refusal=False)
    recipe = ResponderRecipe(batch_size=2, accumulation=1)
    made = trainer(ResponderTrainer, model, recipe, tmp_path, ROWS[:10], collate)
    made.add_callback(JsonlLog(tmp_path / "log.jsonl", "glad"))
    made.train()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "learning_rate" in line]
    assert [line["step"] for line in steps] == [1, 5, 10]
    assert {line["stage"] for line in lines} == {"glad"}
    assert {line["learning_rate"] for line in steps} == {RATE}
    assert all(isinstance(line["loss"], float) for line in steps)


def test_prompts_count_in_no_loss() -> None:
    batch = PairCollator(encoder(), wants_refusal=True)(ROWS[:2])
    prompt, _ = encoder().wanted(ROWS[0])
    assert batch["labels"][0].eq(IGNORED).sum() >= len(prompt)


# the backbone, trained with the routers

BACKBONE = {"router": "folded", "layers_to_transform": [1, 2], "backbone_modules": ["q", "o", "down"]}


def loss_by_hand(model: Any, rows: Sequence[Row], recipe: RouterRecipe, beta: float) -> torch.Tensor:
    """Each row alone, without padding."""
    terms = []
    for row in rows:
        prompt, answer = encoder().wanted(row)
        ids = torch.tensor([prompt + answer])
        bad = float(row.label == "malicious")
        with recorded_weights(model) as weights:
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
            unwill, glad = weights()
        term = oracle.cross_entropy(logits, ids[0], len(prompt), ids.shape[1])
        term = term + recipe.penalty_weight * ((unwill - bad).square() + (glad - 1 + bad).square()).mean()
        if not bad:
            with torch.no_grad(), plain_base(model):
                p = torch.softmax(model(input_ids=ids).logits[0], -1)
            kl = (p * (p.log() - torch.log_softmax(logits, -1))).sum(-1)
            term = term + beta * kl[len(prompt) - 1 : -1].mean()
        terms.append(term)
    return torch.stack(terms).mean()


@pytest.mark.parametrize("collator", [RouterCollator, PackedRouterCollator])
@pytest.mark.parametrize("beta", [0.0, 0.7])
def test_the_joint_loss_anchors_benign_answers_to_the_base(tmp_path: Path, beta: float, collator: type) -> None:
    model = adapted("routed", **BACKBONE)
    recipe = RouterRecipe(batch_size=4, accumulation=1)
    collate = collator(encoder())
    made = trainer(RouterTrainer, model, recipe, tmp_path, ROWS, collate)
    made.backbone = BackboneRecipe(modules=("q",), anchor_weight=beta)
    rows = [row for label in ("malicious", "benign") for row in [r for r in ROWS if r.label == label][:2]]
    loss, expected = made.compute_loss(model, collate(rows)), loss_by_hand(model, rows, recipe, beta)
    assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    parameters = list(trained(model).values())
    own, theirs = (torch.autograd.grad(value, parameters) for value in (loss, expected))
    for one, other in zip(own, theirs, strict=True):
        assert_close(one, other, rtol=1e-3, atol=1e-5)
    only_bad = made.compute_loss(model, collate(rows[:2]))
    assert_close(only_bad, loss_by_hand(model, rows[:2], recipe, 0.0), rtol=1e-4, atol=1e-5)


def test_the_backbone_learns_at_its_own_rate(tmp_path: Path) -> None:
    model = adapted("routed", **BACKBONE)
    recipe = RouterRecipe(batch_size=4, accumulation=1)
    made = trainer(RouterTrainer, model, recipe, tmp_path, ROWS, RouterCollator(encoder()))
    made.backbone = BackboneRecipe(modules=("q",), learning_rate=5e-2)
    routers, backbone = made.create_optimizer().param_groups
    assert (routers["lr"], backbone["lr"]) == (RATE, 5e-2)
    assert len(routers["params"]) == 2 * 2 * 2
    assert len(backbone["params"]) == 2 * 3 * 2
