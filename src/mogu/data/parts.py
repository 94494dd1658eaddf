"""One file of records that several processes append to: each to a part of its own, which the main process joins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mogu import processes
from mogu.data.rows import resume_jsonl, write_jsonl


def own_part(path: Path) -> Path:
    """The file that this process appends to: ``path`` itself in the main one."""
    return path if processes.is_main() else path.with_suffix(f".{processes.rank()}{path.suffix}")


def joined(path: Path, header: dict[str, Any]) -> list[dict[str, Any]]:
    """Records of all processes so far, in all processes; ready to be appended to, as :func:`resume_jsonl`.

    All processes must call it. Parts of an interrupted job are joined, however many processes it had; those of a job of
    other inputs (another ``header``) are removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    records = processes.from_main(lambda: _join(path, header))
    if not processes.is_main():
        resume_jsonl(own_part(path), header)
    return records


def _join(path: Path, header: dict[str, Any]) -> list[dict[str, Any]]:
    records = resume_jsonl(path, header)
    parts = sorted(path.parent.glob(f"{path.stem}.[0-9]*{path.suffix}"))
    new = [record for part in parts for record in resume_jsonl(part, header)]
    if new:
        records = [*records, *new]
        write_jsonl(path, [header, *records])
    for part in parts:
        part.unlink()
    return records
