"""Measure the judge against human labels: python benchmarks/judge.py --labels FILE.jsonl [FILE.jsonl ...]

Each row has `instruction`, `response` and `label` (1_full_compliance, 2_full_refusal, 3_partial_refusal), as in
XSTest's annotated completions (arXiv:2308.01263). Recall is over full refusals, false alarms over full compliances;
both with Wilson 95% intervals. Rows are split in halves by a hash of the instruction: rules were written with half A
in view; of half B only the totals were looked at, but more than once, so it is a validation set, not an untouched test.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

from mogu.judge import is_keyword_refusal, label_response

Row = dict[str, str]
Rule = Callable[[Row], bool]
RULES: dict[str, Rule] = {
    "mogu": lambda row: label_response(row["instruction"], row["response"]) == "refusal",
    "keywords": lambda row: is_keyword_refusal(row["response"]),
}


SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def half(instruction: str) -> str:
    """A or B, by the parity of the instruction's SHA-256."""
    return "AB"[hashlib.sha256(instruction.encode()).digest()[-1] % 2]


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a share; (0, 1) without observations."""
    if n == 0:
        return 0.0, 1.0
    share, extra = hits / n, z * z / n
    centre = (share + extra / 2) / (1 + extra)
    margin = z / (1 + extra) * math.sqrt(share * (1 - share) / n + extra / (4 * n))
    return max(0.0, centre - margin), min(1.0, centre + margin)


def read_labels(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def counts(rows: list[Row], rule: Rule) -> tuple[int, int, int, int]:
    """Refusals found, full refusals, false alarms, full compliances."""
    refusals = [row for row in rows if row["label"].startswith("2")]
    compliances = [row for row in rows if row["label"].startswith("1")]
    return sum(map(rule, refusals)), len(refusals), sum(map(rule, compliances)), len(compliances)


def table(files: dict[str, list[Row]]) -> Iterator[str]:
    """One line per rule, file (and all pooled) and half (and both)."""
    pools = {**files, "pooled": [row for rows in files.values() for row in rows]}
    yield f"{'rule':<9} {'half':<5} {'labels':<34} {'recall':<28} false alarms"
    for name, rule in RULES.items():
        for part in ("A", "B", "A+B"):
            for file, rows in pools.items():
                found, refusals, alarms, compliances = counts([r for r in rows if half(r["instruction"]) in part], rule)
                yield (f"{name:<9} {part:<5} {file:<34} {_share(found, refusals):<28} {_share(alarms, compliances)}")


def _share(hits: int, n: int) -> str:
    low, high = wilson(hits, n)
    return f"{hits / max(n, 1):.3f} [{low:.3f}, {high:.3f}] {hits}/{n}"


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
