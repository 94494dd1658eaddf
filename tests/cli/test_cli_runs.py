"""``mogu runs``: the table, the JSON, and nothing to list."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run and one that has begun, both of known age."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    done, new = tmp_path / "runs" / "done", tmp_path / "runs" / "new"
    for path, name in ((done, "default"), (new, "quickstart")):
        path.mkdir(parents=True)
        (path / "recipe.yaml").write_text(f"name: {name}\n")
    systems = {
        name: {"n": 8, "rates": {"refusal": {"rate": rate}}} for name, rate in (("none", 0.125), ("mogu", 0.875))
    }
    summary = {
        "model": "smollm2",
        "settings": {"shift": -0.4, "layers": [1, 2]},
        "suites": [{"kind": "malicious", "systems": systems}],
    }
    (done / "summary.json").write_text(json.dumps(summary))
    for path in (done / "recipe.yaml", done / "summary.json", new / "recipe.yaml"):
        os.utime(path, (1_700_000_000, 1_700_000_000))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def test_the_table_has_a_line_for_each_run(run, folder: Path) -> None:
    result = run("runs")
    assert result.exit_code == 0, result.output
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["run", "base", "recipe", "changed", "malicious", "benign", "borderline", "shift", "layers", "state"],
        ["runs/done", "smollm2", "default", "2023-11-14", "22:13", "88%", "–", "–", "-0.4", "2", "finished"],
        ["runs/new", "–", "quickstart", "2023-11-14", "22:13", "–", "–", "–", "–", "–", "data"],
    ]
    assert run("runs", folder).stdout.count(str(folder)) == 2


def test_json_holds_all_of_it(run, folder: Path) -> None:
    done, new = json.loads(run("runs", folder, "--json").stdout)
    assert done == {
        "folder": str(folder / "done"),
        "model": "smollm2",
        "recipe": "default",
        "state": "finished",
        "changed": "2023-11-14T22:13:20Z",
        "refused": {"malicious": 0.875},
        "base_refused": {"malicious": 0.125},
        "shift": -0.4,
        "layers": [1, 2],
    }
    assert (new["state"], new["refused"], new["layers"]) == ("data", {}, None)


def test_without_runs_it_says_how_to_make_one(run, tmp_path: Path) -> None:
    result = run("runs", tmp_path)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"no runs in {tmp_path}; make one: mogu demo\n"
    assert json.loads(run("runs", tmp_path, "--json").stdout) == []


def test_a_missing_folder_is_one_line(run, tmp_path: Path) -> None:
    result = run("runs", tmp_path / "nix")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: no folder {tmp_path}/nix; ")
