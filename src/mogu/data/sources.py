"""Where instructions come from: the built-in seeds, or the user's JSONL, CSV or text files.

The seeds are written for this project: bare one-line requests, no operational detail, each with a fixed split. Pairs of
twins, a malicious request and a harmless one that differs in few words, always share a split.
"""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from importlib import resources
from pathlib import Path
from typing import Any

from mogu.data.rows import Instruction, Label, Split, read_jsonl
from mogu.errors import DataError

SEEDS = "seeds"
"""Name of the built-in source."""

_TEXT_FIELDS = ("instruction", "prompt", "goal", "question", "text", "behavior", "Behavior", "Goal")


def seed_instructions(kind: str) -> list[Instruction]:
    """Built-in seeds of one kind: ``benign``, ``malicious`` or ``borderline`` (benign with alarming words)."""
    text = (resources.files("mogu.data") / "seeds" / f"{kind}.jsonl").read_text(encoding="utf-8")
    return [
        Instruction(
            id=record["id"],
            instruction=record["instruction"],
            label="malicious" if kind == "malicious" else "benign",
            source=SEEDS,
            split=record["split"],
            category=record["category"],
            borderline=kind == "borderline",
            twin=record.get("twin", ""),
        )
        for record in map(json.loads, text.splitlines())
    ]


def load_instructions(source: str, label: Label) -> list[Instruction]:
    """Instructions of one label from ``source``.

    Args:
        source: ``"seeds"``, or files separated by commas: JSONL (one object a line), CSV with a header, or plain text
            (one instruction a line). The instruction stands in the field named ``instruction``, or ``prompt``,
            ``goal``, ``question``, ``text``, ``behavior``; ``FILE:FIELD`` names another. Optional fields:
            ``category``, ``split``, ``borderline``.
        label: What all of them are.

    Returns:
        Instructions without exact duplicates. Rows without a split get one by hash: 80% train, 10% validation, 10%
        test.

    Raises:
        DataError: Missing file, no instruction field, a bad row (with file and line), or nothing left.
    """
    found: list[Instruction] = []
    for part in (p.strip() for p in source.split(",")):
        if part == SEEDS:
            found += seed_instructions(label)
            if label == "benign":
                found += seed_instructions("borderline")
        elif part:
            found += _read_file(part, label)
    unique = {i.instruction.casefold(): i for i in reversed(found)}
    kept = [i for i in found if unique[i.instruction.casefold()] is i]
    if not kept:
        raise DataError(f"no {label} instructions in {source!r}; name a file or 'seeds'")
    return kept


def read_prompts(source: str) -> list[dict[str, Any]]:
    """Records of a file, each with the instruction under ``instruction``: for suites, which keep the other fields.

    Raises:
        DataError: As :func:`load_instructions`.
    """
    path, field = _split_field(source)
    records = _records(path)
    if not records:
        raise DataError(f"{path} holds no rows")
    return [{**record, "instruction": _instruction(record, field, f"{path}:{n}")} for n, record in records]


def _split_field(source: str) -> tuple[Path, str | None]:
    path, colon, field = source.rpartition(":")
    if colon and not Path(source).exists() and Path(path).exists():
        return Path(path), field
    return Path(source), None


def _read_file(source: str, label: Label) -> list[Instruction]:
    path, field = _split_field(source)
    instructions = []
    for number, record in _records(path):
        where = f"{path}:{number}"
        text = _instruction(record, field, where)
        split = record.get("split") or hashed_split(text)
        if split not in ("train", "validation", "test"):
            raise DataError(f"{where}: split must be train, validation or test, not {split!r}")
        instructions.append(
            Instruction(
                id=str(record.get("id") or f"{path.stem}-{number:05}"),
                instruction=text,
                label=label,
                source=path.name,
                split=split,
                category=str(record.get("category") or ""),
                borderline=str(record.get("borderline", "")).lower() in ("true", "1", "yes"),
            )
        )
    return instructions


def _records(path: Path) -> list[tuple[int, dict[str, Any]]]:
    if not path.is_file():
        raise DataError(f"no file {path}; give a .jsonl, .csv or .txt file, or 'seeds'")
    if path.suffix == ".csv":
        csv.field_size_limit(sys.maxsize)
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.DictReader(file)
                return [(reader.line_num, {k: v for k, v in row.items() if k is not None}) for row in reader]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"cannot read {path}: {error}") from error
    if path.suffix == ".txt":
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read {path}: {error}") from error
        return [(n, {"instruction": line.strip()}) for n, line in enumerate(lines, 1) if line.strip()]
    if path.suffix in (".jsonl", ".json"):
        return list(read_jsonl(path))
    raise DataError(f"{path}: unknown kind of file {path.suffix!r}; give .jsonl, .csv or .txt")


def _instruction(record: dict[str, Any], field: str | None, where: str) -> str:
    name = field or next((f for f in _TEXT_FIELDS if f in record), None)
    if name is None or name not in record:
        have = ", ".join(map(str, record)) or "none"
        raise DataError(f"{where}: no field {field or 'instruction'!r} (has {have}); name it as FILE:FIELD")
    text = record[name]
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where}: field {name!r} must be a non-empty string")
    return text.strip()


def hashed_split(text: str) -> Split:
    """The split of a row that brings none: 80% train, 10% validation, 10% test, always the same for the same text."""
    bucket = int(hashlib.sha256(text.casefold().encode()).hexdigest()[:8], 16) % 10
    return "validation" if bucket == 8 else "test" if bucket == 9 else "train"
