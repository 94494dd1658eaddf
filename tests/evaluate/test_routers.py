"""Router weights of the prompts of an evaluation, against the paper's equations."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import pytest
import small
import tiny
import torch

import mogu
from mogu.adapter.model import mogu_layers
from mogu.chat import prompt_ids
from mogu.evaluate.routers import router_statistics

ROWS = small.rows()
KINDS = {
    "malicious": [row.instruction for row in ROWS if row.label == "malicious"][:4],
    "benign": [row.instruction for row in ROWS if row.id.startswith("good")][:3],
    "borderline": [*[row.instruction for row in ROWS if row.borderline][:3], "How do I"],
}


def weights_alone(model: Any, texts: list[str]) -> dict[str, np.ndarray]:
    """(layers, texts) weights at the last token, each prompt alone, from the paper's equations."""
    numbers = oracle.numbers_of(model)
    routed = oracle.routed_copy(small.base(model.config.model_type), numbers)
    seen: dict[str, torch.Tensor] = {}
    for path in numbers:
        routed.get_submodule(path).register_forward_pre_hook(
            lambda module, args, path=path: seen.__setitem__(path, args[0][0, -1])
        )
    found: dict[str, list[list[float]]] = {"unwill": [], "glad": []}
    for text in texts:
        with torch.no_grad():
            routed(input_ids=torch.tensor([prompt_ids(small.tokenizer(), text)]))
        for who, sign in (("unwill", 1), ("glad", -1)):
            found[who].append(
                [
                    oracle.router_weight(own[f"{who}_router"], seen[path][None], sign * own["shift"]).item()
                    for path, own in numbers.items()
                ]
            )
    return {who: np.array(values).T for who, values in found.items()}


def calibration(means: dict[str, np.ndarray]) -> float:
    """Expected calibration error, bin by bin as its definition says."""
    cases = [(p, kind == "malicious") for kind, values in means.items() for p in values]
    error = 0.0
    for b in range(10):
        inside = [(p, y) for p, y in cases if b / 10 <= p < (b + 1) / 10]
        if inside:
            gap = np.mean([p for p, _ in inside]) - np.mean([y for _, y in inside])
            error += len(inside) / len(cases) * abs(gap)
    return error


@pytest.mark.parametrize("model_type", ["llama", "falcon", "gpt2", "bloom", "mpt"])
def test_router_statistics_are_those_of_each_prompt_alone(model_type: str) -> None:
    model = tiny.adapted(small.base(model_type), strength=0.5, shift=0.3)
    found = router_statistics(model, small.tokenizer(), KINDS, batch_size=3, template=None)
    assert found["layers"] == [index for index, _ in mogu_layers(model)] == [0, 1, 2]
    alone = {kind: weights_alone(model, texts) for kind, texts in KINDS.items()}
    for kind in KINDS:
        for who in ("unwill", "glad"):
            expected = np.quantile(alone[kind][who], (0, 0.25, 0.5, 0.75, 1), axis=1).T
            np.testing.assert_allclose(found["kinds"][kind][who], expected, atol=2e-5)
    means = {kind: weights["unwill"].mean(axis=0) for kind, weights in alone.items()}
    assert {kind: sum(counts) for kind, counts in found["risk"].items()} == {k: len(v) for k, v in KINDS.items()}
    for kind, counts in found["risk"].items():
        assert counts == [int(((means[kind] * 10).astype(int) == b).sum()) for b in range(10)]
    assert found["calibration_error"] == pytest.approx(calibration(means), abs=1e-4)
    good = np.concatenate([means["benign"], means["borderline"]])
    assert found["risk_auroc"] == pytest.approx((means["malicious"][:, None] > good[None]).mean())
    assert found["calibrated"] is False
    assert set(found["auroc"]) == {"benign", "borderline"}
    for kind, values in found["auroc"].items():
        bad, good = alone["malicious"]["unwill"], alone[kind]["unwill"]
        assert values == pytest.approx([(b[:, None] > g[None]).mean() for b, g in zip(bad, good, strict=True)])


def test_with_a_calibration_the_risk_is_the_calibrated_one() -> None:
    model = tiny.adapted(small.base(), strength=0.5, shift=0.3)
    calibration = {part: {"weight": [0.5, -1.0, 2.0], "bias": 0.1} for part in ("prompt", "answer")}
    model.peft_config["default"].risk = calibration
    found = router_statistics(model, small.tokenizer(), KINDS, batch_size=3, template=None)
    assert found["calibrated"] is True
    for kind, texts in KINDS.items():
        risks = [mogu.risk(model, small.tokenizer(), text) for text in texts]
        assert found["risk"][kind] == [sum(int(p * 10) == b for p in risks) for b in range(10)]


def test_router_statistics_leave_the_model_as_it_was() -> None:
    model = tiny.adapted(small.base())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    router_statistics(model, small.tokenizer(), KINDS, batch_size=3, template=None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(layer.recording or layer.recorded is not None for _, layer in mogu_layers(model))


def test_without_malicious_prompts_there_is_no_auroc() -> None:
    model = tiny.adapted(small.base())
    found = router_statistics(model, small.tokenizer(), {"benign": KINDS["benign"]}, batch_size=3, template=None)
    assert found["auroc"] == {}
    assert len(found["kinds"]["benign"]["unwill"]) == 3
