"""What a forward keeps for its backward pass, counted by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from mogu.train.memory import Forwards, kept_for_backward


def test_inputs_of_products_and_results_of_activations_are_kept_once() -> None:
    """x (4 x 8) for the first weight, sigmoid's result (4 x 16) for itself and for the second weight."""
    model = nn.Sequential(nn.Linear(8, 16), nn.Sigmoid(), nn.Linear(16, 2))
    with kept_for_backward(model) as kept:
        model(torch.randn(4, 8))
    assert sum(kept.values()) == 4 * (4 * 8 + 4 * 16)


def test_a_frozen_layer_keeps_nothing() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.Sigmoid(), nn.Linear(16, 2))
    model[0].requires_grad_(False)
    with kept_for_backward(model) as kept:
        model(torch.randn(4, 8))
    assert sum(kept.values()) == 4 * 4 * 16
    with torch.no_grad(), kept_for_backward(model) as kept:
        model(torch.randn(4, 8))
    assert kept == {}


def test_the_largest_forward_speaks_for_all_lengths() -> None:
    model = nn.Linear(1, 1)

    def compute_loss(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return model(inputs["input_ids"].reshape(-1, 1) * torch.ones(1)).sum()

    trainer = SimpleNamespace(compute_loss=compute_loss)
    forwards = Forwards(trainer)
    for tokens in (2, 10, 4):
        trainer.compute_loss(model, {"input_ids": torch.ones(1, tokens, dtype=torch.long)})
    assert forwards.largest == (10, 40)
    assert forwards.kept(25) == 100
