"""A whole training run on a tiny model: what it leaves, and that an interrupted one ends in the same adapter."""

from __future__ import annotations

import dataclasses
import gc
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import small
import tiny
import torch
from safetensors.torch import load_file

from mogu.adapter.model import active_config, mogu_layers
from mogu.adapter.store import attach
from mogu.data.rows import Row
from mogu.errors import TrainingError
from mogu.recipe import Recipe, load_recipe
from mogu.respond import respond
from mogu.train import run as module
from mogu.train import watch
from mogu.train.run import LOG_FILE, Trained, train

ROWS = small.rows()
FIT, RANDOM = small.RECIPE, small.RANDOM
STEPS = 6
"""Optimizer steps of each responder in both recipes."""


def run(out: Path, recipe: Recipe = FIT, progress: Any = None, rows: Sequence[Row] = ROWS) -> Trained:
    torch.manual_seed(99)  # a run seeds itself; what came before must not matter
    return train(small.base(), small.tokenizer(), rows, recipe, out, model_name="tiny", batch_size=4, progress=progress)


def tensors(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "adapter" / "adapter_model.safetensors")


def assert_same_adapter(first: Path, second: Path) -> None:
    one, two = tensors(first), tensors(second)
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    for name in ("adapter_config.json", "mogu.json", "README.md", "recipe.yaml"):
        assert (first / "adapter" / name).read_text() == (second / "adapter" / name).read_text()


def change(recipe: Recipe, section: str, **values: Any) -> Recipe:
    return dataclasses.replace(recipe, **{section: dataclasses.replace(getattr(recipe, section), **values)})


@pytest.fixture(scope="module", autouse=True)
def quick_collection() -> Iterator[None]:
    """Trainer collects garbage twice a run, and half a run's time goes into looking at torch's own objects."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An uninterrupted run of each recipe."""
    folders = {recipe.name: tmp_path_factory.mktemp(recipe.name) for recipe in (FIT, RANDOM)}
    for recipe in (FIT, RANDOM):
        run(folders[recipe.name], recipe)
    return folders


# what a run leaves


@pytest.mark.parametrize("recipe", [FIT, RANDOM], ids=lambda recipe: recipe.name)
def test_the_adapter_folder_is_whole(whole: dict[str, Path], recipe: Recipe) -> None:
    out = whole[recipe.name]
    names = {path.name for path in (out / "adapter").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "README.md", "mogu.json", "recipe.yaml"}
    assert load_recipe(out / "adapter" / "recipe.yaml") == load_recipe(out / "recipe.yaml") == recipe
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert (config["router"], config["stage"], config["routed_tokens"]) == ("folded", "routed", 2)
    assert (config["r"], config["base_model"]) == (2, "tiny")
    assert tensors(out)


@pytest.mark.parametrize("recipe", [FIT, RANDOM], ids=lambda recipe: recipe.name)
def test_the_record_says_what_it_was_made_of(whole: dict[str, Path], recipe: Recipe) -> None:
    record = json.loads((whole[recipe.name] / "adapter" / "mogu.json").read_text())
    assert (record["model"], record["recipe"], record["seed"]) == ("tiny", recipe.name, 0)
    assert record["layers"] == [0, 1, 2]
    assert record["rows"] == len(ROWS)
    for stage in ("glad", "unwill"):
        assert [check["pairs"] for check in record["selection"][stage]] == [4, 8, 12]
        assert sum(check["chosen"] for check in record["selection"][stage]) == 1
    trials = record["selection"]["balance"]
    if len(recipe.balance.shifts) == 1:
        assert trials == []
        assert record["shift"] == 0.5
    else:
        assert [trial["shift"] for trial in trials] == [-1.0, 0.0, 1.0]
        assert [trial["shift"] for trial in trials if trial["chosen"]] == [record["shift"]]


def test_the_risk_is_calibrated_on_validation_rows(whole: dict[str, Path]) -> None:
    for name in whole:
        risk = json.loads((whole[name] / "adapter" / "adapter_config.json").read_text())["risk"]
        assert risk["prompt"]["n"] == sum(row.split == "validation" for row in ROWS)
        assert [len(risk[position]["weight"]) for position in ("prompt", "answer")] == [tiny.LAYERS] * 2


def test_checkpoints_are_cleaned_up_and_stages_are_kept(whole: dict[str, Path]) -> None:
    out = whole["tiny-random"]
    assert not [path for path in out.rglob("*") if "checkpoint-" in path.name or path.name.endswith((".work", ".tmp"))]
    assert {path.name for path in (out / "stages").iterdir()} == {
        "risk.json",
        *(f"{stage}.{kind}" for stage in ("glad", "unwill", "routers") for kind in ("json", "safetensors")),
    }


def test_the_log_holds_every_stage_that_was_trained(whole: dict[str, Path]) -> None:
    for name, stages in (("tiny", {"glad", "unwill"}), ("tiny-random", {"glad", "unwill", "routers"})):
        lines = [json.loads(line) for line in (whole[name] / LOG_FILE).read_text().splitlines()]
        assert {line["stage"] for line in lines} == stages
        for stage in stages:
            assert max(line["step"] for line in lines if line["stage"] == stage) == (4 if stage == "routers" else STEPS)


def test_tensorboard_gets_the_losses_of_every_stage(whole: dict[str, Path]) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for stage, steps in (("glad", [1, 5]), ("unwill", [1, 5]), ("routers", [1])):
        events = accumulator.EventAccumulator(str(whole["tiny-random"] / "tensorboard" / stage))
        events.Reload()
        assert [event.step for event in events.Scalars("train/loss")] == steps


def test_everything_was_learnt(whole: dict[str, Path]) -> None:
    for name in whole:
        found = tensors(whole[name])
        assert all(tensor.abs().max() > 0 for key, tensor in found.items()), name
        parts = {"glad_A", "glad_B", "unwill_A", "unwill_B", "glad_router.weight", "unwill_router.bias"}
        assert all(any(part in key for key in found) for part in parts)


@pytest.mark.parametrize("recipe", [FIT, RANDOM], ids=lambda recipe: recipe.name)
def test_the_saved_adapter_answers_as_the_trained_model(tmp_path: Path, recipe: Recipe) -> None:
    trained = run(tmp_path, recipe)
    loaded = attach(small.base(), trained.adapter)
    texts = [row.instruction for row in ROWS[:6]]
    answers = [respond(model, small.tokenizer(), texts, max_new_tokens=8) for model in (trained.model, loaded)]
    assert answers[0] == answers[1]
    assert not trained.model.training
    assert active_config(trained.model).shift == active_config(loaded).shift


# going on


@pytest.mark.parametrize(
    ("recipe", "step", "after"),
    [
        (FIT, "glad", 1),  # before the first checkpoint
        (FIT, "glad", 4),  # right before a checkpoint is written
        (FIT, "unwill", 5),  # inside an epoch
        (FIT, "unwill", 6),  # the last step
        (FIT, "routers", 2),
        (FIT, "balance", 2),
        (RANDOM, "routers", 3),
        (RANDOM, "routers", 4),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_an_interrupted_run_ends_in_the_same_adapter(
    tmp_path: Path, whole: dict[str, Path], recipe: Recipe, step: str, after: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, recipe, small.Interrupts(step, after))
    assert not (tmp_path / "adapter").exists()
    again = small.Interrupts()
    run(tmp_path, recipe, again)
    assert again.began[0] == step
    assert_same_adapter(tmp_path, whole[recipe.name])


def test_a_run_interrupted_between_stages_goes_on_with_the_next(tmp_path: Path, whole: dict[str, Path]) -> None:
    class Between(small.Interrupts):
        def begin(self, step: str, text: str) -> None:
            if step == "unwill":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, FIT, Between())
    again = small.Interrupts()
    run(tmp_path, FIT, again)
    assert again.began == ["unwill", "routers", "balance", "risk"]
    assert_same_adapter(tmp_path, whole["tiny"])


def test_a_run_can_be_interrupted_again_and_again(tmp_path: Path, whole: dict[str, Path]) -> None:
    for step, after in (("glad", 3), ("unwill", 5), ("unwill", 1), ("routers", 1)):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, FIT, small.Interrupts(step, after))
    run(tmp_path)
    assert_same_adapter(tmp_path, whole["tiny"])


@pytest.mark.parametrize("pairs", [4, 12])
def test_a_checkpoint_that_was_saved_but_not_checked_is_checked(
    tmp_path: Path, whole: dict[str, Path], monkeypatch: pytest.MonkeyPatch, pairs: int
) -> None:
    """Also the last one, after which nothing is left to train."""
    real = watch.check_responder

    def interrupted(ask: Any, stage: Any, rows: Any, seen: int, drift: Any) -> Any:
        if stage == "unwill" and seen == pairs:
            raise KeyboardInterrupt
        return real(ask, stage, rows, seen, drift)

    with monkeypatch.context() as patch:
        patch.setattr(watch, "check_responder", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    run(tmp_path)
    assert_same_adapter(tmp_path, whole["tiny"])


def test_an_interruption_after_the_last_check_trains_no_further(
    tmp_path: Path, whole: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(checks: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "best_checkpoint", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    again = small.Interrupts()
    run(tmp_path, FIT, again)
    assert_same_adapter(tmp_path, whole["tiny"])


def test_a_published_checkpoint_inside_an_epoch_is_where_training_ends_also_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 2 of 3 in the first epoch; a resumed Trainer would take one more."""
    recipe = change(FIT, "glad", checkpoint=4)
    run(tmp_path / "whole", recipe)

    def interrupted(*args: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(watch, "check_responder", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "broken", recipe)
    run(tmp_path / "broken", recipe)
    assert_same_adapter(tmp_path / "broken", tmp_path / "whole")
    record = json.loads((tmp_path / "broken" / "adapter" / "mogu.json").read_text())
    assert [check["pairs"] for check in record["selection"]["glad"]] == [4]


def test_a_half_written_checkpoint_is_passed_over(tmp_path: Path, whole: dict[str, Path]) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, FIT, small.Interrupts("unwill", 5))
    work = tmp_path / "stages" / "unwill.work"
    checkpoints = sorted(path.name for path in work.glob("checkpoint-*"))
    assert checkpoints == ["checkpoint-2", "checkpoint-4"]
    (work / "checkpoint-4" / "trainer_state.json").unlink()  # which Trainer writes last
    (work / "checkpoint-4" / "optimizer.pt").write_bytes(b"half")
    run(tmp_path)
    assert_same_adapter(tmp_path, whole["tiny"])


# doing again only what must be


def again(out: Path, recipe: Recipe, rows: Sequence[Row] = ROWS) -> list[str]:
    progress = small.Interrupts()
    run(out, recipe, progress, rows)
    return progress.began


@pytest.mark.parametrize("recipe", [FIT, RANDOM], ids=lambda recipe: recipe.name)
def test_a_finished_run_does_nothing_again_and_ends_in_the_same_adapter(
    tmp_path: Path, whole: dict[str, Path], recipe: Recipe
) -> None:
    run(tmp_path, recipe)
    assert again(tmp_path, recipe) == []
    assert_same_adapter(tmp_path, whole[recipe.name])


def test_a_changed_recipe_does_again_only_what_depends_on_it(tmp_path: Path) -> None:
    run(tmp_path)
    assert again(tmp_path, change(FIT, "evaluation", prompts=1)) == []
    assert again(tmp_path, change(FIT, "balance", shifts=(0.0, 2.0))) == ["balance", "risk"]
    assert again(tmp_path, change(FIT, "routers", l2=0.1)) == ["routers", "balance", "risk"]
    assert again(tmp_path, change(FIT, "unwill", epochs=1)) == ["unwill", "routers", "balance", "risk"]
    assert again(tmp_path, change(FIT, "glad", epochs=1)) == ["glad", "unwill", "routers", "balance", "risk"]
    assert again(tmp_path, change(FIT, "compute", bf16=True)) == ["glad", "unwill", "routers", "balance", "risk"]


def test_changed_data_does_everything_again(tmp_path: Path) -> None:
    run(tmp_path)
    rows = [dataclasses.replace(ROWS[0], unwill="I can't do that."), *ROWS[1:]]
    assert again(tmp_path, FIT, rows) == ["glad", "unwill", "routers", "balance", "risk"]


def test_back_to_the_first_recipe_ends_in_the_first_adapter(tmp_path: Path, whole: dict[str, Path]) -> None:
    run(tmp_path, change(FIT, "glad", learning_rate=0.1))
    run(tmp_path)
    assert_same_adapter(tmp_path, whole["tiny"])


def test_routers_interrupted_under_other_responders_are_not_gone_on_with(
    tmp_path: Path, whole: dict[str, Path]
) -> None:
    """Trainer's checkpoint holds the whole adapter: going on from it would bring the old responders back."""
    other = change(RANDOM, "glad", learning_rate=0.1)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, other, small.Interrupts("routers", 3))
    run(tmp_path, RANDOM)
    assert_same_adapter(tmp_path, whole["tiny-random"])


@pytest.mark.parametrize("broken", ["missing", "half", "foreign"])
def test_a_stage_whose_file_is_gone_or_broken_is_trained_again(
    tmp_path: Path, whole: dict[str, Path], broken: str
) -> None:
    run(tmp_path)
    path = tmp_path / "stages" / "unwill.safetensors"
    if broken == "missing":
        path.unlink()
    elif broken == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        (tmp_path / "stages" / "unwill.json").write_text("[1]")
    assert again(tmp_path, FIT)[0] == "unwill"
    assert_same_adapter(tmp_path, whole["tiny"])


# choices


def test_training_stops_at_the_first_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def good_after_eight(ask: Any, stage: Any, rows: Any, pairs: int, drift: Any) -> Any:
        return module.Checkpoint(pairs, 1.0 if pairs >= 8 else 0.0, 0.0)

    monkeypatch.setattr(watch, "check_responder", good_after_eight)
    recipe = change(FIT, "glad", stop_when_good=True)
    selection = run(tmp_path, recipe).selection
    assert [check["pairs"] for check in selection["glad"]] == [4, 8]
    assert [check["pairs"] for check in selection["unwill"]] == [4, 8, 12]
    assert [[c["chosen"] for c in selection[stage]] for stage in ("glad", "unwill")] == [
        [False, True],
        [False, True, False],
    ]


def test_the_chosen_checkpoint_is_the_one_that_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chosen is 4 pairs of 12, so the responders are those of a run that ends there."""

    def best_first(ask: Any, stage: Any, rows: Any, pairs: int, drift: Any) -> Any:
        return module.Checkpoint(pairs, 1.0 if pairs == 4 else 0.2, 0.0)

    monkeypatch.setattr(watch, "check_responder", best_first)
    run(tmp_path / "long")
    recipe = change(change(FIT, "glad", checkpoint=4), "unwill", checkpoint=4)
    run(tmp_path / "short", recipe)
    long, short = tensors(tmp_path / "long"), tensors(tmp_path / "short")
    assert all(torch.equal(long[key], short[key]) for key in long)


@pytest.mark.parametrize(("checkpoint", "taken"), [(1, 2), (8, 8), (11, 10), (999, 12)])
def test_a_published_checkpoint_is_taken_whatever_validation_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: int, taken: int
) -> None:
    def best_first(ask: Any, stage: Any, rows: Any, pairs: int, drift: Any) -> Any:
        return module.Checkpoint(pairs, 1.0 / pairs, 0.0)

    monkeypatch.setattr(watch, "check_responder", best_first)
    recipe = change(change(FIT, "glad", checkpoint=checkpoint), "balance", shifts=(0.0,))
    checks = run(tmp_path, recipe).selection["glad"]
    assert [check["pairs"] for check in checks if check["chosen"]] == [taken]
    assert checks[-1]["pairs"] == taken


def test_a_last_step_between_checkpoints_is_saved_and_checked(tmp_path: Path) -> None:
    recipe = change(FIT, "glad", checkpoint_pairs=8)  # every 4 of 6 steps
    assert [check["pairs"] for check in run(tmp_path, recipe).selection["glad"]] == [8, 12]


def test_routers_can_be_fitted_and_then_trained(tmp_path: Path, whole: dict[str, Path]) -> None:
    recipe = change(FIT, "routers", epochs=1, rows=8, batch_size=2, accumulation=1, learning_rate=1e-2)
    run(tmp_path / "whole", recipe)
    fitted, trained = tensors(whole["tiny"]), tensors(tmp_path / "whole")
    same = {key for key in fitted if torch.equal(fitted[key], trained[key])}
    assert same == {key for key in fitted if "_router" not in key}

    class Second(small.Interrupts):
        """Counts on from the fit to the training."""

        def begin(self, step: str, text: str) -> None:
            self.began.append(step)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", recipe, Second("routers", 2 * STEPS + 3 + 2))
    run(tmp_path / "broken", recipe)
    assert_same_adapter(tmp_path / "broken", tmp_path / "whole")


def test_only_the_recipes_layers_are_routed(tmp_path: Path) -> None:
    trained = run(tmp_path, change(FIT, "adapter", layers_from=0.5))
    assert [index for index, _ in mogu_layers(trained.model)] == [2]
    assert all(".layers.2." in key for key in tensors(tmp_path))


def test_pairs_are_packed_unless_the_recipe_says_no(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways learn the same, but for dropout, which draws once for what is computed once."""
    kinds: list[str] = []
    real = module.ResponderTrainer

    class Watched(real):  # type: ignore[misc, valid-type]
        def __init__(self, **kwargs: Any) -> None:
            kinds.append(type(kwargs["data_collator"]).__name__)
            super().__init__(**kwargs)

    monkeypatch.setattr(module, "ResponderTrainer", Watched)
    recipe = change(change(FIT, "adapter", dropout=0.0), "balance", shifts=(0.0,))
    run(tmp_path / "packed", recipe)
    run(tmp_path / "doubled", change(recipe, "compute", pack=False))
    assert kinds == ["PackedCollator"] * 2 + ["PairCollator"] * 2
    one, two = tensors(tmp_path / "packed"), tensors(tmp_path / "doubled")
    for key in (key for key in one if "_router" not in key):
        torch.testing.assert_close(one[key], two[key], atol=1e-4, rtol=1e-3)


def test_another_seed_gives_another_adapter(tmp_path: Path, whole: dict[str, Path]) -> None:
    run(tmp_path, dataclasses.replace(FIT, seed=1))
    one, two = tensors(tmp_path), tensors(whole["tiny"])
    assert not [key for key in one if torch.equal(one[key], two[key]) and "mogu_glad_A" in key]


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("label", ["benign", "malicious"])
def test_a_missing_class_is_said_in_one_line_before_anything_is_written(tmp_path: Path, split: str, label: str) -> None:
    rows = [row for row in ROWS if (row.split, row.label) != (split, label)]
    with pytest.raises(TrainingError) as raised:
        run(tmp_path / "out", FIT, None, rows)
    assert str(raised.value) == f"the data has no {label} row in the {split} split; add some and build it again"
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_not_finite_says_so_and_the_run_can_go_on(
    tmp_path: Path, whole: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.ResponderTrainer.compute_loss

    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = real(self, *args, **kwargs)
        return self.finite(loss * float("nan") if self.state.global_step == 3 else loss)

    with monkeypatch.context() as patch:
        patch.setattr(module.ResponderTrainer, "compute_loss", broken)
        with pytest.raises(TrainingError, match="the loss is nan at step 3; lower the learning rate"):
            run(tmp_path)
    run(tmp_path)
    assert_same_adapter(tmp_path, whole["tiny"])


# checkpoints of the routers

TRAINED = change(
    FIT, "routers", epochs=2, rows=8, batch_size=2, accumulation=1, learning_rate=1e-2, select="validation"
)


def test_validation_sees_the_start_of_end_to_end_training_and_every_pass(tmp_path: Path) -> None:
    checks = run(tmp_path, TRAINED).selection["routers"]
    assert [check["pairs"] for check in checks] == [0, 8, 16]
    assert sum(check["chosen"] for check in checks) == 1
    assert all(0 <= check["auroc"] <= 1 and check["kl"] > 0 for check in checks)
    assert len({check["kl"] for check in checks}) == 3


@pytest.mark.parametrize("best", [0, 8, 16])
def test_the_routers_that_validation_likes_best_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, best: int
) -> None:
    seen: dict[int, dict[str, torch.Tensor]] = {}

    def liked(ask: Any, rows: Any, pairs: int, *_: Any) -> Any:
        seen[pairs] = {k: v.clone() for k, v in ask.model.state_dict().items() if "_router" in k}
        return module.RouterCheckpoint(pairs, float(pairs == best), 0.0, 0.0, 0.0, None, None)

    monkeypatch.setattr(watch, "check_routers", liked)
    trained = run(tmp_path, TRAINED)
    assert [check["chosen"] for check in trained.selection["routers"]] == [pairs == best for pairs in (0, 8, 16)]
    kept = trained.model.state_dict()
    assert all(torch.equal(kept[key], value) for key, value in seen[best].items())


def test_a_checkpoint_every_so_many_rows(tmp_path: Path) -> None:
    recipe = change(TRAINED, "routers", checkpoint_rows=4)
    assert [check["pairs"] for check in run(tmp_path, recipe).selection["routers"]] == [0, 4, 8, 12, 16]


def test_selected_routers_are_the_same_after_an_interruption(tmp_path: Path) -> None:
    class Later(small.Interrupts):
        """Counts on from the fit to the training."""

        def begin(self, step: str, text: str) -> None:
            self.began.append(step)

    run(tmp_path / "whole", TRAINED)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", TRAINED, Later("routers", 2 * STEPS + 3 + 6))
    run(tmp_path / "broken", TRAINED)
    assert_same_adapter(tmp_path / "broken", tmp_path / "whole")
