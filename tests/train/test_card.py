"""The model card: front matter that the hub can read, figures, and no path of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load

from mogu.recipe import Recipe
from mogu.train.card import hub_id, model_card, public_name

RECORD: dict[str, Any] = {
    "model": "Qwen/Qwen2.5-0.5B-Instruct",
    "recipe": "mine",
    "seed": 3,
    "shift": -0.4,
    "layers": [11, 12, 13],
    "data": "abc",
    "rows": 100,
    "versions": {"torch": "2.13.0"},
}


def rate(value: float) -> dict[str, float]:
    return {"rate": value, "low": value / 2, "high": (1 + value) / 2}


def system(refused: float) -> dict[str, Any]:
    return {"n": 60, "rates": {"refusal": rate(refused), "complied": rate(0.1), "degenerate": rate(0.0)}}


SUMMARY: dict[str, Any] = {
    "suites": [
        {
            "name": "held-out malicious",
            "kind": "malicious",
            "n": 60,
            "systems": {"none": system(0.1), "mogu": system(0.9)},
        },
        {"name": "held-out benign", "kind": "benign", "n": 60, "systems": {"none": system(0.0), "mogu": system(0.05)}},
    ]
}


def card(tmp_path: Path, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], str]:
    """Front matter as the hub's own reader has it, and the text."""
    (tmp_path / "README.md").write_text(model_card(*args, **kwargs))
    text = (tmp_path / "README.md").read_text()
    return metadata_load(tmp_path / "README.md"), text


def test_the_front_matter_names_base_library_and_tags(tmp_path: Path) -> None:
    found, _ = card(tmp_path, Recipe(), RECORD)
    assert found == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "base_model": "Qwen/Qwen2.5-0.5B-Instruct",
        "base_model_relation": "adapter",
        "tags": ["mogu", "safety", "refusal", "routing"],
    }


def test_the_hub_reads_the_figures(tmp_path: Path) -> None:
    _, text = card(tmp_path, Recipe(), RECORD, SUMMARY)
    results = ModelCard(text).data.eval_results
    assert [(one.dataset_name, one.metric_type, one.metric_value) for one in results] == [
        ("held-out malicious", "refusal-rate", 0.9),
        ("held-out benign", "refusal-rate", 0.05),
    ]
    assert ModelCard(text).data.model_name == "MoGU on Qwen/Qwen2.5-0.5B-Instruct"


def test_people_read_the_figures_of_both_systems(tmp_path: Path) -> None:
    _, text = card(tmp_path, Recipe(), RECORD, SUMMARY)
    assert "| held-out malicious | 60 | base | 10% (5–55) | 10% (5–55) | 0% (0–50) |" in text
    assert "| held-out malicious | 60 | with this adapter | 90% (45–95) | 10% (5–55) | 0% (0–50) |" in text
    assert "Nothing was measured" not in text
    assert "Nothing was measured" in card(tmp_path, Recipe(), RECORD)[1]


def test_how_it_was_made_is_told(tmp_path: Path) -> None:
    _, text = card(tmp_path, Recipe(), RECORD)
    for line in (
        "| recipe | mine (beside this file as `recipe.yaml`) |",
        "| routed layers | 11–13 (3) |",
        "| shift of the router logits | -0.4 |",
        "| training data | 100 rows, hash abc |",
        "| seed | 3 |",
        "| versions | torch 2.13.0 |",
    ):
        assert line in text


def test_an_imported_adapter_tells_what_it_knows(tmp_path: Path) -> None:
    _, text = card(tmp_path, Recipe(), {"model": "a/b", "versions": {"torch": "2"}})
    assert "| versions | torch 2 |" in text
    assert "routed layers" not in text


def test_a_local_base_goes_by_its_name_and_is_no_base_model(tmp_path: Path) -> None:
    folder = tmp_path / "private" / "my-llama"
    folder.mkdir(parents=True)
    found, text = card(tmp_path, Recipe(), {**RECORD, "model": str(folder)}, SUMMARY)
    assert "base_model" not in found
    assert "# MoGU adapter for my-llama" in text
    assert "private" not in text


def test_the_embedded_model_has_its_hub_name_and_licence(tmp_path: Path) -> None:
    found, text = card(tmp_path, Recipe(), {**RECORD, "model": "smollm2"}, place="me/mine")
    assert (found["base_model"], found["license"]) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")
    assert "mogu.load('smollm2', adapter=snapshot_download('me/mine'))" in text


def test_the_example_is_python(tmp_path: Path) -> None:
    for place in (None, "me/mine"):
        _, text = card(tmp_path, Recipe(), RECORD, place=place)
        compile(text.split("```python\n")[1].split("```")[0], "card", "exec")


@pytest.mark.parametrize(
    ("model", "found"),
    [
        ("smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"),
        ("./mine", None),
        ("/models/mine", None),
        ("~/mine", None),
        ("mine", None),
        ("a/b/c", None),
        ("mine/model Q4.gguf", None),
    ],
)
def test_what_a_base_is_called_on_the_hub(model: str, found: str | None) -> None:
    assert hub_id(model) == found


def test_a_folder_that_looks_like_an_id_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub_id("models/mine") is None
    assert public_name("models/mine") == "mine"
