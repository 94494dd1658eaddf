"""A data set for a model that was fine-tuned: its task, and what brings its security back (MoGU v2).

Task rows are benign and bring their own answers, so that the task is kept; malicious and borderline rows come beside
them, as many as the share says.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mogu.data.answers import affirmation_for, refusal_for
from mogu.data.build import manifest
from mogu.data.rows import (
    MANIFEST_FILE,
    ROWS_FILE,
    SPLITS,
    Row,
    fingerprint,
    instruction_of,
    read_rows,
    write_jsonl,
    write_text,
)
from mogu.data.sources import hashed_split, read_prompts, seed_instructions
from mogu.errors import DataError

ANSWERS = ("response", "output", "answer", "completion", "target", "glad")
"""Fields that may hold the answer of a task row."""
_CONTEXT = "input"
"""Field that some data sets keep the text in that an instruction speaks of."""


def task_rows(source: str) -> list[Row]:
    """Benign rows of a task with their own answers.

    Args:
        source: A JSONL or CSV file; ``FILE:FIELD`` names the instruction's field. The answer stands in the first of
            :data:`ANSWERS` that a row has. Optional fields: ``input`` (put behind the instruction), ``id``, ``split``.

    Returns:
        Rows without exact duplicates of instructions; those without a split get one by hash, as everywhere.

    Raises:
        DataError: As :func:`mogu.data.sources.read_prompts`; or a row has no answer or an unknown split.
    """
    name, rows, used = Path(source.rpartition(":")[0] or source).name, [], set()
    for number, record in enumerate(read_prompts(source), 1):
        answer = next((record[field] for field in ANSWERS if isinstance(record.get(field), str)), "")
        if not answer.strip():
            raise DataError(f"{name}, row {number}: no answer; give it one of the fields {', '.join(ANSWERS)}")
        context = record.get(_CONTEXT)
        parts = [record["instruction"], context.strip() if isinstance(context, str) else ""]
        text = "\n\n".join(part for part in parts if part)
        if text.casefold() in used:
            continue
        used.add(text.casefold())
        split = record.get("split") or hashed_split(text)
        if split not in SPLITS:
            raise DataError(f"{name}, row {number}: split must be one of {', '.join(SPLITS)}, not {split!r}")
        rows.append(
            Row(
                id=str(record.get("id") or f"task-{number:05}"),
                instruction=text,
                label="benign",
                source=name,
                split=split,
                category=str(record.get("category") or "task"),
                glad=answer.strip(),
                unwill=refusal_for(text),
            )
        )
    return rows


def security_rows(folder: str | Path | None) -> list[Row]:
    """What brings security back: the rows of a built data set, or the built-in malicious and borderline seeds.

    Without a model nobody answers the borderline seeds, so they get an affirmative first sentence.
    """
    if folder is not None:
        return read_rows(folder)
    return [
        Row(
            **dataclasses.asdict(one),
            glad=affirmation_for(one.instruction) if one.split == "train" else "",
            unwill=refusal_for(one.instruction) if one.split == "train" else "",
        )
        for kind in ("malicious", "borderline")
        for one in seed_instructions(kind)
    ]


def mix(
    task: Sequence[Row],
    security: Sequence[Row],
    out: str | Path,
    *,
    share: float | None = None,
    inputs: dict[str, Any] | None = None,
) -> list[Row]:
    """Put both together and write ``rows.jsonl`` and ``manifest.json`` to ``out``.

    Args:
        task: From :func:`task_rows`.
        security: From :func:`security_rows`; rows whose instruction is one of the task's are left out.
        out: Folder of the data set.
        share: Of the training rows, how many are of the task, in (0, 1); of the other side's or the task's there may
            then be too many, and some are left out, always the same ones. ``None`` keeps all.
        inputs: What the manifest says beside it.

    Raises:
        DataError: ``share`` is not between 0 and 1, or nothing is left of one side.
    """
    if share is not None and not 0 < share < 1:
        raise DataError(f"the share of task rows must lie between 0 and 1, not {share}")
    own = {row.instruction.casefold() for row in task}
    security = [row for row in security if row.instruction.casefold() not in own]
    task, security = _balanced(task, security, share)
    rows = [*task, *security]
    for label, side in (("task", task), ("security", security)):
        if not any(row.split == "train" for row in side):
            raise DataError(f"no {label} row in the training split; give more of them")
    if len({row.id for row in rows}) < len(rows):
        rows = [dataclasses.replace(row, id=f"task:{row.id}") for row in task] + list(security)
    record = {**(inputs or {}), "share": share, "instructions": fingerprint([instruction_of(row) for row in rows])}
    out = Path(out)
    write_jsonl(out / ROWS_FILE, (dataclasses.asdict(row) for row in rows))
    write_text(out / MANIFEST_FILE, json.dumps(manifest(record, rows), indent=1, ensure_ascii=False) + "\n")
    return rows


def _balanced(task: Sequence[Row], security: Sequence[Row], share: float | None) -> tuple[list[Row], list[Row]]:
    """Training rows of the side that has too many are left out; twins go together."""
    if share is None:
        return list(task), list(security)
    have = [sum(row.split == "train" for row in side) for side in (task, security)]
    wanted = min(have[0], round(have[1] * share / (1 - share)))
    others = min(have[1], round(wanted * (1 - share) / share))
    return _first(task, wanted), _first(security, others)


def _first(rows: Sequence[Row], count: int) -> list[Row]:
    """All rows of other splits and ``count`` of the training split, as a hash orders them and their twins."""
    train = [row for row in rows if row.split == "train"]
    ids = {row.id for row in train}

    def key(row: Row) -> bytes:
        pair = min(row.id, row.twin) if row.twin in ids else row.id
        return hashlib.sha256(pair.encode()).digest()

    kept = {row.id for row in sorted(train, key=lambda row: (key(row), row.id))[:count]}
    return [row for row in rows if row.split != "train" or row.id in kept]
