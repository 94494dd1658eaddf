"""Router weights at the end of a prompt."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch.testing import assert_close

from mogu.adapter.model import mogu_layers, recorded_weights
from mogu.decode.inspect import prompt_weights
from mogu.errors import AdapterError


def test_weights_are_those_of_the_last_token_in_every_routed_layer() -> None:
    model = tiny.adapted("llama", layers_to_transform=[0, 2])
    [ids] = tiny.prompts(7)
    inputs = {}
    for index, layer in mogu_layers(model):
        layer.register_forward_pre_hook(lambda _, args, index=index: inputs.__setitem__(index, args[0]))
    unwill, glad = prompt_weights(model, ids)
    assert not unwill.requires_grad
    assert unwill.shape == glad.shape == (2,)
    for row, (index, layer) in enumerate(mogu_layers(model)):
        with torch.no_grad():
            expected = layer.router_weights(inputs[index][0, -1:])
        assert_close(torch.stack([unwill[row], glad[row]]), torch.cat(expected))


def test_nothing_is_left_recording() -> None:
    model = tiny.adapted("llama")
    prompt_weights(model, tiny.prompts(3)[0])
    assert not any(layer.recording for _, layer in mogu_layers(model))
    with recorded_weights(model) as weights, pytest.raises(AdapterError):
        weights()


def test_a_switched_off_adapter_has_no_weights() -> None:
    model = tiny.adapted("llama")
    with model.disable_adapter(), pytest.raises(AdapterError, match="no router weights were recorded"):
        prompt_weights(model, tiny.prompts(3)[0])
