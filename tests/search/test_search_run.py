"""A search on a tiny model: interrupted, gone on with, picked from, and what it leaves is what its recipe gives."""

from __future__ import annotations

import dataclasses
import gc
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import small
import torch
from safetensors.torch import load_file

from mogu.errors import ConfigError
from mogu.recipe import Recipe, SearchRecipe
from mogu.search import run as module
from mogu.search.run import JOURNAL_FILE, PARETO_FILE, search
from mogu.train.run import train

pytest.importorskip("optuna")

SEARCH = SearchRecipe(rates=(1.0, 2.0), checkpoints=(4.0, 8.0), on_target=0.0, first_prompts=1, broken=1.0)
RECIPE = dataclasses.replace(small.RECIPE, search=SEARCH)
ROWS = small.rows()
TRIALS = 3


def run(out: Path, trials: int = TRIALS, recipe: Recipe = RECIPE, **more: Any) -> module.Found:
    torch.manual_seed(99)  # a search seeds itself; what came before must not matter
    base = more.pop("base", None) or small.base()
    options = {"model_name": "tiny", "batch_size": 4, **more}
    return search(base, small.tokenizer(), ROWS, recipe, out, trials=trials, **options)


def timeless(found: module.Found) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(found.summary))
    for trial in plain["trials"]:
        del trial["seconds"]
    return plain


@pytest.fixture(scope="module", autouse=True)
def quick_collection() -> Iterator[None]:
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, module.Found]:
    out = tmp_path_factory.mktemp("whole")
    return out, run(out)


def test_the_first_trial_is_the_recipe_and_others_differ(whole: tuple[Path, module.Found]) -> None:
    trials = whole[1].summary["trials"]
    assert [trial["number"] for trial in trials] == list(range(TRIALS))
    assert trials[0]["changes"] == {}
    assert all(trial["changes"] for trial in trials[1:])
    assert all([m["shift"] for m in trial["members"]] == [-1.0, 0.0, 1.0] for trial in trials)


def test_only_validation_prompts_are_measured_on(whole: tuple[Path, module.Found]) -> None:
    validation = [row for row in ROWS if row.split == "validation"]
    prompts = whole[1].summary["prompts"]
    assert prompts == {"malicious": 2, "benign": 2, "borderline": 2}
    assert sum(prompts.values()) <= len(validation)


def test_equal_stages_are_trained_once(whole: tuple[Path, module.Found]) -> None:
    """Each learning rate and responder is one training, whatever checkpoints are taken from it."""
    out, found = whole
    work = [path.name for path in (out / "search" / "stages").glob("*.work")]
    rates = {trial["changes"].get("learning rate") for trial in found.summary["trials"]}
    assert len(work) == 2 * len(rates)
    steps = [json.loads(line) for path in (out / "search").rglob("training.jsonl") for line in path.open()]
    last = [(line["stage"], line["step"]) for line in steps if line["step"] == 6]
    assert len(last) <= 2 * len(rates)


def test_a_run_of_the_picked_recipe_makes_the_adapter_that_the_search_left(
    whole: tuple[Path, module.Found], tmp_path: Path
) -> None:
    out, found = whole
    for folder in (out, tmp_path):
        train(small.base(), small.tokenizer(), ROWS, found.recipe, folder, model_name="tiny", batch_size=4)
    assert not (out / "training.jsonl").exists()  # nothing was left to train
    one, two = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (out, tmp_path))
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


@pytest.mark.parametrize(("step", "after"), [("trial 0 measure", 4), ("trial 1 unwill", 1), ("trial 2 routers", 1)])
def test_an_interrupted_search_ends_in_the_same_set(
    tmp_path: Path, whole: tuple[Path, module.Found], step: str, after: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, progress=small.Interrupts(step, after))
    with (tmp_path / "search" / JOURNAL_FILE).open("a") as journal:
        journal.write('{"op_code":5,"trial_')  # as a power cut may leave it
    again = small.Interrupts()
    assert timeless(run(tmp_path, progress=again)) == timeless(whole[1])
    first = int(step.split()[1])
    assert not [began for began in again.began if began.startswith("trial") and int(began.split()[1]) < first]
    if step.endswith("measure"):
        assert "trial 0 glad" not in again.began


def test_fewer_trials_first_and_more_later_is_the_same(tmp_path: Path, whole: tuple[Path, module.Found]) -> None:
    run(tmp_path, 1)
    assert timeless(run(tmp_path)) == timeless(whole[1])
    again = small.Interrupts()
    run(tmp_path, 2, progress=again)
    assert again.began == []


def test_another_pick_needs_no_trial(whole: tuple[Path, module.Found]) -> None:
    out, found = whole
    again = small.Interrupts()
    last = len(found.summary["members"])
    picked = run(out, rule=str(last), progress=again)
    assert again.began == []
    assert picked.summary["picked"] == last
    member = picked.summary["members"][-1]
    assert picked.recipe.balance.shifts == (member["shift"],)
    assert json.loads((out / "search" / PARETO_FILE).read_text())["picked"] == last
    record = json.loads((out / "search" / "trials" / f"{member['trial']:04}" / "record.json").read_text())
    assert json.loads((out / "stages" / "routers.json").read_text())["inputs"] == record["stages"]["routers"]
    with pytest.raises(ConfigError, match=f"--pick {last + 1}: the Pareto set has members 1 to {last}"):
        run(out, rule=str(last + 1))


def test_the_base_comes_back_as_it_was(whole: tuple[Path, module.Found]) -> None:
    before, after = small.base().state_dict(), whole[1].base.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_another_recipe_in_the_same_folder_is_refused(whole: tuple[Path, module.Found]) -> None:
    with pytest.raises(ConfigError, match="holds a search of another recipe; choose another --out or delete it"):
        run(whole[0], recipe=dataclasses.replace(RECIPE, seed=1))
    with pytest.raises(ConfigError, match="another model"):
        run(whole[0], model_name="other")


def test_a_responder_off_target_ends_its_trial_but_never_the_first(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, search=dataclasses.replace(SEARCH, on_target=1.0))
    found = run(tmp_path, 2, recipe)
    first, second = found.summary["trials"]
    assert (first["given_up"], len(first["members"])) == (None, 3)
    assert re.fullmatch(r"(glad|unwill) responder is on target in only \d+% of answers", second["given_up"])
    assert second["members"] == []
    assert {member["trial"] for member in found.summary["members"]} == {0}


def test_a_rate_that_does_not_train_ends_its_trial(tmp_path: Path) -> None:
    rates = dataclasses.replace(SEARCH, rates=(1.0, 1e60), checkpoints=())
    found = run(tmp_path, 3, dataclasses.replace(RECIPE, search=rates))
    diverged = [t for t in found.summary["trials"] if "learning rate" in t["changes"]]
    assert diverged
    assert all(trial["given_up"].startswith("does not train: the ") for trial in diverged)


def test_published_routers_are_searched_too(tmp_path: Path) -> None:
    recipe = dataclasses.replace(small.RANDOM, search=SEARCH)
    found = run(tmp_path, 2, recipe)
    assert [m["shift"] for m in found.summary["trials"][0]["members"]] == [-0.5, 0.0, 0.5, 1.0, 1.5]
    assert {"penalty weight", "router rate", "borderline share"} <= set(found.summary["trials"][1]["changes"])
