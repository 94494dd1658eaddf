"""Rows on disk: what is written is read back, and what is wrong is said with file and line."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import small

from mogu.data.rows import (
    ROWS_FILE,
    Instruction,
    fingerprint,
    instruction_of,
    read_jsonl,
    read_rows,
    write_jsonl,
    write_text,
)
from mogu.errors import DataError

GOOD = dataclasses.asdict(small.rows()[0])


def write(folder: Path, *records: dict | str) -> Path:
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    (folder / ROWS_FILE).write_text("\n".join(lines) + "\n")
    return folder / ROWS_FILE


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    rows = small.rows()
    write_jsonl(tmp_path / ROWS_FILE, map(dataclasses.asdict, rows))
    assert read_rows(tmp_path) == rows


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1e", "\r\n", "\r"])
def test_a_text_with_an_odd_line_separator_stays_one_row(tmp_path: Path, separator: str) -> None:
    row = dataclasses.replace(small.rows()[0], glad=f"one{separator}two")
    write_jsonl(tmp_path / ROWS_FILE, [dataclasses.asdict(row)])
    assert read_rows(tmp_path) == [row]


def test_validation_rows_need_no_answers_but_training_rows_do(tmp_path: Path) -> None:
    write(tmp_path, {**GOOD, "split": "validation", "glad": "", "unwill": ""})
    assert len(read_rows(tmp_path)) == 1
    path = write(tmp_path, {**GOOD, "glad": " "})
    with pytest.raises(DataError, match="field 'glad' must be a non-empty string") as raised:
        read_rows(tmp_path)
    assert str(raised.value).startswith(f"{path}:1: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "evil"}, "label must be one of benign, malicious, not 'evil'"),
        ({"split": "dev"}, "split must be one of train, validation, test, not 'dev'"),
        ({"colour": 1}, "unknown field 'colour'"),
        ({"id": 5}, "field 'id' must be a non-empty string"),
        ({"instruction": "\n"}, "field 'instruction' must be a non-empty string"),
        ({"borderline": "false"}, "field 'borderline' must be true or false"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, change: dict, message: str) -> None:
    path = write(tmp_path, GOOD, {**GOOD, "id": "other", **change})
    with pytest.raises(DataError) as raised:
        read_rows(tmp_path)
    assert str(raised.value).startswith(f"{path}:2: {message}")
    assert "\n" not in str(raised.value)


def test_a_repeated_id_is_named_by_both_lines_blank_ones_counted(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD, "", GOOD)
    with pytest.raises(DataError) as raised:
        read_rows(tmp_path)
    assert str(raised.value) == f"{path}:3: id {GOOD['id']!r} was already used in line 1"


@pytest.mark.parametrize(
    ("line", "message"), [("{", "not JSON"), ("[1]", "expected a JSON object, found list"), ("3", "found int")]
)
def test_what_is_no_object_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path, GOOD, line)
    with pytest.raises(DataError, match=message) as raised:
        list(read_jsonl(path))
    assert str(raised.value).startswith(f"{path}:2: ")


def test_no_rows_says_how_to_build_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="mogu data build --out"):
        read_rows(tmp_path / "nowhere")


def test_what_cannot_be_decoded_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / ROWS_FILE).write_bytes(b'{"id": "\xff"}\n')
    with pytest.raises(DataError, match="cannot read"):
        read_rows(tmp_path)


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / ROWS_FILE).write_text(json.dumps(GOOD), encoding="utf-8-sig")
    assert read_rows(tmp_path)[0].id == GOOD["id"]


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_text(path, "before")

    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_text(path, "after")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "before"


def test_a_written_file_is_as_open_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "new" / "file", "")
    finally:
        os.umask(before)
    assert (tmp_path / "new" / "file").stat().st_mode & 0o777 == 0o640


def test_the_wanted_answer_follows_the_label() -> None:
    for row in small.rows():
        assert row.wanted == (row.unwill if row.label == "malicious" else row.glad)


def test_the_fingerprint_knows_order_and_every_field() -> None:
    instructions = [instruction_of(row) for row in small.rows()]
    assert {type(one) for one in instructions} == {Instruction}
    seen = {fingerprint(instructions), fingerprint(instructions[::-1]), fingerprint(instructions[1:])}
    for change in ({"split": "test"}, {"category": "x"}, {"borderline": True}, {"label": "benign"}, {"id": "x"}):
        seen.add(fingerprint([dataclasses.replace(instructions[0], **change), *instructions[1:]]))
    assert len(seen) == 8
    assert fingerprint(instructions) == fingerprint([instruction_of(row) for row in small.rows()])
