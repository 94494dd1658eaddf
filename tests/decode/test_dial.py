"""The safety dial: a shift of one call."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from peft import PeftModel
from transformers import LogitsProcessor, LogitsProcessorList

from mogu.adapter.model import active_config, mogu_layers, set_shift
from mogu.errors import AdapterError

PROMPTS = tiny.prompts(9, 4, 7)


@pytest.fixture(scope="module")
def model() -> PeftModel:
    made = tiny.adapted("llama", router="folded")
    set_shift(made, 0.5)
    return made


def logits(model: PeftModel, **options: Any) -> torch.Tensor:
    output = model.generate(
        **tiny.left_padded(PROMPTS),
        **{"max_new_tokens": 7, "do_sample": False, "output_logits": True, "return_dict_in_generate": True, **options},
    )
    return torch.stack(output.logits)


def test_zero_is_the_trained_model_bit_for_bit(model: PeftModel) -> None:
    assert torch.equal(logits(model, dial=0.0), logits(model))


@pytest.mark.parametrize("dial", [-2.0, 3])
def test_the_dial_is_a_shift_on_top_of_the_trained_one(model: PeftModel, dial: float) -> None:
    found = logits(model, dial=dial)
    set_shift(model, 0.5 + dial)
    try:
        expected = logits(model)
    finally:
        set_shift(model, 0.5)
    assert torch.equal(found, expected)
    assert not torch.equal(found[0], logits(model)[0])


class Failing(LogitsProcessor):
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("the light went out")


def test_afterwards_it_is_back_also_after_an_error(model: PeftModel) -> None:
    before = logits(model)
    logits(model, dial=2.0)
    with pytest.raises(RuntimeError, match="the light went out"):
        logits(model, dial=2.0, logits_processor=LogitsProcessorList([Failing()]))
    assert [layer.mogu_shift["default"] for _, layer in mogu_layers(model)] == [0.5] * tiny.LAYERS
    assert active_config(model).shift == 0.5
    assert torch.equal(logits(model), before)


def test_far_to_either_side_one_responder_answers(model: PeftModel) -> None:
    """At the ends of the dial one weight is 1 and the other 0, whatever the routers say."""
    for dial, weight in ((1e4, 1.0), (-1e4, 0.0)):
        seen: list[torch.Tensor] = []
        layer = mogu_layers(model)[0][1]
        hook = layer.register_forward_pre_hook(
            lambda layer, args, seen=seen: seen.append(layer.router_weights(args[0]))
        )
        logits(model, dial=dial, max_new_tokens=1)
        hook.remove()
        unwill, glad = seen[0]
        assert bool((unwill == weight).all())
        assert bool((glad == 1 - weight).all())


@pytest.mark.parametrize("dial", [float("nan"), float("inf")])
def test_a_dial_that_is_no_number_is_refused(model: PeftModel, dial: float) -> None:
    with pytest.raises(AdapterError, match="the dial must be a finite number"):
        logits(model, dial=dial)


def test_switched_off_the_dial_does_nothing(model: PeftModel) -> None:
    with model.disable_adapter():
        assert torch.equal(logits(model, dial=3.0), logits(model))
