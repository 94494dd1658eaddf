"""Fused projections: what the operations one by one compute, and never by numbers that have changed."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch.testing import assert_close

from mogu.adapter.fused import Fused, fuse
from mogu.adapter.model import fix_weights, fused, mogu_layers, recorded_weights, set_shift, set_stage

IDS = tiny.left_padded(tiny.prompts(9, 4))
each_architecture = pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Fused]:
    """The fused projections that were asked."""
    made: list[Fused] = []
    real = Fused.__call__

    def counted(self: Fused, *args: Any) -> Any:
        made.append(self)
        return real(self, *args)

    monkeypatch.setattr(Fused, "__call__", counted)
    return made


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**IDS).logits
    return found


@pytest.mark.parametrize("settings", [{"shift": 0.4}, {"router": "factored"}], ids=str)
@each_architecture
def test_fused_is_the_same(architecture: str, settings: dict[str, Any], calls: list[Fused]) -> None:
    model = tiny.adapted(architecture, strength=0.5, **{"router": "folded", **settings})
    expected = logits(model)
    with fused(model):
        found = logits(model)
    assert len(calls) == tiny.LAYERS
    own_kind = architecture == "falcon"  # a Linear with a forward of its own
    assert all(call.in_place != own_kind for call in calls)
    assert_close(found, expected, atol=2e-4, rtol=1e-4)
    logits(model)
    assert len(calls) == tiny.LAYERS  # not outside


def test_a_bfloat16_base_keeps_an_adapter_in_float32(calls: list[Fused]) -> None:
    model = tiny.adapted(tiny.base("llama").to(torch.bfloat16), router="folded", strength=0.3)
    assert mogu_layers(model)[0][1].mogu_glad_A["default"].dtype == torch.float32
    expected = logits(model)
    with fused(model):
        found = logits(model)
    assert calls
    assert found.dtype == torch.bfloat16
    assert_close(found, expected, atol=0.1, rtol=0.05)


def test_recorded_weights_are_the_same() -> None:
    model = tiny.adapted("llama", router="folded", shift=-0.3)
    with recorded_weights(model) as plain:
        logits(model)
        expected = plain()
    with recorded_weights(model) as weights, fused(model):
        logits(model)
        found = weights()
    assert found[0].shape == (tiny.LAYERS, 2, 9)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, atol=1e-5, rtol=1e-4)


def step(model: Any) -> None:
    """One of the optimizer, on everything."""
    parameters = [p.requires_grad_() for n, p in model.named_parameters() if "mogu_" in n]
    model(**IDS).logits.square().mean().backward()
    torch.optim.AdamW(parameters, lr=0.1).step()


def write_data(model: Any) -> None:
    """Where no version counter sees it."""
    for _, layer in mogu_layers(model):
        layer.mogu_glad_A["default"].data.mul_(-2)
        layer.mogu_unwill_router["default"].bias.data.add_(1)


CHANGES = {
    "a training step": step,
    "data": write_data,
    "loaded": lambda model: model.load_state_dict(tiny.adapted("llama", router="folded", strength=0.1).state_dict()),
    "shift": lambda model: set_shift(model, 2.0),
    "stage": lambda model: set_stage(model, "glad"),
    "dtype": lambda model: model.double(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_answer_after_a_change_is_by_the_new_numbers(change: str) -> None:
    model = tiny.adapted("llama", router="folded")
    options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    before = model.generate(**IDS, **options).logits[0]
    CHANGES[change](model)
    after = model.generate(**IDS, **options).logits[0]
    expected = logits(model)[:, -1].float()
    assert_close(after, expected, atol=2e-4, rtol=1e-4)
    assert change == "dtype" or not torch.allclose(after, before, atol=1e-2)


def test_a_new_shift_is_seen_at_once(calls: list[Fused]) -> None:
    model = tiny.adapted("llama", router="folded")
    with fused(model):
        set_shift(model, 2.0)
        found = logits(model)
    assert torch.equal(found, logits(model))
    assert not calls


def test_what_needs_the_operations_one_by_one_gets_them(calls: list[Fused]) -> None:
    model = tiny.adapted("llama", router="folded")
    with fused(model):
        model(**IDS).logits.sum().backward()
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            model(**IDS)
        with model.disable_adapter():
            logits(model)
        fix_weights(model, 0.5, 0.5)
        logits(model)
    assert not calls
    assert mogu_layers(model)[0][1].mogu_glad_router["default"].weight.grad is not None
    with fused(model):
        assert all(layer.fused is None for _, layer in mogu_layers(model))


def test_an_output_that_somebody_holds_is_not_written_to(calls: list[Fused]) -> None:
    model = tiny.adapted("llama", router="folded")
    held = []
    projection = mogu_layers(model)[1][1].base_layer
    projection.register_forward_hook(lambda module, args, output: held.append((args[0], output)))
    expected = logits(model)
    with fused(model):
        assert_close(logits(model), expected, atol=2e-4, rtol=1e-4)
    assert [call.in_place for call in calls] == [True, False, True]
    x, output = held[-1]
    assert torch.equal(output, torch.nn.functional.linear(x, projection.weight))


class Borrowed(torch.nn.Linear):
    """A projection of another kind, as quantized ones are, which keeps what it puts out."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.kept = super().forward(x)
        return self.kept


def test_a_base_of_another_kind_keeps_its_output(calls: list[Fused]) -> None:
    base = tiny.base("llama")
    for layer in base.model.layers:
        layer.self_attn.o_proj.__class__ = Borrowed
    model = tiny.adapted(base, router="folded")
    expected, kept = logits(model), mogu_layers(model)[0][1].base_layer.kept
    with fused(model):
        assert_close(logits(model), expected, atol=2e-4, rtol=1e-4)
    assert not any(call.in_place for call in calls)
    assert torch.equal(mogu_layers(model)[0][1].base_layer.kept, kept)


def test_numbers_that_are_not_at_hand_are_not_fused() -> None:
    model = tiny.adapted("llama", router="folded")
    layers = [layer for _, layer in mogu_layers(model)]
    layers[1].mogu_glad_A["default"] = torch.nn.Parameter(layers[1].mogu_glad_A["default"].to("meta"))
    made = fuse([numbers for layer in layers if (numbers := layer.numbers()) is not None])
    assert [one is None for one in made] == [False, True, False]
