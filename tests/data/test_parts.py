"""A data set that two processes build together is the one that one process builds, also after interruptions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import several
import small

from mogu import processes
from mogu.data import parts
from mogu.data.build import PARTIAL_FILE, build
from mogu.data.rows import MANIFEST_FILE, ROWS_FILE, instruction_of

INSTRUCTIONS = [instruction_of(row) for row in small.rows()]


def run(folder: Path, progress: Any = None) -> list[list[str]]:
    """Build, and return what this process asked the model."""
    model = small.Canned(lambda text: f"Sure, here is a {text.split()[-1]}")
    build(
        model,
        small.tokenizer(),
        INSTRUCTIONS,
        folder,
        model_name="m",
        batch_size=2,
        answer_tokens=12,
        progress=progress,
    )
    return model.asked


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def together(asked: Sequence[Sequence[Sequence[str]]]) -> list[str]:
    return sorted(text for batches in asked for batch in batches for text in batch)


def test_two_processes_write_the_same_bytes_from_the_same_batches(tmp_path: Path) -> None:
    alone = run(tmp_path / "one")
    shared = several.run(2, lambda: run(tmp_path / "two"), tmp_path / "said")
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert contents(tmp_path / "two").keys() == {ROWS_FILE, MANIFEST_FILE}
    assert shared == [alone[0::2], alone[1::2]]


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (3, 2)])
def test_another_number_of_processes_goes_on_where_some_were_killed(tmp_path: Path, before: int, after: int) -> None:
    whole = together([run(tmp_path / "one")])

    def killed() -> list[list[str]]:
        seen = []

        def stop(done: int, total: int) -> None:
            seen.append(done)
            if len(seen) == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "two", stop)
        return []

    several.run(before, killed, tmp_path / "said")
    kept = [json.loads(line) for path in (tmp_path / "two").iterdir() for line in path.read_text().splitlines()]
    known = [record["id"] for record in kept if "id" in record]
    assert len(known) == 2 * before
    asked = several.run(after, lambda: run(tmp_path / "two"), tmp_path / "said")
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert len(together(asked)) == len(whole) - len(known)


def test_parts_of_a_job_of_other_inputs_are_not_joined(tmp_path: Path) -> None:
    other = tmp_path / "answers.partial.7.jsonl"
    other.write_text('{"inputs": 2}\n{"id": "a"}\n')
    assert parts.joined(tmp_path / PARTIAL_FILE, {"inputs": 1}) == []
    assert not other.exists()
    assert parts.own_part(tmp_path / PARTIAL_FILE) == tmp_path / PARTIAL_FILE
    assert processes.is_main()
