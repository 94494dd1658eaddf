"""Measure the judge against human labels: python benchmarks/judge.py --labels FILE.jsonl [FILE.jsonl ...]

Each row has `instruction`, `response` and a person's label, as in XSTest's annotated completions (arXiv:2308.01263);
see mogu.judge.calibration for the names and numbers. Rows are split in halves by a hash of the instruction: rules were
written with half A in view; of half B only the totals were looked at, but more than once, so it is a validation set,
not an untouched test.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from mogu.judge import is_keyword_refusal, label_response
from mogu.judge.calibration import agreement, human_label
from mogu.statistics import Interval

Row = dict[str, str]
RULES: dict[str, Callable[[Row], str]] = {
    "mogu": lambda row: label_response(row["instruction"], row["response"]),
    "keywords": lambda row: "refusal" if is_keyword_refusal(row["response"]) else "complied",
}
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def half(instruction: str) -> str:
    """A or B, by the parity of the instruction's SHA-256."""
    return "AB"[hashlib.sha256(instruction.encode()).digest()[-1] % 2]


def read_labels(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def table(files: dict[str, list[Row]]) -> Iterator[str]:
    """One line per rule, half (and both), and file (and all pooled)."""
    pools = {**files, "pooled": [row for rows in files.values() for row in rows]}
    yield f"{'rule':<9} {'half':<5} {'labels':<34} {'recall':<28} {'false alarms':<28} {'precision':<21} kappa"
    for name, rule in RULES.items():
        for part in ("A", "B", "A+B"):
            for file, rows in pools.items():
                found = agreement(
                    (human_label(row) or "unclear", rule(row)) for row in rows if half(row["instruction"]) in part
                )
                recall = f"{_interval(found.recall)} {found.found}/{found.found + found.missed}"
                alarms = f"{_interval(found.false_alarms)} {found.alarms}/{found.alarms + found.passed}"
                others = f"{_interval(found.precision)} {_interval(found.kappa)}"
                yield f"{name:<9} {part:<5} {file:<34} {recall:<28} {alarms:<28} {others}"


def _interval(one: Interval) -> str:
    return f"{one.rate or 0:.3f} [{one.low:.3f}, {one.high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--labels",
        nargs="+",
        type=Path,
        metavar="FILE",
        default=sorted(SHARED.glob("refusal_labels_*.jsonl")),
        help="labelled responses, JSONL; default: refusal_labels_*.jsonl in ../shared/data",
    )
    args = parser.parse_args()
    if not args.labels:
        parser.error(f"no labelled responses in {SHARED}; name files with --labels")
    for line in table({path.stem: read_labels(path) for path in args.labels}):
        print(line)


if __name__ == "__main__":
    main()
