"""The calibration: which form is kept, and that probabilities mean what they say."""

from __future__ import annotations

import json

import small
import tiny
import torch

from mogu.adapter.config import MoguConfig
from mogu.adapter.model import active_config
from mogu.evaluate.metrics import calibration_error
from mogu.train.risk import best_fit, fit_risk
from mogu.train.selection import Respondent


def drawn(n: int, weights: list[float], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Margins of three layers, and outcomes whose log odds are a linear function of them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=generator) * 3
    p = torch.sigmoid(x @ torch.tensor(weights) - 1.0)
    return x, (torch.rand(n, generator=generator) < p).float()


def test_the_true_weights_are_found_and_the_risk_is_calibrated() -> None:
    x, y = drawn(4000, [1.0, 0.0, -0.5])
    found = best_fit(x, y, torch.arange(4000) % 5)
    assert found["form"] == "layers"
    torch.testing.assert_close(torch.tensor(found["weight"]), torch.tensor([1.0, 0.0, -0.5]), atol=0.1, rtol=0)
    new, outcomes = drawn(4000, [1.0, 0.0, -0.5], seed=1)
    p = torch.sigmoid(new @ torch.tensor(found["weight"]) + found["bias"])
    error = calibration_error(p.tolist(), outcomes.bool().tolist())
    assert error is not None
    assert error < 0.03


def test_few_rows_and_equal_layers_keep_the_mean() -> None:
    x, y = drawn(40, [0.4, 0.4, 0.4], seed=3)
    found = best_fit(x, y, torch.arange(40) % 5)
    assert found["form"] == "mean"
    assert len(set(found["weight"])) == 1


def test_a_calibration_is_json_that_a_configuration_takes() -> None:
    model = tiny.adapted(small.base(), router="folded", routed_tokens=2)
    found = fit_risk(Respondent(model, small.tokenizer(), None, 4), small.rows())
    assert found is not None
    assert MoguConfig(risk=json.loads(json.dumps(found))).risk == found
    validation = [row for row in small.rows() if row.split == "validation"]
    assert found["prompt"]["n"] == len(validation)
    assert active_config(model).risk is None  # the caller decides


def test_too_few_validation_rows_are_not_calibrated_on() -> None:
    model = tiny.adapted(small.base(), router="folded")
    rows = [row for row in small.rows() if row.split != "validation" or row.label == "benign"]
    assert fit_risk(Respondent(model, small.tokenizer(), None, 4), rows) is None
