"""A task's rows beside what brings security back."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import small

from mogu.data.mix import mix, security_rows, task_rows
from mogu.data.rows import Row, read_rows, write_jsonl
from mogu.errors import DataError

SECURITY = small.rows()


def task(folder: Path, count: int = 40, **more: str) -> list[Row]:
    records = [
        {"instruction": "Turn it into French:", "input": f"word {n}", "output": f"mot {n}", **more}
        for n in range(count)
    ]
    write_jsonl(folder / "task.jsonl", records)
    return task_rows(str(folder / "task.jsonl"))


def test_task_rows_are_benign_and_keep_their_answers(tmp_path: Path) -> None:
    rows = task(tmp_path)
    assert [(row.instruction, row.glad) for row in rows[:2]] == [
        ("Turn it into French:\n\nword 0", "mot 0"),
        ("Turn it into French:\n\nword 1", "mot 1"),
    ]
    assert {(row.label, row.source, row.category, row.borderline) for row in rows} == {
        ("benign", "task.jsonl", "task", False)
    }
    assert set(Counter(row.split for row in rows)) == {"train", "validation", "test"}
    assert all(row.unwill for row in rows)
    assert {row.split for row in task(tmp_path, split="train")} == {"train"}


def test_what_is_wrong_with_a_task(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "t.jsonl", [{"prompt": "a", "response": "b"}, {"prompt": "c"}])
    with pytest.raises(DataError, match=r"t.jsonl, row 2: no answer; give it one of the fields response, output"):
        task_rows(str(tmp_path / "t.jsonl"))
    with pytest.raises(DataError, match=r"row 1: split must be one of train, validation, test, not 'dev'"):
        task(tmp_path, split="dev")


def test_all_of_both_sides_and_a_manifest(tmp_path: Path) -> None:
    rows = mix(task(tmp_path), SECURITY, tmp_path / "out", inputs={"task": "task.jsonl"})
    assert rows == read_rows(tmp_path / "out")
    assert len(rows) == 40 + len(SECURITY)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["inputs"]["task"] == "task.jsonl"
    assert manifest["inputs"]["share"] is None
    assert {"source": "task.jsonl", "label": "benign", "rows": 40, "licence": "the user's"} in manifest["sources"]
    assert len(manifest["sha256"]) == 16


@pytest.mark.parametrize(("share", "expected"), [(0.5, (20, 20)), (0.2, (5, 20)), (0.9, (30, 3))])
def test_a_share_of_the_training_rows(tmp_path: Path, share: float, expected: tuple[int, int]) -> None:
    rows = task(tmp_path, 30, split="train")
    mixed = mix(rows, SECURITY, tmp_path / "out", share=share)
    train = [row for row in mixed if row.split == "train"]
    counts = Counter(row.source for row in train)
    assert (counts["task.jsonl"], counts["small"]) == expected
    assert [row for row in mixed if row.split != "train"] == [row for row in SECURITY if row.split != "train"]
    assert mixed == mix(rows, SECURITY, tmp_path / "again", share=share)


def test_twins_stay_together_and_shared_instructions_are_the_tasks(tmp_path: Path) -> None:
    rows = task(tmp_path, 30, split="train")
    bad = next(row for row in SECURITY if row.twin)
    kept = [row for row in mix(rows, SECURITY, tmp_path / "out", share=0.8) if row.split == "train"]
    ids = {row.id for row in kept}
    assert len([row for row in kept if row.twin and row.twin not in ids]) <= 1  # where the count cuts a pair
    copy = [*rows, Row(**{**rows[0].__dict__, "id": "same", "instruction": bad.instruction})]
    mixed = mix(copy, SECURITY, tmp_path / "out")
    assert [row.id for row in mixed if row.instruction == bad.instruction] == ["same"]


def test_built_in_seeds_need_no_model() -> None:
    rows = security_rows(None)
    assert {("borderline" if row.borderline else row.label) for row in rows} == {"malicious", "borderline"}
    assert all(row.glad and row.unwill for row in rows if row.split == "train")


def test_a_share_that_is_none(tmp_path: Path) -> None:
    for share in (0.0, 1.0):
        with pytest.raises(DataError, match="must lie between 0 and 1"):
            mix(task(tmp_path), SECURITY, tmp_path / "out", share=share)
    with pytest.raises(DataError, match="no security row in the training split"):
        mix(task(tmp_path), [], tmp_path / "out")
    assert not (tmp_path / "out").exists()
