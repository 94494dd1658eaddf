"""The warm start: each probe is the optimum, each layer reads what is routed below it, and no row grades itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import small
import tiny
import torch
from torch.testing import assert_close

from mogu.adapter.layer import MoguLinear
from mogu.adapter.model import active_config, mogu_layers, plain_base, recorded_weights, set_shift, set_stage
from mogu.chat import pad_prompts, prompt_ids
from mogu.data.rows import Row
from mogu.errors import TrainingError
from mogu.train import fit
from mogu.train.batches import Encoder
from mogu.train.contexts import FOLDS, contexts
from mogu.train.fit import TOKEN_WEIGHTS, fit_probe, fit_routers, lay_out

TRAIN = [row for row in small.rows() if row.split == "train"]
ALONE = [dataclasses.replace(row, twin="") for row in TRAIN if not row.borderline]


def encoder() -> Encoder:
    return Encoder(small.tokenizer(), None, 12)


def adapted(**settings: Any) -> Any:
    model = tiny.adapted(small.base(), strength=0.5, **{"router": "folded", "lora_dropout": 0.1, **settings})
    with torch.no_grad():
        for _, layer in mogu_layers(model):
            for routers in (layer.mogu_unwill_router, layer.mogu_glad_router):
                for parameter in routers.parameters():
                    parameter.zero_()
    return model


def routers(model: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(w, b) of each unwill router."""
    return [
        (r.weight.detach().clone(), r.bias.detach().clone())
        for r in (layer.mogu_unwill_router["default"] for _, layer in mogu_layers(model))
    ]


class Watch:
    """Keeps what each routed layer read, the weights it routed with and what it gave, during a fit."""

    def __init__(self, model: Any, rows: Sequence[Row], **options: Any) -> None:
        self.inputs: list[torch.Tensor] = []
        self.weights: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.outputs: list[torch.Tensor] = []
        handles = [layer.register_forward_hook(self._keep) for _, layer in mogu_layers(model)]
        fit_routers(model, encoder(), rows, **{"pack": False, **options})
        for handle in handles:
            handle.remove()

    def _keep(self, layer: MoguLinear, args: tuple[torch.Tensor], output: torch.Tensor) -> None:
        assert layer.override is not None
        self.inputs.append(args[0].clone())
        self.weights.append(tuple(w.clone() for w in layer.override))  # type: ignore[arg-type]
        self.outputs.append(output.clone())


# one probe


def optimum(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, l2: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Newton's method in float64, to the end."""
    x, y, weight = x.double(), y.double(), weight.double()
    mean = (weight[:, None] * x).sum(0)
    scale = ((weight[:, None] * (x - mean) ** 2).sum(0)).sqrt()
    z = torch.cat([(x - mean) / scale, torch.ones(len(x), 1, dtype=torch.float64)], 1)
    ridge = torch.full((z.shape[1],), l2, dtype=torch.float64)
    ridge[-1] = 0
    theta = torch.zeros(z.shape[1], dtype=torch.float64)
    for _ in range(100):
        p = torch.sigmoid(z @ theta)
        gradient = z.T @ (weight * (p - y)) + ridge * theta
        theta -= torch.linalg.solve(z.T @ (z * (weight * p * (1 - p))[:, None]) + torch.diag(ridge), gradient)
    assert gradient.abs().max() < 1e-10
    w = theta[:-1] / scale
    return w, theta[-1] - w @ mean


def problem(n: int = 200, d: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Columns of very different scale and place, correlated, with two noisy classes and uneven weights."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(n, d, generator=generator) @ torch.randn(d, d, generator=generator)
    y = (x[:, 0] + torch.randn(n, generator=generator) > 0).float()
    weight = torch.rand(n, generator=generator) + 0.1
    return x * torch.logspace(-2, 2, d) + torch.linspace(-50, 50, d), y, weight / weight.sum()


@pytest.mark.parametrize("l2", [1e-1, 1e-2, 1e-3])
def test_the_probe_is_the_optimum(l2: float) -> None:
    x, y, weight = problem()
    w, b = fit_probe(x, y, weight, l2)
    best_w, best_b = optimum(x, y, weight, l2)
    assert w.shape == (12,)
    assert b.shape == (1,)
    assert w.dtype == b.dtype == torch.float32
    assert_close((x @ w + b).double(), x.double() @ best_w + best_b, atol=2e-2, rtol=1e-2)


def test_a_row_of_weight_two_counts_as_two_rows() -> None:
    x, y, _ = problem()
    twice = torch.cat([x, x[:50]]), torch.cat([y, y[:50]])
    heavier = torch.cat([torch.full((50,), 2.0), torch.ones(150)]) / 250
    one = fit_probe(x, y, heavier, 1e-2)
    two = fit_probe(*twice, torch.ones(250) / 250, 1e-2)
    assert_close(x @ one[0] + one[1], x @ two[0] + two[1], atol=2e-2, rtol=1e-2)


def test_more_ridge_makes_smaller_weights_but_leaves_the_bias() -> None:
    x, y, weight = problem()
    small_ridge, large_ridge = fit_probe(x, y, weight, 1e-3), fit_probe(x, y, weight, 1e3)
    assert (x @ large_ridge[0]).std() < 0.01 * (x @ small_ridge[0]).std()
    share = (weight * y).sum()
    assert torch.sigmoid(x @ large_ridge[0] + large_ridge[1]).mean() == pytest.approx(share.item(), abs=0.02)


def test_a_column_that_never_changes_does_no_harm() -> None:
    x, y, weight = problem()
    w, b = fit_probe(torch.cat([x, torch.full((200, 1), 3.0)], 1), y, weight, 1e-2)
    assert torch.isfinite(w).all()
    assert torch.isfinite(b).all()
    without = fit_probe(x, y, weight, 1e-2)
    assert_close(x @ w[:-1] + 3 * w[-1] + b, x @ without[0] + without[1], atol=2e-2, rtol=1e-2)


# all routers


def test_every_routed_layer_is_fitted_and_glad_mirrors_unwill() -> None:
    model = adapted()
    fit_routers(model, encoder(), TRAIN)
    for _, layer in mogu_layers(model):
        unwill, glad = layer.mogu_unwill_router["default"], layer.mogu_glad_router["default"]
        assert unwill.weight.abs().max() > 0
        assert torch.isfinite(unwill.weight).all()
        assert torch.equal(glad.weight, -unwill.weight)
        assert torch.equal(glad.bias, -unwill.bias)


def test_only_the_routed_layers_are_fitted_and_nothing_else_changes() -> None:
    model = adapted(layers_to_transform=[1, 2])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fit_routers(model, encoder(), TRAIN)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert len(changed) == 2 * 4
    assert all("_router." in name for name in changed)
    assert [index for index, _ in mogu_layers(model)] == [1, 2]


def test_routing_then_tells_the_rows_apart_in_every_layer() -> None:
    """In a forward of its own, with other padding and no answers."""
    model = adapted()
    fit_routers(model, encoder(), TRAIN)
    ids = [prompt_ids(small.tokenizer(), row.instruction) for row in TRAIN]
    with torch.no_grad(), recorded_weights(model) as weights:
        model(**pad_prompts(small.tokenizer(), ids))
        unwill, glad = weights()
    bad = torch.tensor([row.label == "malicious" for row in TRAIN])
    assert ((unwill[:, :, -1] > 0.5) == bad).float().mean(dim=1).min() > 0.8
    assert_close(unwill + glad, torch.ones_like(unwill))


def test_fitting_twice_gives_the_same_routers() -> None:
    first, second = adapted(), adapted()
    fit_routers(first, encoder(), TRAIN)
    fit_routers(second, encoder(), TRAIN)
    for one, two in zip(routers(first), routers(second), strict=True):
        assert torch.equal(one[0], two[0])
        assert torch.equal(one[1], two[1])


def test_each_layer_reads_what_the_layers_below_have_routed() -> None:
    model = adapted()
    watch = Watch(model, TRAIN)
    layer = mogu_layers(model)[0][1]
    x, (unwill, glad) = watch.inputs[0], (w.unsqueeze(-1) for w in watch.weights[0])
    a = {who: getattr(layer, f"mogu_{who}_A")["default"] for who in ("unwill", "glad")}
    b = {who: getattr(layer, f"mogu_{who}_B")["default"] for who in ("unwill", "glad")}
    scale = layer.mogu_scaling["default"]
    expected = (unwill + glad) * (x @ layer.base_layer.weight.T)
    expected = expected + scale * (
        unwill * (x @ a["unwill"].T @ b["unwill"].T) + glad * (x @ a["glad"].T @ b["glad"].T)
    )
    assert_close(watch.outputs[0], expected, atol=1e-4, rtol=1e-4)

    other = adapted()
    tiny.randomise(other, strength=1.5, seed=12)  # other responders: the first layer reads the same, those above do not
    others = Watch(other, TRAIN)
    assert_close(others.inputs[0], watch.inputs[0])
    assert (others.inputs[1] - watch.inputs[1]).abs().max() > 0.1
    assert_close(routers(other)[0][0], routers(model)[0][0])
    assert (routers(other)[1][0] - routers(model)[1][0]).abs().max() > 1e-3


def swapped(rows: Sequence[Row], first: int, second: int) -> list[Row]:
    """Two rows with each other's label, all else as it was."""
    rows = list(rows)
    labels = rows[first].label, rows[second].label
    assert labels[0] != labels[1]
    rows[first] = dataclasses.replace(rows[first], label=labels[1])
    rows[second] = dataclasses.replace(rows[second], label=labels[0])
    return rows


def same_length() -> list[Row]:
    """Rows of which none is longer than the others, every second one malicious, in pairs of the same fold."""
    bad = [row for row in ALONE if row.label == "malicious"]
    made = []
    for number, row in enumerate(bad):
        label = "malicious" if (number // FOLDS) % 2 else "benign"
        made.append(dataclasses.replace(row, label=label))
    return made


def test_a_row_is_routed_by_a_router_that_did_not_see_it() -> None:
    """Two rows of one fold swap labels: the router that is kept changes, what these two are routed by does not."""
    rows = same_length()
    first, second = 0, FOLDS
    plain, other = adapted(), adapted()
    before, after = Watch(plain, rows), Watch(other, swapped(rows, first, second))
    assert (routers(plain)[0][0] - routers(other)[0][0]).abs().max() > 1e-3
    real = before.weights[0][0].shape[1] - 8
    change = (before.weights[0][0] - after.weights[0][0]).abs()[:, -real:].amax(dim=1)
    mine = [index % FOLDS == first % FOLDS for index in range(len(rows))]
    assert change[torch.tensor(mine)].max() < 1e-4
    assert change[~torch.tensor(mine)].min() > 1e-4


def test_a_row_is_routed_by_a_router_that_did_not_see_its_twin() -> None:
    rows = same_length()
    first, second = 0, FOLDS + 1  # of different folds, were they no twins
    rows[first] = dataclasses.replace(rows[first], twin=rows[second].id)
    rows[second] = dataclasses.replace(rows[second], twin=rows[first].id)
    before, after = Watch(adapted(), rows), Watch(adapted(), swapped(rows, first, second))
    change = (before.weights[0][0] - after.weights[0][0]).abs().amax(dim=1)
    assert change[[first, second]].max() < 1e-4
    assert change.max() > 1e-3


def test_borderline_rows_can_weigh_more() -> None:
    models = [adapted() for _ in range(3)]
    for model, weight in zip(models, (1.0, 1.0, 20.0), strict=True):
        fit_routers(model, encoder(), TRAIN, borderline_weight=weight)
    once, again, heavy = (routers(model)[0][0] for model in models)
    assert torch.equal(once, again)
    assert (heavy - once).abs().max() > 1e-3


def test_packed_rows_lead_to_the_same_routers() -> None:
    """Other lines, other padding, one copy of what all prompts begin with; also in the layers above the first."""
    rows = same_length()
    models = [adapted() for _ in range(3)]
    for model, pack in zip(models, (False, True, None), strict=True):
        fit_routers(model, encoder(), rows, l2=0.1, pack=pack)  # a sharp optimum
    for apart, together, chosen in zip(*map(routers, models), strict=True):
        assert_close(together[0], apart[0], atol=2e-3, rtol=2e-3)
        assert_close(together[1], apart[1], atol=2e-3, rtol=2e-3)
        assert torch.equal(chosen[0], together[0])


# before and after


def hooks(model: Any) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_left_behind(training: bool) -> None:
    model = adapted()
    set_stage(model, "glad")
    set_shift(model, 1.0)
    model.train(training)
    before = hooks(model)
    fit_routers(model, encoder(), TRAIN)
    assert hooks(model) == before
    assert all(layer.override is None for _, layer in mogu_layers(model))
    assert model.training is training
    assert (active_config(model).stage, active_config(model).shift) == ("routed", 0.0)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {name for name, _ in model.named_parameters() if "_router." in name}


def test_an_interrupted_fit_leaves_nothing_behind_either() -> None:
    model = adapted()
    before = hooks(model)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_routers(model, encoder(), TRAIN, progress=stop)
    assert hooks(model) == before
    assert all(layer.override is None for _, layer in mogu_layers(model))


def test_progress_counts_layers() -> None:
    seen: list[tuple[int, int]] = []
    fit_routers(adapted(), encoder(), TRAIN, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("label", ["benign", "malicious"])
def test_one_label_only_is_refused(label: str) -> None:
    with pytest.raises(TrainingError, match="routers need benign and malicious rows"):
        fit_routers(adapted(), encoder(), [row for row in TRAIN if row.label == label])


def test_too_many_tokens_are_refused_before_memory_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "_MAX_TOKENS", 100)
    with pytest.raises(TrainingError, match=r"set data\.limit in the recipe"):
        fit_routers(adapted(), encoder(), TRAIN)


# what a study may vary


def test_without_standardising_the_ridge_is_on_the_weights_themselves() -> None:
    x, y, weight = problem()
    scales = torch.logspace(-1, 1, x.shape[1])
    one, two = (fit_probe(inputs, y, weight, 1e-2, standardise=False) for inputs in (x, x * scales))
    assert (x @ one[0] + one[1] - (x * scales) @ two[0] - two[1]).abs().max() > 0.1
    one, two = (fit_probe(inputs, y, weight, 1e-2) for inputs in (x, x * scales))
    assert_close(x @ one[0] + one[1], (x * scales) @ two[0] + two[1], atol=2e-2, rtol=1e-2)


def test_fitted_on_the_base_every_layer_reads_what_the_base_reads() -> None:
    model = adapted()
    read: list[torch.Tensor] = []
    handles = [
        layer.register_forward_hook(lambda _, args, out: read.append(args[0].clone()))
        for _, layer in mogu_layers(model)
    ]
    fit_routers(model, encoder(), TRAIN, states="base", pack=False)
    fitted, here = routers(model), list(read)
    read.clear()
    with plain_base(model):
        fit_routers(model, encoder(), TRAIN, states="routed", pack=False)  # the base all the way up
    for handle in handles:
        handle.remove()
    assert all(torch.equal(one, two) for one, two in zip(here, read, strict=True))
    for (w, b), (other_w, other_b) in zip(fitted, routers(model), strict=True):
        assert_close(w, other_w)
        assert_close(b, other_b)
    assert all(layer.override is None for _, layer in mogu_layers(model))


@pytest.mark.parametrize("tokens", ["equal", "prompt", "template"])
def test_the_tokens_of_a_row_weigh_as_the_recipe_says(tokens: str) -> None:
    model = adapted()
    layout, entries = lay_out(model, encoder(), TRAIN, pack=False, tokens=tokens)
    instruction, template, answer = TOKEN_WEIGHTS[tokens]
    row = entries.weight[entries.line == 0]
    ids = layout.inputs["input_ids"][0][entries.column[entries.line == 0]].tolist()
    words = small.tokenizer().convert_ids_to_tokens(ids)
    end = len(words) - 1 - words[::-1].index("<assistant>")
    start = end - words[end::-1].index("</s>")  # of the template's tokens after the instruction
    relative = row / row[end]
    assert_close(relative[:start], torch.full_like(relative[:start], instruction / template))
    assert_close(relative[end + 1 :], torch.full_like(relative[end + 1 :], answer / template))
    assert len(relative[end + 1 :]) > 0


def test_the_fit_reads_the_end_of_the_conversation() -> None:
    rows = same_length()
    layout, _ = lay_out(adapted(), encoder(), rows, pack=True, turns=1.0)
    single, _ = lay_out(adapted(), encoder(), rows, pack=True)
    tokenizer, ids = small.tokenizer(), layout.inputs["input_ids"]
    for row, before, line, end in zip(rows, contexts(rows, 1.0, 0.0), layout.line, layout.end, strict=True):
        assert before.first is not None
        text = tokenizer.decode(ids[line, :end])
        last = text.rindex(row.instruction)
        assert 0 <= text.index(before.first.instruction) < text.rindex(before.said[:20]) < last
    assert layout.size > single.size


def test_what_the_base_cannot_read_to_the_end_is_read_alone() -> None:
    rows, model = same_length(), adapted()
    whole, _ = lay_out(model, encoder(), rows, pack=False, turns=1.0)
    model.config.max_position_embeddings = limit = int(whole.inputs["attention_mask"].sum(dim=1).max()) - 1
    layout, _ = lay_out(model, encoder(), rows, pack=False, turns=1.0)
    tokenizer, alone = small.tokenizer(), 0
    for row, line, end in zip(rows, layout.line, layout.end, strict=True):
        assert int(layout.inputs["attention_mask"][line].sum()) <= limit
        text = tokenizer.decode(layout.inputs["input_ids"][line, :end], skip_special_tokens=False)
        assert row.instruction in text
        alone += text.count("<user>") == 1
    assert 0 < alone < len(rows)


@pytest.mark.parametrize("pack", [True, False])
def test_the_fit_reads_system_prompts(pack: bool) -> None:
    """Rows under one system prompt share it in a packed line, and are fitted on tokens behind it."""
    rows = [row for row in TRAIN if len(row.instruction) < 200]
    layout, entries = lay_out(adapted(), encoder(), rows, pack=pack, tokens="equal", system_prompts=0.5)
    tokenizer, ids = small.tokenizer(), layout.inputs["input_ids"]
    expected = {row.instruction: context.system for row, context in zip(rows, contexts(rows, 0.0, 0.5), strict=True)}
    assert len(set(expected.values())) > 2
    for line, end in zip(layout.line, layout.end, strict=True):
        text = tokenizer.decode(ids[line, :end])
        (system,) = {expected[instruction] for instruction in expected if instruction in text}
        assert ("<system>" in text) == (system is not None)
        assert system is None or tokenizer.decode(tokenizer(system)["input_ids"]) in text
    if pack:
        assert len(layout.fold) < len(rows)
    words = [tokenizer.decode(ids[line, column]) for line, column in zip(entries.line, entries.column, strict=True)]
    assert words.count("<system>") == 0


def test_a_template_without_system_prompts_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = small.tokenizer()
    refusing = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + tokenizer.chat_template
    )
    monkeypatch.setattr(tokenizer, "chat_template", refusing)
    encode = Encoder(tokenizer, None, 8)
    with_, _ = lay_out(adapted(), encode, TRAIN, pack=True, system_prompts=1.0)
    without, _ = lay_out(adapted(), encode, TRAIN, pack=True)
    assert with_.size == without.size
