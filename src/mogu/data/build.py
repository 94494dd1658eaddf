"""Build a data set with the base model: its answers to benign instructions, refusals, affirmative first sentences."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mogu import processes
from mogu.data.answers import affirmation_for, refusal_for
from mogu.data.parts import joined, own_part
from mogu.data.rows import (
    MANIFEST_FILE,
    ROWS_FILE,
    SPLITS,
    Instruction,
    Row,
    fingerprint,
    instruction_of,
    read_rows,
    write_jsonl,
    write_text,
)
from mogu.data.sources import SEEDS, load_instructions
from mogu.errors import DataError
from mogu.finetuned import merged_lora
from mogu.judge import label_response
from mogu.respond import respond, share_of
from mogu.versions import versions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PARTIAL_FILE = "answers.partial.jsonl"
ANSWER_TOKENS = 32
"""Length of the base's answers: routing and responders only concern the beginning."""


def choose_instructions(
    benign: str, malicious: str, limit: int | None = None, splits: Sequence[str] = SPLITS
) -> list[Instruction]:
    """Instructions of both sources for the given splits.

    Args:
        benign: Source of benign instructions, as for :func:`mogu.data.sources.load_instructions`.
        malicious: The same for malicious ones.
        limit: At most so many per label, borderline counted apart, and split; the built-in order is already mixed.
        splits: Which splits to take.

    Raises:
        DataError: A bad source, the same instruction under both labels, or an empty class in training or validation.
    """
    chosen = [*load_instructions(malicious, "malicious"), *load_instructions(benign, "benign")]
    labels: dict[str, str] = {}
    for one in chosen:
        if labels.setdefault(one.instruction.casefold(), one.label) != one.label:
            raise DataError(f"{one.source}: {one.instruction!r} is given as benign and as malicious; keep one")
    chosen = _with_unique_ids(chosen)
    kept = []
    for split in splits:
        for label, borderline in (("malicious", False), ("benign", False), ("benign", True)):
            group = [o for o in chosen if o.split == split and o.label == label and o.borderline == borderline]
            kept += _spread(group, limit)
        for label in ("benign", "malicious"):
            if split != "test" and not any(o.split == split and o.label == label for o in kept):
                raise DataError(f"no {label} instruction in the {split} split; add rows or set their split field")
    return kept


def _with_unique_ids(instructions: Sequence[Instruction]) -> list[Instruction]:
    """Ids that occur twice get their file's name and a number; those of the seeds stay, as twins point at them."""
    ids = Counter(one.id for one in instructions)
    seen: Counter[str] = Counter()
    unique = []
    for one in instructions:
        if ids[one.id] > 1 and one.source != SEEDS:
            name = f"{one.source}/{one.label}/{one.id}"
            seen[name] += 1
            one = dataclasses.replace(one, id=name if seen[name] == 1 else f"{name}/{seen[name]}")
        unique.append(one)
    return unique


def _spread(group: Sequence[Instruction], limit: int | None) -> list[Instruction]:
    """At most ``limit`` of ``group``, in an order that mixes its parts and never changes."""
    ordered = sorted(group, key=lambda one: hashlib.sha256(one.instruction.encode()).hexdigest())
    return ordered if limit is None else ordered[:limit]


def build(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    instructions: Sequence[Instruction],
    out: str | Path,
    *,
    model_name: str,
    batch_size: int = 32,
    template: str | None = None,
    answer_tokens: int = ANSWER_TOKENS,
    progress: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """Answer the training instructions and write ``rows.jsonl`` and ``manifest.json`` to ``out``.

    An interrupted build goes on where it stopped; a finished one of the same inputs is only read. Of several processes
    (:mod:`mogu.processes`) each answers its share, and the main one writes.

    Args:
        model: The base model.
        tokenizer: Its tokenizer.
        instructions: What to answer, ids unique.
        out: Folder of the data set.
        model_name: Recorded in the manifest.
        batch_size: Prompts at a time.
        template: As for :func:`mogu.chat.prompt_ids`.
        answer_tokens: Length of the base's answers.
        progress: Called with (answers done, answers in all).

    Raises:
        DataError: ``out`` holds a data set of other inputs.
    """
    processes.need_whole("building data")
    out = Path(out)
    inputs = {
        "model": model_name,
        **({"base_lora": mark} if (mark := merged_lora(model)) else {}),
        "template": template,
        "answer_tokens": answer_tokens,
        "instructions": fingerprint(instructions),
    }
    if (out / MANIFEST_FILE).is_file() and (out / ROWS_FILE).is_file():
        _check_same(out / MANIFEST_FILE, inputs)
        return read_rows(out)
    benign = [one for one in instructions if one.label == "benign" and one.split == "train"]
    answers = {r["id"]: r["answer"] for r in joined(out / PARTIAL_FILE, {"inputs": inputs})}
    before = len(answers)
    todo = [one for one in benign if one.id not in answers]
    mine = share_of(tokenizer, [one.instruction for one in todo], batch_size, template)
    todo = [todo[index] for index in mine]
    with own_part(out / PARTIAL_FILE).open("a", encoding="utf-8") as partial:

        def keep(index: int, answer: str) -> None:
            answers[todo[index].id] = answer
            partial.write(json.dumps({"id": todo[index].id, "answer": answer}, ensure_ascii=False) + "\n")
            partial.flush()
            if progress is not None:
                done = before + (len(answers) - before) * processes.count()  # the others are about as far
                progress(min(done, len(benign)), len(benign))

        respond(
            model,
            tokenizer,
            [one.instruction for one in todo],
            max_new_tokens=answer_tokens,
            batch_size=batch_size,
            template=template,
            on_done=keep,
        )
    processes.wait()
    answers = {r["id"]: r["answer"] for r in joined(out / PARTIAL_FILE, {"inputs": inputs})}
    rows = [
        _row(one, answers.get(one.id, "")) if one.split == "train" else Row(**dataclasses.asdict(one))
        for one in instructions
    ]
    processes.from_main(lambda: _write(out, inputs, rows))
    own_part(out / PARTIAL_FILE).unlink()
    return rows


def _write(out: Path, inputs: dict[str, Any], rows: Sequence[Row]) -> None:
    write_jsonl(out / ROWS_FILE, (dataclasses.asdict(row) for row in rows))
    write_text(out / MANIFEST_FILE, json.dumps(manifest(inputs, rows), indent=1, ensure_ascii=False) + "\n")


def _row(one: Instruction, answer: str) -> Row:
    """The row of ``one``; where the base refuses or stammers, the glad answer is an affirmative sentence instead."""
    helpful = one.label == "benign" and label_response(one.instruction, answer) in ("complied", "unclear")
    glad = answer if helpful else affirmation_for(one.instruction)
    return Row(**dataclasses.asdict(one), glad=glad, unwill=refusal_for(one.instruction))


def _check_same(manifest: Path, inputs: dict[str, Any]) -> None:
    try:
        before = json.loads(manifest.read_text(encoding="utf-8"))["inputs"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"cannot read {manifest}: {error}; delete the folder to build it anew") from error
    for name, value in inputs.items():
        if before.get(name) != value:
            raise DataError(
                f"{manifest.parent} was built with another {name} ({before.get(name)!r}, now {value!r}); "
                "choose another --out or delete it"
            )


def manifest(inputs: dict[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """What a data set was made of, and how much of what it holds."""
    sources = Counter((row.source, row.label) for row in rows)
    return {
        "inputs": inputs,
        "counts": {
            split: dict(
                sorted(Counter("borderline" if r.borderline else r.label for r in rows if r.split == split).items())
            )
            for split in SPLITS
        },
        "sources": [
            {
                "source": source,
                "label": label,
                "rows": count,
                "licence": "Apache-2.0" if source == "seeds" else "the user's",
            }
            for (source, label), count in sorted(sources.items())
        ],
        "sha256": fingerprint([instruction_of(row) for row in rows]),
        "versions": versions(),
    }
