"""What docs/defences.md says is so: its table is whole, and its worked example works."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import defended
import pytest
import small

from mogu.defend import create, defense_names, registry

DOC = (Path(__file__).parents[2] / "docs" / "defences.md").read_text(encoding="utf-8")


def block(language: str, after: str) -> str:
    """The first code block of a language after a heading."""
    match = re.search(rf"```{language}\n(.*?)```", DOC[DOC.index(after) :], re.DOTALL)
    assert match is not None
    return match.group(1)


def test_every_built_in_defence_has_a_row() -> None:
    rows = [line.split("|")[1] for line in DOC.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([a-z-]+)`", row)]
    assert [name for name in named if name in registry._BUILT_IN] == list(registry._BUILT_IN)


def test_the_worked_example_becomes_a_defence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "spotlight.py").write_text(block("python", "## Adding one"), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    groups = tomllib.loads(block("toml", "## Adding one"))["project"]["entry-points"]
    points = [
        importlib.metadata.EntryPoint(name, value, group) for group in groups for name, value in groups[group].items()
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: [p for p in points if p.group == group])
    assert defense_names()[-1] == "spotlight"
    asked = []
    model = small.Canned(lambda text: asked.append(text) or "a boat")  # type: ignore[func-returns-value]
    words = small.tokenizer()
    words.add_tokens(["^^"])
    monkeypatch.setattr(small, "tokenizer", lambda: words)
    pipeline = create("spotlight", defended.target(tmp_path, model=model, tokenizer=words))
    assert defended.answers(pipeline, "a car") == ["a boat"]
    assert [text.split() for text in asked] == [["^^", "a", "car", "^^"]]
    assert pipeline.settings() == {"spotlight": {"mark": "^^"}}


def test_the_usage_example_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the small world instead of the embedded model and its run."""
    monkeypatch.setattr("mogu.load", lambda name: (small.base(), small.tokenizer()), raising=False)
    monkeypatch.setattr("mogu.data.rows.read_rows", lambda folder: small.rows())
    monkeypatch.chdir(tmp_path)
    import tiny

    from mogu.adapter.store import save

    save(tiny.adapted(small.base(), router="folded"), tmp_path / "runs" / "demo" / "adapter")
    exec(compile(block("python", "## Using them"), "defences.md", "exec"), {})
