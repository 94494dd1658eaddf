"""Instructions from the user's files: three formats, splits that stay, and bad rows named by file and line."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from mogu.data.build import choose_instructions
from mogu.data.sources import load_instructions, read_prompts, seed_instructions
from mogu.errors import DataError

TEXTS = ["Bake a cake", "Plant a tree, then water it", 'Say "hello"']


def jsonl(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def texts(source: object, label: str = "benign") -> list[str]:
    return [one.instruction for one in load_instructions(str(source), label)]  # type: ignore[arg-type]


# formats


@pytest.mark.parametrize("field", ["instruction", "prompt", "goal", "question", "text", "behavior"])
def test_jsonl_knows_the_usual_fields(tmp_path: Path, field: str) -> None:
    assert texts(jsonl(tmp_path / "a.jsonl", *({field: text} for text in TEXTS))) == TEXTS


def test_csv_with_header_quotes_and_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    lines = ["goal,category", "Bake a cake,food", '"Plant a tree, then water it",garden', '"Say ""hello""",']
    path.write_text("\n".join(lines), encoding="utf-8-sig")
    found = load_instructions(str(path), "benign")
    assert [one.instruction for one in found] == TEXTS
    assert [one.category for one in found] == ["food", "garden", ""]


def test_text_has_one_instruction_a_line_and_blank_lines_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n".join(["Bake a cake", "", "  Plant a tree, then water it ", 'Say "hello"', " "]))
    assert texts(path) == TEXTS


def test_a_field_can_be_named_after_the_file(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"instruction": "no", "ask me": "Bake a cake"})
    assert texts(f"{path}:ask me") == ["Bake a cake"]


def test_a_file_with_a_colon_in_its_name_is_a_file(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a:goal.jsonl", {"instruction": "Bake a cake"})
    assert texts(path) == ["Bake a cake"]


def test_several_sources_are_joined_in_order_without_duplicates(tmp_path: Path) -> None:
    one = jsonl(tmp_path / "one.jsonl", {"prompt": "Bake a cake"}, {"prompt": "bake a CAKE"})
    two = tmp_path / "two.txt"
    two.write_text("Plant a tree\nBake a cake\n")
    assert texts(f"{one}, {two}") == ["Bake a cake", "Plant a tree"]
    assert len(texts(f"{one},seeds")) == 1 + len(seed_instructions("benign")) + len(seed_instructions("borderline"))


def test_optional_fields_are_kept(tmp_path: Path) -> None:
    record = {"id": 7, "prompt": "Bake a cake", "category": "food", "split": "test", "borderline": True}
    (one,) = load_instructions(str(jsonl(tmp_path / "a.jsonl", record)), "benign")
    assert (one.id, one.category, one.split, one.borderline) == ("7", "food", "test", True)
    assert (one.source, one.label) == ("a.jsonl", "benign")


@pytest.mark.parametrize(("value", "borderline"), [("yes", True), ("1", True), ("false", False), ("", False)])
def test_borderline_in_words(tmp_path: Path, value: str, borderline: bool) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"prompt,borderline\nBake a cake,{value}\n")
    assert load_instructions(str(path), "benign")[0].borderline is borderline


def test_prompts_of_a_suite_keep_their_other_fields(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"goal": " Bake a cake ", "type": "food", "n": 3})
    assert read_prompts(str(path)) == [{"goal": " Bake a cake ", "type": "food", "n": 3, "instruction": "Bake a cake"}]


# splits


def test_hashed_splits_stay_as_they_are(tmp_path: Path) -> None:
    """Pinned: another hash would move a user's test rows into training."""
    path = tmp_path / "a.txt"
    path.write_text("\n".join(f"Instruction number {n}" for n in range(12)))
    splits = [one.split for one in load_instructions(str(path), "benign")]
    assert "".join(split[0] for split in splits) == "ttvvtttttttt"


def test_the_hash_reads_the_text_only(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n".join(f"Instruction number {n}" for n in range(50)))
    first = {one.instruction: one.split for one in load_instructions(str(path), "benign")}
    other = jsonl(tmp_path / "b.jsonl", *({"goal": text.upper()} for text in reversed(list(first))))
    second = {one.instruction: one.split for one in load_instructions(str(other), "malicious")}
    assert {text.upper(): split for text, split in first.items()} == second


def test_hashed_splits_are_80_10_10(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n".join(f"Instruction number {n}" for n in range(2000)))
    counts = Counter(one.split for one in load_instructions(str(path), "benign"))
    assert counts["train"] / 2000 == pytest.approx(0.8, abs=0.03)
    assert counts["validation"] / 2000 == pytest.approx(0.1, abs=0.02)
    assert counts["test"] / 2000 == pytest.approx(0.1, abs=0.02)


# what is wrong


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"words": "Bake"}, "no field 'instruction' (has words); name it as FILE:FIELD"),
        ({"prompt": 5}, "field 'prompt' must be a non-empty string"),
        ({"prompt": "  "}, "field 'prompt' must be a non-empty string"),
        ({"prompt": "Bake", "split": "dev"}, "split must be train, validation or test, not 'dev'"),
        ([1], "expected a JSON object, found list"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, record: object, message: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"prompt": "Bake a cake"}, record)
    with pytest.raises(DataError) as raised:
        load_instructions(str(path), "benign")
    assert str(raised.value) == f"{path}:2: {message}"


def test_a_short_csv_row_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,prompt\n1,Bake a cake\n2\n")
    with pytest.raises(DataError) as raised:
        load_instructions(str(path), "benign")
    assert str(raised.value) == f"{path}:3: field 'prompt' must be a non-empty string"


def test_a_missing_named_field_is_named(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"prompt": "Bake a cake"})
    with pytest.raises(DataError, match=r"no field 'ask' \(has prompt\)"):
        load_instructions(f"{path}:ask", "benign")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "no benign instructions"),
        ("a.txt", "\n \n", "no benign instructions"),
        ("a.csv", "prompt\n", "no benign instructions"),
        ("a.xlsx", "x", "unknown kind of file '.xlsx'"),
    ],
)
def test_an_empty_or_unknown_file_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        load_instructions(str(tmp_path / name), "benign")


@pytest.mark.parametrize("name", ["a.csv", "a.txt", "a.jsonl"])
def test_what_is_not_utf_8_is_a_data_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"prompt\n\xff\xfe\n")
    with pytest.raises(DataError, match="cannot read"):
        load_instructions(str(tmp_path / name), "benign")


@pytest.mark.parametrize("source", ["", "nowhere.jsonl", "nowhere.jsonl:goal", " , "])
def test_no_source_is_refused_in_one_line(source: str) -> None:
    with pytest.raises(DataError) as raised:
        load_instructions(source, "malicious")
    assert "\n" not in str(raised.value)
    assert "seeds" in str(raised.value)


def test_a_suite_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no rows"):
        read_prompts(str(jsonl(tmp_path / "a.jsonl")))


# the choice


def source(folder: Path, name: str, split: str | None = None, count: int = 3, **more: object) -> str:
    splits = [split] if split else ["train", "validation", "test"]
    rows = [{"prompt": f"{name} {s} {n}", "split": s, **more} for s in splits for n in range(count)]
    return str(jsonl(folder / f"{name}.jsonl", *rows))


def test_the_same_instruction_under_both_labels_is_refused(tmp_path: Path) -> None:
    bad = source(tmp_path, "bad")
    good = jsonl(tmp_path / "good.jsonl", {"prompt": "BAD train 1", "split": "train"})
    with pytest.raises(DataError, match=r"good\.jsonl: 'BAD train 1' is given as benign and as malicious"):
        choose_instructions(str(good), bad)


@pytest.mark.parametrize(("split", "label"), [("train", "benign"), ("validation", "malicious")])
def test_an_empty_class_is_refused(tmp_path: Path, split: str, label: str) -> None:
    whole = {"benign": source(tmp_path, "good"), "malicious": source(tmp_path, "bad")}
    others = [s for s in ("train", "validation") if s != split]
    whole[label] = ",".join(source(tmp_path, f"{label}-{s}", s) for s in others)
    with pytest.raises(DataError, match=f"no {label} instruction in the {split} split"):
        choose_instructions(**whole)


def test_an_empty_test_split_is_allowed(tmp_path: Path) -> None:
    good = source(tmp_path, "good", "train") + "," + source(tmp_path, "good2", "validation")
    found = choose_instructions(good, source(tmp_path, "bad"))
    assert {one.split for one in found if one.label == "benign"} == {"train", "validation"}


def test_the_limit_counts_each_kind_and_split_apart() -> None:
    chosen = choose_instructions("seeds", "seeds", 5)
    counts = Counter((one.label, one.borderline, one.split) for one in chosen)
    assert set(counts.values()) == {5}
    assert len(counts) == 9


def test_a_smaller_limit_takes_from_the_same_rows() -> None:
    few, many = choose_instructions("seeds", "seeds", 5), choose_instructions("seeds", "seeds", 9)
    assert {one.id for one in few} < {one.id for one in many}


def test_rows_of_two_files_with_the_same_name_and_ids_are_kept_apart(tmp_path: Path) -> None:
    sources = {}
    for label in ("good", "bad"):
        parts = []
        for folder in ("one", "two"):
            (tmp_path / f"{label}-{folder}").mkdir()
            path = tmp_path / f"{label}-{folder}" / "prompts.jsonl"
            rows = [{"prompt": f"{label} {folder} {s}", "split": s} for s in ("train", "validation", "test")]
            parts.append(str(jsonl(path, *rows)))
        sources[label] = ",".join(parts)
    found = choose_instructions(sources["good"], sources["bad"])
    assert len({one.id for one in found}) == len(found) == 12


def test_twins_still_find_each_other_when_a_file_uses_the_ids_of_the_seeds(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "mine.jsonl", {"id": "malicious-0301", "prompt": "Bake a cake", "split": "train"})
    found = {one.id: one for one in choose_instructions(f"{path},seeds", "seeds")}
    assert found["malicious-0301"].label == "malicious"
    assert found[found["malicious-0301"].twin].twin == "malicious-0301"
