"""The losses: against the authors' numbers, against sums written out, and over real tokens only."""

from __future__ import annotations

import oracle
import pytest
import torch
from peft import PeftModel
from published_reference import NAMES, expected_of, reference_model
from torch.testing import assert_close

from mogu.adapter.model import mogu_layers, recorded_weights, set_stage
from mogu.train.losses import (
    IGNORED,
    divergence,
    log_ratio_loss,
    ratio_loss,
    response_cross_entropy,
    router_penalty,
)

PUBLISHED = {"down": "linear_0.weight", "up_bias": "linear_1.bias", "out": "linear_2.weight"}


@pytest.fixture(scope="module", params=NAMES)
def reference(request: pytest.FixtureRequest) -> tuple[PeftModel, dict[str, torch.Tensor]]:
    return reference_model(request.param), expected_of(request.param)


def loss_on(model: PeftModel, ids: torch.Tensor, prompt_length: int) -> torch.Tensor:
    labels = ids.clone()
    labels[:, :prompt_length] = IGNORED
    return response_cross_entropy(model(input_ids=ids).logits, labels)


# the authors' numbers


@pytest.mark.parametrize("responder", ["glad", "unwill"])
def test_responder_losses_and_gradients_are_those_of_the_authors(reference: tuple, responder: str) -> None:
    model, expected = reference
    model.zero_grad()
    set_stage(model, responder)
    length = int(expected["responder.prompt_length"])
    wanted = loss_on(model, expected["responder.wanted_ids"], length)
    unwanted = loss_on(model, expected["responder.unwanted_ids"], length)
    ratio = ratio_loss(wanted, unwanted)
    ratio.backward()
    assert_close(wanted, expected[f"responder.{responder}.loss_wanted"], atol=1e-4, rtol=0)
    assert_close(unwanted, expected[f"responder.{responder}.loss_unwanted"], atol=1e-4, rtol=0)
    assert_close(ratio[None], expected[f"responder.{responder}.ratio"], atol=1e-4, rtol=0)
    for n, layer in mogu_layers(model):
        for half in "AB":
            gradient = getattr(layer, f"mogu_{responder}_{half}")["default"].grad
            assert_close(gradient, expected[f"responder.{responder}.grad.{n}.lora_{half}"], atol=1e-4, rtol=0)
            assert gradient.abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["benign", "malicious"])
def test_router_loss_and_gradients_are_those_of_the_authors(reference: tuple, kind: str) -> None:
    model, expected = reference
    model.zero_grad()
    set_stage(model, "routed")
    ids = expected["responder.wanted_ids"]
    with recorded_weights(model) as recorded:
        cross_entropy = loss_on(model, ids, int(expected["responder.prompt_length"]))
        unwill, glad = recorded()
    penalty = router_penalty(unwill, glad, torch.tensor([kind == "malicious"]), torch.ones_like(ids))
    loss = cross_entropy + 2 * penalty
    loss.sum().backward()
    assert_close(cross_entropy, expected[f"router.{kind}.cross_entropy"], atol=1e-4, rtol=0)
    assert_close(loss, expected[f"router.{kind}.loss"], atol=1e-4, rtol=0)
    for n, layer in mogu_layers(model):
        for who in ("unwill", "glad"):
            router = getattr(layer, f"mogu_{who}_router")["default"]
            prefix = f"router.{kind}.{{}}.{n}.{who}.{{}}"
            for ours in ("up_bias", "out"):
                theirs = expected[prefix.format("grad", PUBLISHED[ours])]
                assert_close(getattr(router, ours).grad, theirs, atol=1e-4, rtol=0)
            norm = router.down.grad.norm()[None]
            assert_close(norm, expected[prefix.format("gradnorm", "linear_0")], atol=1e-4, rtol=1e-4)
            assert norm > 1e-4


# cross-entropy


def batch(pad_right: int = 0, pad_left: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of two rows: 3 prompt and 4 response tokens, and 2 and 5, with padding around."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 13, (2, 7), generator=generator)
    logits = torch.randn(2, 7, 13, generator=generator)
    labels = ids.clone()
    labels[0, :3] = labels[1, :2] = IGNORED
    labels = torch.nn.functional.pad(labels, (pad_left, pad_right), value=IGNORED)
    return torch.nn.functional.pad(logits, (0, 0, pad_left, pad_right), value=3.0), labels


@pytest.mark.parametrize("padding", [{}, {"pad_right": 4}, {"pad_left": 3}, {"pad_left": 1, "pad_right": 2}], ids=str)
def test_cross_entropy_is_the_mean_over_the_response_only(padding: dict) -> None:
    logits, ids = batch()
    expected = [oracle.cross_entropy(logits[row], ids[row], first, 7) for row, first in ((0, 3), (1, 2))]
    assert_close(response_cross_entropy(*batch(**padding)), torch.stack(expected))


def test_cross_entropy_of_half_precision_logits_is_computed_in_float32() -> None:
    logits, labels = batch()
    low = logits.to(torch.bfloat16)
    result = response_cross_entropy(low, labels)
    assert result.dtype == torch.float32
    assert torch.equal(result, response_cross_entropy(low.float(), labels))


def test_a_row_without_a_response_costs_nothing() -> None:
    logits, labels = batch()
    labels[1] = IGNORED
    assert response_cross_entropy(logits, labels)[1] == 0


# ratios


def test_the_ratio_is_taken_per_pair_and_then_averaged() -> None:
    assert ratio_loss(torch.tensor([1.0, 3.0]), torch.tensor([4.0, 2.0])) == pytest.approx((0.25 + 1.5) / 2)


def test_the_log_ratio_is_bounded_by_floor_and_cap() -> None:
    wanted, unwanted = torch.tensor([2.0, 0.001]), torch.tensor([4.0, 100.0])
    expected = (torch.tensor([2.0, 0.1]).log() - torch.tensor([4.0, 8.0]).log()).mean()
    assert_close(log_ratio_loss(wanted, unwanted, floor=0.1, cap=8.0), expected)


def test_beyond_floor_and_cap_the_log_ratio_does_not_pull() -> None:
    wanted = torch.tensor([0.01, 2.0], requires_grad=True)
    unwanted = torch.tensor([3.0, 9.0], requires_grad=True)
    log_ratio_loss(wanted, unwanted, floor=0.1, cap=8.0).backward()
    assert_close(wanted.grad, torch.tensor([0.0, 1 / 2 / 2]))
    assert_close(unwanted.grad, torch.tensor([-1 / 3 / 2, 0.0]))


# the router penalty


def weights(padding: int = 0, side: str = "left") -> dict[str, torch.Tensor]:
    """Two layers, a malicious row of 4 tokens and a benign one of 2, and ``padding`` further columns of nonsense."""
    generator = torch.Generator().manual_seed(2)
    unwill, glad = (torch.rand(2, 2, 4, generator=generator) for _ in range(2))
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    around = (padding, 0) if side == "left" else (0, padding)
    pad = torch.nn.functional.pad
    return {
        "unwill": pad(unwill, around, value=0.9),
        "glad": pad(glad, around, value=0.8),
        "malicious": torch.tensor([True, False]),
        "mask": pad(mask, around),
    }


@pytest.mark.parametrize(("kind", "power"), [("squared", 2), ("l1", 1)])
def test_the_penalty_is_the_mean_over_rows_layers_and_real_tokens(kind: str, power: int) -> None:
    one = weights()
    rows = []
    for row, tokens, target in ((0, (0, 1, 2, 3), 1.0), (1, (2, 3), 0.0)):
        terms = [
            abs(one["unwill"][layer, row, token].item() - target) ** power
            + abs(one["glad"][layer, row, token].item() - (1 - target)) ** power
            for layer in (0, 1)
            for token in tokens
        ]
        rows.append(sum(terms) / len(terms))
    assert router_penalty(**one, kind=kind).item() == pytest.approx(sum(rows) / 2, rel=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["squared", "l1"])
def test_padding_is_never_penalised(kind: str, side: str) -> None:
    assert_close(router_penalty(**weights(5, side), kind=kind), router_penalty(**weights(), kind=kind))


@pytest.mark.parametrize("malicious", [True, False])
def test_right_weights_cost_nothing_and_wrong_ones_two(malicious: bool) -> None:
    right = torch.full((3, 1, 4), float(malicious))
    row = {"malicious": torch.tensor([malicious]), "mask": torch.ones(1, 4)}
    assert router_penalty(right, 1 - right, **row) == 0
    assert router_penalty(1 - right, right, **row) == 2


def test_each_row_weighs_the_same_however_long() -> None:
    unwill = torch.zeros(1, 2, 8)
    mask = torch.tensor([[1] * 8, [1] + [0] * 7])
    penalty = router_penalty(unwill, 1 - unwill, torch.tensor([False, True]), mask)
    assert penalty == 1  # the short wrong row costs 2, the long right one 0


# the divergence from the base


def test_the_divergence_is_a_mean_over_the_tokens_of_each_answer() -> None:
    base, logits = torch.randn(2, 4, 7)
    answers = torch.tensor([2, 0, 2, 2])
    p, q = torch.softmax(base, -1), torch.softmax(logits, -1)
    each = (p * (p / q).log()).sum(-1)
    expected = torch.stack([each[1], torch.zeros(()), each[[0, 2, 3]].mean()])
    assert_close(divergence(base, logits, answers, 3), expected)
    assert_close(divergence(base, base, answers, 3), torch.zeros(3))
    assert divergence(base[:0], logits[:0], answers[:0], 2).tolist() == [0, 0]
