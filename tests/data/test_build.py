"""Building a data set: what the base answers, what replaces a bad answer, and going on after an interruption."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import small

from mogu.data import build as module
from mogu.data.build import PARTIAL_FILE, build
from mogu.data.rows import MANIFEST_FILE, ROWS_FILE, Instruction, Row, instruction_of, read_rows
from mogu.errors import DataError

INSTRUCTIONS = [instruction_of(row) for row in small.rows()]
TO_ANSWER = [one for one in INSTRUCTIONS if one.label == "benign" and one.split == "train"]


def answer(instruction: str) -> str:
    return f"Sure, here is a {instruction.split()[-1]}"


def run(folder: Path, model: Any = None, instructions: Sequence[Instruction] = INSTRUCTIONS, **more: Any) -> list[Row]:
    options = {"model_name": "m", "batch_size": 3, "answer_tokens": 12, **more}
    return build(model or small.Canned(answer), small.tokenizer(), instructions, folder, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Stop(Exception):
    pass


def stop_after(count: int) -> Any:
    def progress(done: int, total: int) -> None:
        assert total == len(TO_ANSWER)
        if done == count:
            raise Stop

    return progress


# what is built


def test_only_benign_training_instructions_are_asked(tmp_path: Path) -> None:
    model = small.Canned(answer)
    run(tmp_path, model)
    asked = [text for batch in model.asked for text in batch]
    assert sorted(asked) == sorted(one.instruction for one in TO_ANSWER)
    assert {options["do_sample"] for options in model.options} == {False}
    assert {options["max_new_tokens"] for options in model.options} == {12}


def test_batches_are_of_the_size_asked_for_and_of_like_length(tmp_path: Path) -> None:
    model = small.Canned(answer)
    run(tmp_path, model)
    assert [len(batch) for batch in model.asked] == [3, 3, 3, 3]
    lengths = [len(text.split()) for batch in model.asked for text in batch]
    assert lengths == sorted(lengths, reverse=True)


def test_rows_keep_their_instructions_and_order(tmp_path: Path) -> None:
    rows = run(tmp_path)
    assert [instruction_of(row) for row in rows] == INSTRUCTIONS
    assert read_rows(tmp_path) == rows


def test_answers_of_training_rows_and_of_no_others(tmp_path: Path) -> None:
    for row in run(tmp_path):
        if row.split != "train":
            assert row.glad == row.unwill == ""
        else:
            assert row.unwill in small.REFUSALS
            expected = answer(row.instruction) if row.label == "benign" else small.affirmation_for(row.instruction)
            assert row.glad == expected


@pytest.mark.parametrize("bad", ["I can't help with that.", "", "a a a a a a a a a a a a"])
def test_a_refusing_or_stammering_base_answer_becomes_an_affirmation(tmp_path: Path, bad: str) -> None:
    rows = run(tmp_path, small.Canned(lambda text: bad if "paint" in text else answer(text)))
    for row in rows:
        if row.split == "train" and row.label == "benign":
            replaced = row.glad == small.affirmation_for(row.instruction)
            assert replaced == ("paint" in row.instruction)


def test_the_manifest_says_what_the_data_is(tmp_path: Path) -> None:
    run(tmp_path)
    manifest = json.loads((tmp_path / MANIFEST_FILE).read_text())
    assert manifest["counts"]["train"] == {"benign": 8, "borderline": 4, "malicious": 8}
    assert manifest["counts"]["test"] == {"benign": 3, "borderline": 2, "malicious": 3}
    assert {(s["source"], s["label"], s["rows"]) for s in manifest["sources"]} == {
        ("small", "benign", 22),
        ("small", "malicious", 14),
    }
    assert manifest["inputs"]["model"] == "m"
    assert manifest["sha256"] == manifest["inputs"]["instructions"]
    assert "torch" in manifest["versions"]


def test_progress_counts_to_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    run(tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n, 12) for n in range(1, 13)]


# going on


@pytest.mark.parametrize("count", [1, 3, 5, 11])
def test_an_interrupted_build_goes_on_to_the_same_bytes(tmp_path: Path, count: int) -> None:
    run(tmp_path / "whole")
    with pytest.raises(Stop):
        run(tmp_path / "broken", progress=stop_after(count))
    assert not (tmp_path / "broken" / ROWS_FILE).exists()
    model = small.Canned(answer)
    run(tmp_path / "broken", model)
    assert sum(map(len, model.asked)) == len(TO_ANSWER) - count
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_a_random_model_gives_the_same_bytes_too(tmp_path: Path) -> None:
    base = small.base()
    run(tmp_path / "whole", base)
    with pytest.raises(Stop):
        run(tmp_path / "broken", base, progress=stop_after(4))
    run(tmp_path / "broken", base)
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")
    assert len({row.glad for row in read_rows(tmp_path / "whole")}) > 5


@pytest.mark.parametrize("cut", [1, 9, 10_000])
def test_a_truncated_last_line_costs_one_answer_and_a_truncated_header_all(tmp_path: Path, cut: int) -> None:
    run(tmp_path / "whole")
    with pytest.raises(Stop):
        run(tmp_path / "broken", progress=stop_after(6))
    partial = tmp_path / "broken" / PARTIAL_FILE
    text = partial.read_text()
    partial.write_text(text[:-cut] if cut < len(text) else text[:20])
    model = small.Canned(answer)
    run(tmp_path / "broken", model)
    assert sum(map(len, model.asked)) == (7 if cut < len(text) else 12)
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_a_build_stopped_before_its_manifest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "whole")

    def fail(*args: Any) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_text", fail)
        with pytest.raises(Stop):
            run(tmp_path / "broken")
    model = small.Canned(answer)
    run(tmp_path / "broken", model)
    assert model.asked == []
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_a_finished_build_is_only_read(tmp_path: Path) -> None:
    rows = run(tmp_path)
    before = contents(tmp_path)
    assert set(before) == {ROWS_FILE, MANIFEST_FILE}
    model = small.Canned(answer)
    assert run(tmp_path, model) == rows
    assert model.asked == []
    assert contents(tmp_path) == before


def test_an_interrupted_build_of_other_inputs_is_begun_anew(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(tmp_path, small.Canned(lambda text: "Sure, here is a letter:"), progress=stop_after(4), model_name="other")
    model = small.Canned(answer)
    rows = run(tmp_path, model)
    assert sum(map(len, model.asked)) == len(TO_ANSWER)
    assert not any(row.glad == "Sure, here is a letter:" for row in rows)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_name": "other"}, "another model ('m', now 'other')"),
        ({"answer_tokens": 5}, "another answer_tokens (12, now 5)"),
        ({"template": "vicuna"}, "another template (None, now 'vicuna')"),
        ({"instructions": [dataclasses.replace(INSTRUCTIONS[0], id="x"), *INSTRUCTIONS[1:]]}, "another instructions"),
        ({"instructions": INSTRUCTIONS[::-1]}, "another instructions"),
    ],
)
def test_a_finished_build_of_other_inputs_is_refused(tmp_path: Path, change: dict, named: str) -> None:
    run(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(DataError) as raised:
        run(tmp_path, **change)
    assert named in str(raised.value)
    assert str(raised.value).startswith(f"{tmp_path} was built with")
    assert "\n" not in str(raised.value)
    assert contents(tmp_path) == before


def test_an_unreadable_manifest_says_what_to_do(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / MANIFEST_FILE).write_text("{")
    with pytest.raises(DataError, match="delete the folder to build it anew"):
        run(tmp_path)
