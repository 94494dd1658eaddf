"""An evaluation by two processes leaves the files that one leaves, sampled answers too, and after interruptions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import several
import small
import tiny

from mogu.adapter import store
from mogu.defend import Target, create
from mogu.evaluate.ask import Sampling
from mogu.evaluate.run import COST_FILE, Options, evaluate
from mogu.evaluate.suites import Prompts, Suite
from mogu.progress import Progress

ROWS = small.rows()
FINAL = ("responses.jsonl", "summary.json", "report.html", "report.md")
SUITES = [
    Prompts(Suite("bad", "malicious"), [{"id": r.id, "instruction": r.instruction} for r in ROWS[:5]]),
    Prompts(Suite("good", "benign"), [{"id": r.id, "instruction": r.instruction} for r in ROWS[-9:]]),
]
SAMPLED = Options(4, Sampling((1, 2), temperature=0.9), measures=False)


def run(folder: Path, options: Options, progress: Progress | None = None) -> dict[str, Any]:
    target = Target(
        small.base(),
        small.tokenizer(),
        "m",
        folder / "learnt",
        adapter=folder.parent / "adapter",
        batch_size=2,
        rows=lambda: ROWS,
    )
    pipelines = [create(name, target) for name in ("none", "mogu")]
    return evaluate(pipelines, SUITES, folder, settings={"model": "m"}, options=options, progress=progress)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return store.save(tiny.adapted(small.base(), routed_tokens=2), tmp_path / "adapter")


def final(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FINAL}


def counted(folder: Path) -> Any:
    """What an evaluation cost, without what depends on the clock."""
    costs = json.loads((folder / COST_FILE).read_text())["defenses"]
    kept = ("answers", "tokens", "forwards", "tokens_forwarded")
    return {name: {key: one[key] for key in kept} for name, one in costs.items()}


@pytest.mark.parametrize("options", [Options(4), SAMPLED], ids=["greedy", "sampled"])
def test_two_processes_leave_the_same_files(adapter: Path, tmp_path: Path, options: Options) -> None:
    alone = run(tmp_path / "one", options)
    shared = several.run(2, lambda: run(tmp_path / "two", options), tmp_path / "said")
    assert final(tmp_path / "two") == final(tmp_path / "one")
    assert json.loads(json.dumps(shared[0])) == json.loads(json.dumps(shared[1])) == json.loads(json.dumps(alone))
    assert counted(tmp_path / "two") == counted(tmp_path / "one")
    assert not list((tmp_path / "two").rglob("answers.*.jsonl"))


@pytest.mark.parametrize("numbers", [(2, 1), (1, 2)], ids=str)
def test_another_number_of_processes_goes_on(adapter: Path, tmp_path: Path, numbers: tuple[int, int]) -> None:
    before, after = numbers
    run(tmp_path / "one", SAMPLED)

    def killed() -> None:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "two", SAMPLED, small.Interrupts("evaluate base", 1))

    several.run(before, killed, tmp_path / "said")
    lines = [path.read_text().splitlines() for path in (tmp_path / "two").rglob("answers*.jsonl")]
    assert sum(map(len, lines)) == 2 * before  # a header and a batch in each part
    several.run(after, lambda: run(tmp_path / "two", SAMPLED), tmp_path / "said")
    assert final(tmp_path / "two") == final(tmp_path / "one")
