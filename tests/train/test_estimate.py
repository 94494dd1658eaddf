"""What a dry run says: counts that can be checked by hand, times from a clock of ours, advice."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import small

from mogu.errors import ModelError, TrainingError
from mogu.models import empty_base, load_base
from mogu.recipe import BackboneRecipe, Recipe
from mogu.train import estimate as module
from mogu.train.advice import advice, conclusion, count, duration, size, text_table
from mogu.train.estimate import Estimate, StageEstimate, estimate, weigh

FIT, RANDOM = small.RECIPE, small.RANDOM
PLENTY = 2**40
WIDTH, LAYERS = 32, 3


def tried(recipe: Recipe = FIT, available: int = PLENTY, rows: Any = None) -> Estimate:
    return estimate(
        small.base(),
        small.tokenizer(),
        rows or small.rows(),
        recipe,
        model_name="tiny",
        batch_size=4,
        available=available,
    )


def stages(found: Estimate) -> dict[str, StageEstimate]:
    return {stage.stage: stage for stage in found.stages}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock is one second later."""
    seconds = itertools.count()
    monkeypatch.setattr(module, "_now", lambda: float(next(seconds)))


# counts


def test_the_base_is_counted(clock: None) -> None:
    found, base = tried(), small.base()
    parameters = sum(p.numel() for p in base.parameters())
    assert (found.model, found.parameters, found.dtype, found.device) == ("tiny", parameters, "float32", "cpu")
    assert (found.layers, found.depth) == ((0, 1, 2), LAYERS)
    assert 4 * parameters < found.weights < 5 * parameters + 40_000


def test_steps_and_rows_are_those_of_the_run(clock: None) -> None:
    """6 pairs twice by twos; 8 rows twice by twos, every two forwards a step."""
    fit, random = stages(tried()), stages(tried(RANDOM))
    for name in ("glad", "unwill"):
        assert (fit[name].steps, fit[name].rows_per_step, fit[name].rows_per_forward) == (6, 2, 2)
        assert fit[name].checks == 3
    assert (random["routers"].steps, random["routers"].rows_per_step, random["routers"].checks) == (4, 4, 0)
    assert list(fit) == ["glad", "unwill", "routers (fit)", "balance"]
    assert list(random) == ["glad", "unwill", "routers"]  # with one shift there is nothing to balance


def test_what_learns_is_counted(clock: None) -> None:
    """A and B of rank 2 in every layer; three matrices of an inner width of 4 in each of two routers."""
    found = stages(tried(RANDOM))
    assert found["glad"].trainable == found["unwill"].trainable == LAYERS * 2 * (WIDTH + WIDTH)
    learnt = found["routers"].trainable
    assert learnt >= LAYERS * 2 * (WIDTH * 4 + 4 * WIDTH + WIDTH)
    assert (found["routers"].gradients, found["routers"].optimizer) == (4 * learnt, 8 * learnt)
    assert stages(tried())["routers (fit)"].trainable == LAYERS * 2 * (WIDTH + 1)


def test_longer_rows_and_larger_batches_keep_more(clock: None) -> None:
    short = stages(tried())["glad"].activations
    rows = [dataclasses.replace(row, instruction=row.instruction + " car" * 60) for row in small.rows()]
    assert stages(tried(rows=rows))["glad"].activations > 2 * short
    double = dataclasses.replace(FIT, glad=dataclasses.replace(FIT.glad, batch_size=4))
    assert 1.5 * short < stages(tried(double))["glad"].activations < 2.5 * short


def test_layers_below_the_first_routed_one_keep_nothing(clock: None) -> None:
    upper = dataclasses.replace(FIT, adapter=dataclasses.replace(FIT.adapter, layers_from=0.5))
    assert stages(tried(upper))["glad"].activations < 0.7 * stages(tried())["glad"].activations


# time


def test_times_are_those_of_the_steps_that_were_tried(clock: None) -> None:
    """The clock is looked at before and after, so that every step and every check takes one second."""
    found = tried()
    glad = stages(found)["glad"]
    assert (glad.seconds_per_step, glad.seconds_per_check) == (1.0, 1.0)
    assert glad.seconds == 6 + 3
    assert stages(found)["balance"].seconds == pytest.approx(3 * 6 / 6)  # shifts, prompts, of so many that were tried
    assert found.seconds == pytest.approx(sum(stage.seconds for stage in found.stages))


# memory


def test_what_does_not_fit_is_not_tried(clock: None, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tried()
    monkeypatch.setattr(module, "fit_routers", None)
    found = tried(available=whole.weights + 1)
    assert not found.fits
    assert found.seconds is None
    assert [stage.seconds_per_step for stage in found.stages if stage.stage != "balance"] == [None] * 3
    assert [stage.steps for stage in found.stages] == [stage.steps for stage in whole.stages]
    assert found.stages[0].activations == pytest.approx(whole.stages[0].activations, rel=0.25)


def test_a_run_fits_if_its_peak_does(clock: None) -> None:
    found = tried()
    assert found.memory == found.weights + max(stage.memory for stage in found.stages)
    assert dataclasses.replace(found, available=found.memory).fits
    assert not dataclasses.replace(found, available=found.memory - 1).fits


def test_weights_are_known_without_loading_them(tmp_path: Path) -> None:
    folder, base = small.save_base(tmp_path / "model"), small.base()
    parameters = sum(p.numel() for p in base.parameters())
    for kind, width in (("float32", 4), ("bfloat16", 2), (None, 4)):
        found = weigh(folder, dtype=kind, device="cpu", quantize=None)
        assert (found.parameters, found.weights) == (parameters, width * parameters)
        assert found.fits
    assert weigh(folder, dtype="auto", device="cpu", quantize=None).dtype == "float32"
    assert all(p.is_meta for p in empty_base(folder).parameters())
    with pytest.raises(ModelError):
        weigh(str(tmp_path / "nix"), dtype=None, device="cpu", quantize=None)


def test_quantized_weights_are_those_of_linear_layers(tmp_path: Path) -> None:
    """The rest, the vocabulary's two matrices among it, is bfloat16."""
    folder, base = small.save_base(tmp_path / "model"), small.base()
    inside = sum(p.numel() for name, p in base.named_parameters() if "_proj" in name)
    outside = sum(p.numel() for p in base.parameters()) - inside
    for way, width in (("8bit", 1), ("4bit", 0.5625), ("torchao-8bit", 1), ("torchao-4bit", 0.625)):
        found = weigh(folder, dtype=None, device="cpu", quantize=way)
        assert (found.dtype, found.weights, found.lighter) == (way, round(width * inside + 2 * outside), {})


def test_of_an_offloaded_base_what_lies_on_the_device_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three layers one stays, one passes through."""
    monkeypatch.setenv("MOGU_CACHE", str(tmp_path / "cache"))
    folder, base = small.save_base(tmp_path / "model"), small.base()
    layer = 4 * sum(p.numel() for p in base.model.layers[0].parameters())
    rest = 4 * sum(p.numel() for p in base.parameters()) - LAYERS * layer
    found = weigh(folder, dtype=None, device="cpu", quantize=None, offload=str(rest + 2 * layer))
    assert (found.weights, found.lighter) == (rest + 2 * layer, {})
    streamed = load_base(folder, device="cpu", offload=str(rest + 2 * layer))[0]
    tried_ = estimate(streamed, small.tokenizer(), small.rows(), FIT, model_name="tiny", batch_size=4, available=PLENTY)
    whole = tried()
    assert whole.weights - tried_.weights == layer
    assert tried_.seconds is not None
    assert tried_.stages[0].activations < whole.stages[0].activations  # layers are computed again in backward
    assert set(whole.lighter) == {"--quantize 8bit", "--quantize 4bit", "--offload auto"}
    assert whole.lighter["--offload auto"] == rest + layer


# errors


def test_what_training_would_refuse_is_refused() -> None:
    with pytest.raises(TrainingError, match="the data has no benign row in the validation split"):
        tried(rows=[row for row in small.rows() if (row.split, row.label) != ("validation", "benign")])


def test_a_fit_of_too_many_rows_is_refused(clock: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mogu.train.fit._MAX_TOKENS", 10)
    with pytest.raises(TrainingError, match=r"are too many for one fitting pass; set data.limit in the recipe"):
        tried()


# what people read


def made(**changes: Any) -> Estimate:
    glad = StageEstimate(
        stage="glad",
        trainable=184_320,
        steps=114,
        rows_per_step=8,
        rows_per_forward=8,
        seconds_per_step=2.0,
        checks=12,
        seconds_per_check=1.0,
        gradients=4 * 184_320,
        optimizer=8 * 184_320,
        activations=2**30,
    )
    values: dict[str, Any] = {
        "model": "smollm2",
        "parameters": 134_515_008,
        "dtype": "float32",
        "device": "cpu",
        "weights": 513 * 2**20,
        "available": 20 * 2**30,
        "layers": (0, 1, 2),
        "depth": 3,
        "stages": (glad,),
        "lighter": {"--quantize 8bit": 160 * 2**20, "--quantize 4bit": 110 * 2**20, "--offload auto": 120 * 2**20},
    }
    return Estimate(**{**values, **changes})


BATCHES = dataclasses.replace(FIT, glad=dataclasses.replace(FIT.glad, batch_size=8, accumulation=2))


def test_the_table_has_a_line_for_each_stage() -> None:
    header, line = text_table(made())
    assert dict(zip(header, line, strict=True)) == {
        "stage": "glad",
        "trainable": "184.3 k",
        "steps": "114",
        "rows/step": "8",
        "s/step": "2.00",
        "time at most": "4 min",
        "gradients": "720.0 KiB",
        "optimizer": "1.4 MiB",
        "activations": "1.0 GiB",
    }


def test_the_conclusion_says_base_memory_and_time() -> None:
    assert conclusion(made(), BATCHES) == [
        "base:   smollm2, 134.5 M parameters, float32 on cpu; 3 of 3 layers routed",
        "memory: 1.5 GiB at the peak, 513.0 MiB of it weights; 20.0 GiB available",
        "time:   4 min at most, without loading the model and building data",
    ]


def test_where_it_does_not_fit_each_way_out_has_its_size() -> None:
    lines = conclusion(made(available=2**30), BATCHES)
    assert lines[lines.index("") + 1] == "It does not fit. Alone or together:"
    assert lines[lines.index("") + 2 :] == [
        "  recipe: glad.batch_size: 1 and glad.accumulation: 16, the same steps in smaller forwards: about 643.1 MiB",
        "  recipe: compute.gradient_checkpointing: true, layers computed again in backward; slower: about 1.2 GiB",
        "  recipe: compute.bf16: true, products in bfloat16: about 1.2 GiB",
        "  recipe: adapter.layers_from: 0.5, nothing is kept below the first routed layer: about 1.0 GiB",
        "  --dtype bfloat16, half the weights: about 1.3 GiB",
        "  --quantize 8bit: about 1.2 GiB",
        "  --quantize 4bit: about 1.1 GiB",
        "  --offload auto, layers wait in main memory or on disk; slower: about 1.1 GiB",
        "  a smaller model, or a machine with more memory",
    ]


def test_advice_leaves_out_what_is_done_already() -> None:
    single = dataclasses.replace(FIT, glad=dataclasses.replace(FIT.glad, batch_size=1))
    found = made(dtype="4bit", layers=(2,), lighter={})
    assert advice(found, single) == ["a smaller model, or a machine with more memory"]


def test_weights_that_do_not_fit_are_said_without_stages() -> None:
    lines = conclusion(made(stages=(), layers=(), available=2**20), FIT)
    assert lines[0] == "base:   smollm2, 134.5 M parameters, float32 on cpu"
    assert lines[1].startswith("memory: 513.0 MiB at the peak")
    assert any("--quantize 4bit" in line for line in lines)
    assert not any(line.startswith("time") for line in lines)


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (count(999), "999"),
        (count(6_700_000_000), "6.7 G"),
        (size(1023), "1023"),
        (size(2**20), "1.0 MiB"),
        (duration(0.1), "1 s"),
        (duration(88.9), "89 s"),
        (duration(90), "2 min"),
        (duration(5_400), "1 h 30 min"),
    ],
)
def test_numbers_are_short(shown: str, text: str) -> None:
    assert shown == text


def test_a_v2_recipe_is_tried_without_its_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mogu.train.layers.probe_layers", None)
    shape = dataclasses.replace(FIT.adapter, layers="probe", layers_budget=0.34)
    routers = dataclasses.replace(FIT.routers, epochs=1, rows=4, batch_size=2, accumulation=1)
    backbone = BackboneRecipe(modules=("q", "o"), rank=2)
    found = tried(dataclasses.replace(FIT, adapter=shape, routers=routers, backbone=backbone))
    assert found.layers == (2,)
    stages = {stage.stage: stage.trainable for stage in found.stages}
    probes = 2 * (WIDTH + 1)
    assert stages["routers (fit)"] == probes
    assert stages["routers"] == probes + 2 * 2 * (WIDTH + WIDTH)
    assert stages["glad"] == 2 * (WIDTH + WIDTH)
