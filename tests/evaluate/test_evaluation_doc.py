"""The worked example of docs/evaluation.md is extracted and run."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import small
from typer.testing import CliRunner

from mogu.cli.main import app
from mogu.evaluate.suites import built_in

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")


def block(language: str, part: str = "## Your own suite") -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE[PAGE.index(part) :], re.DOTALL)
    assert found is not None
    return found.group(1)


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "doors.jsonl").write_text(block("jsonl"))
    (tmp_path / "doors.yaml").write_text(block("yaml"))
    words = shlex.split(block("bash"))
    words[words.index("smollm2")] = small.save_base(tmp_path / "base")
    result = CliRunner().invoke(app, words[1:])
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "runs" / "doors" / "summary.json").read_text())
    suite = summary["suites"][0]
    assert (suite["name"], suite["kind"], suite["n"], suite["licence"]) == ("doors", "borderline", 2, "CC0-1.0")
    assert set(suite["categories"]) == {"paint", "wood"}
    assert (tmp_path / "runs" / "doors" / "report.html").is_file()


def test_every_built_in_suite_is_named() -> None:
    assert not [name for name in built_in() if f"`{name}`" not in PAGE]


def test_every_file_is_named() -> None:
    for name in ("responses.jsonl", "summary.json", "report.html", "report.md", "cost.json", "work/"):
        assert f"`{name}`" in PAGE
