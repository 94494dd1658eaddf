"""One row, one truth: an instruction, what it is, and both answers to it.

A data set is a folder with ``rows.jsonl`` and ``manifest.json``. There are no parallel label files to get out of step.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from mogu.errors import DataError

Label = Literal["benign", "malicious"]
Split = Literal["train", "validation", "test"]

LABELS: tuple[str, ...] = get_args(Label)
SPLITS: tuple[str, ...] = get_args(Split)
ROWS_FILE = "rows.jsonl"
MANIFEST_FILE = "manifest.json"


@dataclass(frozen=True)
class Instruction:
    """An instruction before it has answers."""

    id: str
    instruction: str
    label: Label
    source: str
    split: Split
    category: str = ""
    """Harm category, task type, or kind of harmlessness."""
    borderline: bool = False
    """Benign, but with alarming words."""
    twin: str = ""
    """Id of the row that differs in few words and has the other label."""


@dataclass(frozen=True)
class Row(Instruction):
    """An instruction with the answer of the glad responder and that of the unwilling one.

    Only training rows need answers.
    """

    glad: str = ""
    unwill: str = ""

    @property
    def wanted(self) -> str:
        """The answer that a safe and useful model gives."""
        return self.unwill if self.label == "malicious" else self.glad


def instruction_of(row: Row) -> Instruction:
    """The row without its answers."""
    return Instruction(**{f.name: getattr(row, f.name) for f in dataclasses.fields(Instruction)})


def read_rows(folder: str | Path) -> list[Row]:
    """Rows of a built data set, checked.

    Raises:
        DataError: Missing file or a bad row, with file and line.
    """
    path = Path(folder) / ROWS_FILE
    if not path.is_file():
        raise DataError(f"no {ROWS_FILE} in {folder}; build it: mogu data build --out {folder}")
    rows: list[Row] = []
    seen: dict[str, int] = {}
    for number, record in read_jsonl(path):
        row = _row(record, f"{path}:{number}")
        if row.id in seen:
            raise DataError(f"{path}:{number}: id {row.id!r} was already used in line {seen[row.id]}")
        seen[row.id] = number
        rows.append(row)
    return rows


def _row(record: dict[str, Any], where: str) -> Row:
    known = {f.name: f for f in dataclasses.fields(Row)}
    for name in record:
        if name not in known:
            raise DataError(f"{where}: unknown field {name!r}; known: {', '.join(known)}")
    answers = ("glad", "unwill") if record.get("split") == "train" else ()
    for name in ("id", "instruction", "label", "source", "split", *answers):
        if not isinstance(record.get(name), str) or not record[name].strip():
            raise DataError(f"{where}: field {name!r} must be a non-empty string")
    if not isinstance(record.get("borderline", False), bool):
        raise DataError(f"{where}: field 'borderline' must be true or false")
    if record["label"] not in LABELS:
        raise DataError(f"{where}: label must be one of {', '.join(LABELS)}, not {record['label']!r}")
    if record["split"] not in SPLITS:
        raise DataError(f"{where}: split must be one of {', '.join(SPLITS)}, not {record['split']!r}")
    return Row(**record)


def read_jsonl(path: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    """(line number, object) of each non-empty line.

    Raises:
        DataError: Unreadable file, or a line that is no JSON object.
    """
    try:
        # Not splitlines(): it also splits at U+2028 and others, which JSON writes as they are.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not JSON: {error.msg}") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}:{number}: expected a JSON object, found {type(record).__name__}")
        yield number, record


def write_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write ``records``, one a line, under a temporary name first."""
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def resume_jsonl(path: Path, header: dict[str, Any]) -> list[dict[str, Any]]:
    """Records after the first line of a file that an interrupted job was appending to, ready to be appended to again.

    If there is none, or its first line is not ``header`` (a job of other inputs), a new one is begun.
    """
    if path.is_file():
        lines = path.read_text(encoding="utf-8").split("\n")
        # An interrupted write leaves a last line without its end; dropping it costs one record.
        write_text(path, "".join(line + "\n" for line in lines[:-1]))
        records = [record for _, record in read_jsonl(path)]
        if records and records[0] == header:
            return records[1:]
    write_jsonl(path, [header])
    return []


def write_text(path: Path, text: str) -> None:
    """Write a file in one step: it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=path.name + ".", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    """The process's umask, which ``mkstemp`` ignores; it can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def fingerprint(instructions: Sequence[Instruction]) -> str:
    """Short hash of a set of instructions, in order."""
    text = json.dumps([dataclasses.asdict(i) for i in instructions], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
